"""Repair: fetch only what is damaged of a model, by its digest, from where the model came.

verify → rebuild documents that can be proven → fetch the broken blobs → prove. Damaged bytes stay where they are until
the right ones are there, proven and durable; then one rename replaces them, for every model that shares the blob.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, InvalidInput, ModelDamaged, ModelNotFound
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.census import CONFIG_FILE, MANIFEST_FILE, Census, Damage, Piece, take_census
from homelab_llm.store.gist import Gist, KeptGists
from homelab_llm.store.index import Entry, read_index
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, damaged, disk_full_is_typed, read_small
from homelab_llm.store.manifests import Layer, Manifest, encode_config, encode_manifest, parse_manifest
from homelab_llm.store.progress import JobProgress, Progress
from homelab_llm.store.pull import PullSettings, fetch_files, fetch_packed, pull
from homelab_llm.store.sources.base import RemoteFile, RemoteModel
from homelab_llm.store.sources.table import open_source
from homelab_llm.store.verify import damage_error, verify

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

__all__ = ["FAILPOINTS", "RepairReport", "repair"]

FAILPOINTS = ("repair.assessed", "repair.documents", "repair.resolved", "repair.fetched", "repair.proven")
"""Every failpoint of a repair; those of ``verify``, ``pull`` and the store are passed as well."""

_TRUST_S = 3600.0
"""What was found good so recently is not hashed again by a repair: mostly a ``verify`` has just done that."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was mended. ``files`` of the model are whole again; ``bytes_fetched`` is the size of what was fetched.

    ``also`` are other models that shared a mended blob. ``renewed`` says that the manifest could not be had again, so
    that the name now means a model with another digest, of what its source has today.
    """

    model: str
    digest: Digest
    files: tuple[str, ...] = ()
    bytes_fetched: int = 0
    fetched_from: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    renewed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "digest": str(self.digest),
            "files": list(self.files),
            "bytes_fetched": self.bytes_fetched,
            "fetched_from": list(self.fetched_from),
            "also": list(self.also),
            "renewed": self.renewed,
        }


def repair(
    store: ModelStore,
    name: str,
    *,
    settings: PullSettings | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> RepairReport:
    """Find what is damaged of a model and fetch only that; blocks. A model that is whole is left alone.

    Args:
        progress: called often, from this thread; what it raises ends the repair, and what was fetched is kept.

    Raises:
        ModelNotFound: no such name.
        ModelDamaged: it cannot be repaired, because nothing says where its bytes can be had; the hint says what to do.
        SourceNotFound, SourceDenied, SourceUnavailable, DigestMismatch, DiskFull: as ``pull``; the damaged bytes are
            there as before.
    """
    entry = store.entries(name)[0]
    return _Repair(store, entry, settings or PullSettings(), progress).run()


@dataclass(slots=True)
class _Repair:
    """One repair. ``mended`` are the damages that are no more."""

    store: ModelStore
    entry: Entry
    settings: PullSettings
    progress: Callable[[JobProgress], None] | None
    mended: list[Damage] = field(default_factory=list)
    bytes_fetched: int = 0
    fetched_from: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.entry.ref)

    def run(self) -> RepairReport:
        damages = self._look()
        failpoint("repair.assessed")
        if any(damage.file == MANIFEST_FILE for damage in damages):
            if not self._rebuild_manifest(damages[0]):
                return self._pull_again(damages[0])
            damages = self._look()
        damages = self._rebuild_config(damages)
        failpoint("repair.documents")
        if damages:
            self._fetch(damages)
            left = self._look()
            if left:
                raise damage_error(self.name, left)
        failpoint("repair.proven")
        return self._report()

    def _look(self) -> list[Damage]:
        found = verify(self.store, [self.name], progress=self.progress, trust_s=_TRUST_S)
        return [damage for damage in found.damages if damage.model == self.name]

    def _report(self, *, renewed: bool = False) -> RepairReport:
        entry = self.store.entries(self.name)[0]
        digests = {damage.digest for damage in self.mended}
        others = self._others() if digests else Census()
        also = {piece.model for digest in digests for piece in others.pieces.get(digest, ())} - {"", self.name}
        return RepairReport(
            self.name,
            entry.digest or Digest.of(b""),
            tuple(damage.file for damage in self.mended),
            self.bytes_fetched,
            tuple(dict.fromkeys(self.fetched_from)),
            tuple(sorted(also)),
            renewed,
        )

    def _others(self) -> Census:
        return take_census(self.store.layout, read_index(self.store.layout).entries)

    # --- documents ------------------------------------------------------------------------------------------

    def _rebuild_manifest(self, damage: Damage) -> bool:
        """Write the manifest again from what is kept of it, if that gives its digest; False: that cannot be done."""
        gist = KeptGists(self.store.layout).recall(damage.digest)
        if gist is None:
            return False
        config, manifest = _documents(gist)
        if Digest.of(manifest) != damage.digest:
            return False
        self._put(config, manifest)
        self.mended.append(damage)
        return True

    def _rebuild_config(self, damages: Sequence[Damage]) -> list[Damage]:
        """Write the configuration again, which follows from the manifest; the damages that are left."""
        found = next((damage for damage in damages if damage.file == CONFIG_FILE), None)
        if found is None:
            return list(damages)
        manifest = self._manifest()
        config = encode_config(manifest.layers, manifest.facts)
        if Digest.of(config) != found.digest:
            raise self._hopeless([found], "its configuration was written by another program")
        self._put(config)
        self.mended.append(found)
        return [damage for damage in damages if damage.digest != found.digest]

    def _manifest(self) -> Manifest:
        digest = self.entry.digest
        assert digest is not None  # noqa: S101 — the census has followed it
        path = self.store.layout.blob(digest)
        return parse_manifest(read_small(path, MAX_DOCUMENT_BYTES), digest, path)

    def _put(self, *documents: bytes) -> None:
        layout = self.store.layout
        with layout.locked(), disk_full_is_typed(layout.root):
            for content in documents:
                self.store.blobs.put_locked(content)
                self.store.verification.published_locked(Digest.of(content))

    def _pull_again(self, damage: Damage) -> RepairReport:
        """Nothing is left of the manifest: what its source has today takes the name; blobs that are here stay."""
        if not self.entry.pulled_from:
            raise self._hopeless([damage], "its manifest is lost, and nothing says where it came from")
        model = pull(self.store, self.entry.pulled_from, name=self.name, settings=self.settings, progress=self.progress)
        self.mended.append(damage)
        self.fetched_from.append(self.entry.pulled_from)
        if model.digest != damage.digest:
            return self._report(renewed=True)
        return self._report()

    # --- content --------------------------------------------------------------------------------------------

    def _fetch(self, damages: Sequence[Damage]) -> None:
        """Fetch what is damaged from the first sources that have it.

        Raises:
            HomelabError: of the last source that was tried, or ModelDamaged where there is none to try.
        """
        self._refuse_folders(damages)
        wanted = {damage.digest: damage for damage in damages}
        failure: HomelabError | None = None
        for reference in self._references(wanted):
            try:
                self._fetch_from(reference, wanted)
            except (InvalidInput, ModelNotFound):
                continue  # no reference that can be pulled, such as file:NAME
            except HomelabError as error:
                failure = error
            if not wanted:
                return
        if failure is not None:
            raise failure
        raise self._hopeless(list(wanted.values()), "no source has these bytes any more")

    def _fetch_from(self, reference: str, wanted: dict[Digest, Damage]) -> None:
        """Fetch those of ``wanted`` that the reference leads to, and take them out of it."""
        opening = open_source(reference, self.settings)
        report = Progress(self.progress or (lambda _: None))
        with closing(opening.source):
            report.stage("resolving")
            remote = opening.source.resolve(opening.reference)
            failpoint("repair.resolved")
            if remote.packed:
                remote, written = fetch_packed(
                    self.store, opening.source, remote, settings=self.settings, report=report
                )
                for damage in [damage for digest, damage in wanted.items() if digest in written]:
                    self._mend(damage, remote.source, self._sizes()[damage.digest])
                    del wanted[damage.digest]
            for file, damage in _matching(remote, wanted, self._sizes()):
                files = [file]
                fetched = fetch_files(self.store, opening.source, remote, files, settings=self.settings, report=report)
                self.store.blobs.release(fetched.values())
                failpoint("repair.fetched")
                self._mend(damage, remote.source, file.size_bytes or 0)
                del wanted[damage.digest]

    def _mend(self, damage: Damage, source: str, size_bytes: int) -> None:
        self.bytes_fetched += size_bytes
        self.fetched_from.append(source)
        self.mended.append(damage)

    def _sizes(self) -> Mapping[Digest, int]:
        return {layer.digest: layer.size_bytes for layer in self._manifest().layers}

    def _references(self, wanted: Mapping[Digest, Damage]) -> Iterator[str]:
        """Where the bytes may be had: where this model came from, then where others came from that share them."""
        told: dict[str, None] = {}
        for reference in (self.entry.pulled_from, self._manifest().source):
            if reference and reference not in told:
                told[reference] = None
                yield reference
        pieces: Mapping[Digest, Sequence[Piece]] = self._others().pieces
        sharing = {piece.model for digest in wanted for piece in pieces.get(digest, ())} - {self.name, ""}
        for model in self.store.models():
            if model.name in sharing:
                for reference in (model.pulled_from, model.source):
                    if reference and reference not in told:
                        told[reference] = None
                        yield reference

    def _refuse_folders(self, damages: Sequence[Damage]) -> None:
        """A folder cannot be replaced by a rename, and nobody but its owner knows what is in it."""
        for damage in damages:
            path = self.store.layout.blob(damage.digest)
            if os.path.lexists(path) and stat.S_ISDIR(path.lstat().st_mode):
                raise damaged(path, "is a folder; move it away, then repair again")

    def _hopeless(self, damages: Sequence[Damage], why: str) -> ModelDamaged:
        error = damage_error(self.name, damages)
        reference = self.entry.pulled_from
        hint = f"mlxctl pull {reference} {self.name}" if reference else f"mlxctl import PATH {self.name}"
        return ModelDamaged(f"{error.message}; {why}", hint=hint, **error.facts)


def _documents(gist: Gist) -> tuple[bytes, bytes]:
    layers = tuple(Layer(name, Digest(hex_), size_bytes) for name, hex_, size_bytes in gist.files)
    config = encode_config(layers, gist.facts)
    manifest = encode_manifest(
        layers, config, gist.facts, gist.source, defaults=gist.defaults, provenance=gist.provenance
    )
    return config, manifest


def _matching(
    remote: RemoteModel, wanted: Mapping[Digest, Damage], sizes_bytes: Mapping[Digest, int]
) -> list[tuple[RemoteFile, Damage]]:
    """Which files of the source are the damaged ones: by digest, else by path where the source promises none."""
    by_digest = {file.digest: file for file in remote.files if file.digest is not None}
    by_path = {file.path: file for file in remote.files if file.digest is None}
    chosen = []
    for digest, damage in wanted.items():
        file = by_digest.get(digest) or by_path.get(damage.file)
        size_bytes = sizes_bytes.get(digest)
        if file is not None and file.size_bytes in (None, size_bytes):
            chosen.append((replace(file, digest=digest, size_bytes=size_bytes), damage))
    return chosen
