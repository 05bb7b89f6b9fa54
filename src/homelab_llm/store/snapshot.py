"""A snapshot: the models that one version of the index names, read once and then only looked up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.store.blobs import BlobStore
from homelab_llm.store.gist import BlobFiles, Gist, KeptGists
from homelab_llm.store.index import Entry, Stamp, index_stamp, read_index
from homelab_llm.store.inspect.template import with_template
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, read_small
from homelab_llm.store.manifests import parse_manifest

_ATTEMPTS = 5
_SCAN_FROM = 200
"""From so many models on the folder of blobs is read at once: cheaper than to ask for each of their files."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the store that is not as it should be; the other models are not touched by it.

    ``name`` is the model it hides, or empty; ``hint`` the command that mends it.
    """

    name: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All complete models. ``by_name`` also has ``repository`` alone where that means ``latest``."""

    stamp: Stamp | None = None
    models: tuple[StoredModel, ...] = ()
    by_name: Mapping[str, StoredModel] = field(default_factory=dict)
    gists: Mapping[Digest, Gist] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    blobs_ns: int = 0

    def is_current(self, layout: Layout) -> bool:
        """Whether reading again would find the same; a damaged model may be mended without a change of the index."""
        if self.stamp != index_stamp(layout):
            return False
        return not self.problems or self.blobs_ns == _blobs_ns(layout)


def take_snapshot(layout: Layout, blobs: BlobStore, before: Snapshot) -> Snapshot:
    """Read the index, and of the models only those that are not in ``before``. Takes no lock: when a file is
    gone because the index has changed meanwhile, it reads again.

    Raises:
        StoreDamaged: the index itself is unreadable.
    """
    for _ in range(_ATTEMPTS):
        stamp, blobs_ns = index_stamp(layout), _blobs_ns(layout)
        entries = read_index(layout).entries
        many = len(entries) - len(before.models) >= _SCAN_FROM
        reader = _Reader(layout, blobs, before, many=many)
        for entry in entries:
            reader.add(entry)
        reader.keep()
        if index_stamp(layout) == stamp:
            break
    models = tuple(sorted(reader.models.values(), key=lambda model: model.name))
    by_name = dict(reader.models)
    for name, model in reader.models.items():
        repository, _, tag = name.rpartition(":")
        if tag == "latest":
            by_name[repository] = model
    return Snapshot(stamp, models, by_name, reader.gists, tuple(reader.problems), blobs_ns)


def _blobs_ns(layout: Layout) -> int:
    """Changes whenever a blob comes or goes."""
    try:
        return layout.blobs.stat().st_mtime_ns
    except OSError:
        return 0


def _sizes_bytes(layout: Layout) -> dict[str, int]:
    """The size of every plain file in the folder of blobs, by name."""
    found: dict[str, int] = {}
    try:
        folder = os.open(layout.blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return found
    try:
        with os.scandir(folder) as entries:  # by its descriptor: the kernel walks no path for each file
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # freed a moment ago
                    if entry.is_file(follow_symlinks=False):
                        found[entry.name] = entry.stat(follow_symlinks=False).st_size
    finally:
        os.close(folder)
    return found


class _Reader:
    """Turns entries into models, and what is wrong with them into problems."""

    def __init__(self, layout: Layout, blobs: BlobStore, before: Snapshot, *, many: bool) -> None:
        self._layout, self._blobs, self._before = layout, blobs, before
        self._sizes_bytes = _sizes_bytes(layout) if many else None
        self._kept = KeptGists(layout) if many else None
        self.models: dict[str, StoredModel] = {}
        self.gists: dict[Digest, Gist] = {}
        self.problems: list[Problem] = []

    def add(self, entry: Entry) -> None:
        name = str(entry.ref) if entry.ref else ""
        if entry.digest is None:
            self._report(name, "index.json of the store has an entry without a valid digest")
        elif entry.ref is None:
            return  # unnamed, or named by another tool: its content is kept and not shown
        elif name in self.models:
            self._report("", f"index.json of the store names {name} more than once; the first counts")
        else:
            self._add(name, entry.digest, entry.created_unix_s, entry.pulled_from)

    def _add(self, name: str, digest: Digest, created_unix_s: float, pulled_from: str) -> None:
        same = self._before.by_name.get(name)
        now = (digest, created_unix_s, pulled_from)
        if same is not None and (same.digest, same.created_unix_s, same.pulled_from) == now:
            self.models[name], self.gists[digest] = same, self._before.gists[digest]
            return
        try:
            gist = self.gists.get(digest) or self._before.gists.get(digest) or self._gist(digest)
        except FileNotFoundError:
            self._report(name, f"the manifest of {name} ({digest.short}) is missing from the store")
            return
        except HomelabError as error:
            self._report(name, f"{name}: {error.message}")
            return
        self.gists[digest] = gist
        for file, hex_, size_bytes in gist.files:
            if self._size_bytes(hex_) != size_bytes:
                self._report(name, f"{file} of {name} ({hex_[:12]}) is missing or of the wrong size")
                return
        self.models[name] = StoredModel(
            name=name,
            digest=digest,
            facts=with_template(gist.facts, gist.defaults.template or _from_catalogue(gist.facts)),
            files=BlobFiles(self._layout, gist),
            size_bytes=gist.size_bytes,
            created_unix_s=created_unix_s,
            source=gist.source,
            pulled_from=pulled_from,
            defaults=gist.defaults,
            provenance=gist.provenance,
        )

    def keep(self) -> None:
        """Let the next process read less."""
        if self._kept is not None:
            self._kept.keep({digest.hex for digest in self.gists})

    def _size_bytes(self, hex_: str) -> int | None:
        return self._blobs.size_bytes(Digest(hex_)) if self._sizes_bytes is None else self._sizes_bytes.get(hex_)

    def _gist(self, digest: Digest) -> Gist:
        found = self._kept.get(digest) if self._kept is not None else None
        if found is None:
            path = self._layout.blob(digest)
            found = Gist.of(parse_manifest(read_small(path, MAX_DOCUMENT_BYTES), digest, path))
            if self._kept is not None:
                self._kept.put(digest, found)
        return found

    def _report(self, name: str, message: str) -> None:
        hint = f"mlxctl repair {name}" if name else "correct index.json or restore it"
        self.problems.append(Problem(name, message, hint))


def _from_catalogue(facts: ModelFacts) -> str:
    """The template for a model whose files have none and that is recognised; else empty."""
    if facts.chat_template or not facts.chat_tokens:
        return ""
    from homelab_llm.store.templates.catalogue import choose

    entry = choose(facts)
    return entry.text if entry else ""
