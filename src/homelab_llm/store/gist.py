"""Gist: what a list of models needs of each manifest. Of a large store it is kept beside the index.

``STORE/gist.json`` is derived: a gist counts only while the manifest's blob is the file it was made of (size, time
of change, inode), and it is made anew in any doubt. A store of a thousand models is listed in a third of the time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import StoreDamaged
from homelab_llm.core.facts import NO_DEFAULTS, NO_PROVENANCE, ModelDefaults, ModelFacts, Provenance
from homelab_llm.store.layout import MAX_INDEX_BYTES, Layout, read_small
from homelab_llm.store.manifests import Manifest, parse_defaults, parse_facts, parse_provenance

_VERSION = 1
_WORTH_WRITING = 50

FileStamp = tuple[int, int, int]
"""``(size, mtime_ns, inode)`` of a blob."""


@dataclass(frozen=True, slots=True)
class Gist:
    """A manifest in short. ``files`` are name, hex digest and size; a config's digest is only in ``config``."""

    facts: ModelFacts
    source: str
    config: str
    files: tuple[tuple[str, str, int], ...]
    defaults: ModelDefaults = NO_DEFAULTS
    provenance: Provenance = NO_PROVENANCE

    @classmethod
    def of(cls, manifest: Manifest) -> Gist:
        """The gist of a manifest that was read and checked."""
        files = tuple((layer.name, layer.digest.hex, layer.size_bytes) for layer in manifest.layers)
        return cls(manifest.facts, manifest.source, manifest.config.hex, files, manifest.defaults, manifest.provenance)

    @property
    def size_bytes(self) -> int:
        """Of all files; content that two of them share counts once."""
        return sum({hex_: size for _, hex_, size in self.files}.values())

    def blobs(self) -> list[Digest]:
        """Configuration and files, each once."""
        return [Digest(hex_) for hex_ in dict.fromkeys([self.config, *(hex_ for _, hex_, _ in self.files)])]


class BlobFiles(Mapping[str, Path]):
    """The files of a model and their blobs. Paths are made when asked for: a list of a thousand models needs none."""

    __slots__ = ("_files", "_layout")

    def __init__(self, layout: Layout, gist: Gist) -> None:
        self._layout = layout
        self._files = gist.files

    def __getitem__(self, name: str) -> Path:
        for known, hex_, _ in self._files:
            if known == name:
                return self._layout.blob(Digest(hex_))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _, _ in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return repr(dict(self))


class KeptGists:
    """The gists of a large store as an earlier process kept them; every doubt means: not kept."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._kept: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        with contextlib.suppress(OSError, StoreDamaged, ValueError, TypeError, AttributeError, RecursionError):
            found = json.loads(read_small(layout.gist, MAX_INDEX_BYTES))
            if found["version"] == _VERSION:
                self._kept = dict(found["gists"])

    def get(self, digest: Digest) -> Gist | None:
        """The gist of the manifest as it lies there now."""
        raw = self._kept.get(digest.hex)
        try:
            if raw is None or tuple(raw["stamp"]) != _stamp(self._layout.blob(digest)):
                return None
            return _parsed(raw)
        except (OSError, KeyError, TypeError, ValueError, AttributeError):
            return None

    def recall(self, digest: Digest) -> Gist | None:
        """The gist of a manifest that is lost; whoever writes it again must see that it has this digest."""
        try:
            return _parsed(self._kept[digest.hex])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def put(self, digest: Digest, gist: Gist) -> None:
        """This one had to be read."""
        with contextlib.suppress(OSError):
            self._new[digest.hex] = {"stamp": _stamp(self._layout.blob(digest)), **_raw(gist)}

    def keep(self, named: set[str]) -> None:
        """Write them down if enough had to be read; ``named`` are those the index still names. Never an error."""
        if len(self._new) < _WORTH_WRITING:
            return
        gists = {hex_: raw for hex_, raw in (self._kept | self._new).items() if hex_ in named}
        content = json.dumps({"version": _VERSION, "gists": gists}, separators=(",", ":")).encode()
        with contextlib.suppress(OSError):
            write_atomic(self._layout.gist, content)


def _stamp(path: Path) -> FileStamp:
    found = os.lstat(path)
    return (found.st_size, found.st_mtime_ns, found.st_ino)


def _raw(gist: Gist) -> dict[str, Any]:
    raw = {"facts": gist.facts.as_dict(), "source": gist.source, "config": gist.config, "files": gist.files}
    if gist.defaults != NO_DEFAULTS:
        raw["defaults"] = gist.defaults.as_dict()
    if gist.provenance != NO_PROVENANCE:
        raw["provenance"] = gist.provenance.as_dict()
    return raw


def _parsed(raw: Mapping[str, Any]) -> Gist:
    files = tuple((name, hex_, size) for name, hex_, size in raw["files"])
    if not files or not isinstance(raw["source"], str) or not isinstance(raw["config"], str):
        raise ValueError("not a gist")
    return Gist(
        parse_facts(raw["facts"]),
        raw["source"],
        raw["config"],
        files,
        parse_defaults(raw["defaults"]) if "defaults" in raw else NO_DEFAULTS,
        parse_provenance(raw["provenance"]) if "provenance" in raw else NO_PROVENANCE,
    )
