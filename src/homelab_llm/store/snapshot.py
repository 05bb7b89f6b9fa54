"""A snapshot: the models that one version of the index names, read once and then only looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import StoredModel
from homelab_llm.store.blobs import BlobStore
from homelab_llm.store.index import Entry, Stamp, index_stamp, read_index
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, read_small
from homelab_llm.store.manifests import Manifest, parse_manifest

_ATTEMPTS = 5


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
    manifests: Mapping[Digest, Manifest] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def take_snapshot(layout: Layout, blobs: BlobStore, before: Snapshot) -> Snapshot:
    """Read the index, and of the models only those that are not in ``before``. Takes no lock: when a file is
    gone because the index has changed meanwhile, it reads again.

    Raises:
        StoreDamaged: the index itself is unreadable.
    """
    for _ in range(_ATTEMPTS):
        stamp = index_stamp(layout)
        reader = _Reader(layout, blobs, before)
        for entry in read_index(layout).entries:
            reader.add(entry)
        if index_stamp(layout) == stamp:
            break
    models = tuple(sorted(reader.models.values(), key=lambda model: model.name))
    by_name = dict(reader.models)
    for name, model in reader.models.items():
        repository, _, tag = name.rpartition(":")
        if tag == "latest":
            by_name[repository] = model
    return Snapshot(stamp, models, by_name, reader.manifests, tuple(reader.problems))


class _Reader:
    """Turns entries into models, and what is wrong with them into problems."""

    def __init__(self, layout: Layout, blobs: BlobStore, before: Snapshot) -> None:
        self._layout, self._blobs, self._before = layout, blobs, before
        self.models: dict[str, StoredModel] = {}
        self.manifests: dict[Digest, Manifest] = {}
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
            self.models[name], self.manifests[digest] = same, self._before.manifests[digest]
            return
        try:
            manifest = self.manifests.get(digest) or self._before.manifests.get(digest) or self._read(digest)
        except FileNotFoundError:
            self._report(name, f"the manifest of {name} ({digest.short}) is missing from the store")
            return
        except HomelabError as error:
            self._report(name, f"{name}: {error.message}")
            return
        self.manifests[digest] = manifest
        for layer in manifest.layers:
            if self._blobs.size_bytes(layer.digest) != layer.size_bytes:
                self._report(name, f"{layer.name} of {name} ({layer.digest.short}) is missing or of the wrong size")
                return
        self.models[name] = StoredModel(
            name=name,
            digest=digest,
            facts=manifest.facts,
            files={layer.name: self._blobs.path(layer.digest) for layer in manifest.layers},
            size_bytes=manifest.size_bytes,
            created_unix_s=created_unix_s,
            source=manifest.source,
            pulled_from=pulled_from,
            defaults=manifest.defaults,
            provenance=manifest.provenance,
        )

    def _read(self, digest: Digest) -> Manifest:
        path = self._layout.blob(digest)
        return parse_manifest(read_small(path, MAX_DOCUMENT_BYTES), digest, path)

    def _report(self, name: str, message: str) -> None:
        hint = f"pull or import it again, or mlxctl rm {name}" if name else "correct index.json or restore it"
        self.problems.append(Problem(name, message, hint))
