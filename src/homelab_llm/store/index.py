"""The index: which names there are and which manifest each of them means. ``index.json`` of the OCI layout.

Values and two functions that touch the file. What other tools wrote into it, entries of kinds we do not know
and keys we do not read, is kept when it is written again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.names import ModelRef
from homelab_llm.store.layout import MAX_INDEX_BYTES, Layout, damaged, read_small
from homelab_llm.store.manifests import MANIFEST, MODEL

NAME = "org.opencontainers.image.ref.name"
CREATED = "org.opencontainers.image.created"
PULLED_FROM = "homelab-llm.pulled-from"

_TIME_STEPS_NS = (1, 1_000, 2 * 10**9)  # APFS and ext4; file systems that keep microseconds; FAT and HFS+

Stamp = tuple[int, int, int]
"""``(mtime_ns, inode, size)`` of ``index.json``; all zero when there is none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index. ``ref`` is None for what has no name of ours, ``digest`` for what has no digest."""

    raw: dict[str, Any]
    ref: ModelRef | None
    digest: Digest | None

    @property
    def created_unix_s(self) -> float:
        """When the name came to mean this manifest; 0 when it is not said."""
        try:
            return datetime.fromisoformat(self.raw["annotations"][CREATED]).timestamp()
        except (KeyError, TypeError, ValueError):
            return 0.0

    @property
    def pulled_from(self) -> str:
        """The reference by which this store got the manifest; empty when it was imported or made here."""
        annotations = self.raw.get("annotations")
        found = annotations.get(PULLED_FROM) if isinstance(annotations, dict) else None
        return found if isinstance(found, str) else ""


@dataclass(frozen=True, slots=True)
class Index:
    """All entries in their order; immutable."""

    entries: tuple[Entry, ...] = ()
    other: tuple[tuple[str, Any], ...] = ()

    def tagged(
        self, ref: ModelRef, digest: Digest, size_bytes: int, created_unix_s: float, pulled_from: str = ""
    ) -> Index:
        """This index with ``ref`` meaning ``digest``; one that meant it before keeps its date."""
        current = self.find(ref)
        if current is not None and current.digest == digest:
            if not pulled_from or pulled_from == current.pulled_from:
                return self
            created_unix_s = current.created_unix_s
        added = _entry(ref, digest, size_bytes, created_unix_s, pulled_from)
        return replace(self, entries=(*self._without(ref), added))

    def without(self, drop: Callable[[Entry], bool]) -> Index:
        """This index less the entries for which ``drop`` says so."""
        return replace(self, entries=tuple(entry for entry in self.entries if not drop(entry)))

    def find(self, ref: ModelRef) -> Entry | None:
        """The first entry called so (``ref`` without a digest)."""
        return next((entry for entry in self.entries if entry.ref == ref), None)

    def meaning(self, digest: Digest) -> tuple[Entry, ...]:
        """The named entries of one manifest."""
        return tuple(entry for entry in self.entries if entry.digest == digest and entry.ref is not None)

    def encode(self) -> bytes:
        """The document."""
        document = dict(self.other) | {"manifests": [entry.raw for entry in self.entries]}
        return json.dumps(document, separators=(",", ":")).encode()

    def _without(self, ref: ModelRef) -> Iterable[Entry]:
        return (entry for entry in self.entries if entry.ref != ref)


def read_index(layout: Layout) -> Index:
    """What the file says; an absent store has an empty one.

    Raises:
        StoreDamaged: unreadable, or lost while the store is there. Never repaired in silence.
    """
    layout.check()
    try:
        content = read_small(layout.index, MAX_INDEX_BYTES)
    except FileNotFoundError:
        return Index(other=(("schemaVersion", 2), ("mediaType", "application/vnd.oci.image.index.v1+json")))
    try:
        document = json.loads(content)
        listed = document.pop("manifests")
        entries = tuple(_parsed(raw) for raw in listed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise damaged(layout.index, f"is not an OCI image index{where}") from error
    return Index(entries, tuple(document.items()))


def write_index(layout: Layout, index: Index) -> None:
    """Replace the file in one step; the caller has held the store's lock since it read it.

    The new modification time is later than the old one whatever the clock says, so that no two versions
    have the same stamp, even where the new file gets the inode of the one before the last.
    """
    before = index_stamp(layout)[0]
    failpoint("store.index.before_write")
    write_atomic(layout.index, index.encode())
    for step_ns in _TIME_STEPS_NS:
        if index_stamp(layout)[0] > before:
            break
        os.utime(layout.index, ns=(time.time_ns(), before + step_ns))
    failpoint("store.index.written")


def index_stamp(layout: Layout) -> Stamp:
    """Changes whenever the index does; one system call."""
    try:
        found = layout.index.stat()
    except (FileNotFoundError, NotADirectoryError):
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)


def _entry(ref: ModelRef, digest: Digest, size_bytes: int, created_unix_s: float, pulled_from: str) -> Entry:
    created = datetime.fromtimestamp(created_unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    raw = {
        "mediaType": MANIFEST,
        "artifactType": MODEL,
        "digest": str(digest),
        "size": size_bytes,
        "annotations": {NAME: str(ref), CREATED: created} | ({PULLED_FROM: pulled_from} if pulled_from else {}),
    }
    return Entry(raw, ref, digest)


def _parsed(raw: Any) -> Entry:
    if not isinstance(raw, dict):
        raise TypeError("an entry is an object")
    annotations = raw.get("annotations")
    name = annotations.get(NAME) if isinstance(annotations, dict) else None
    try:
        digest = Digest.parse(raw.get("digest", ""))
    except HomelabError:
        digest = None
    return Entry(raw, _ref(name) if isinstance(name, str) else None, digest)


@lru_cache(maxsize=4096)
def _ref(name: str) -> ModelRef | None:
    """The name as a reference without digest, or None where another tool's name is outside our grammar."""
    try:
        return replace(ModelRef.parse(name), digest=None)
    except HomelabError:
        return None
