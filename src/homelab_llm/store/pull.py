"""Pull: from a reference to a model in the store. What was fetched is never fetched again, what is wrong never kept.

resolve → preflight → fetch all files into blobs (``transfer/``), hashed on the way → inspect the headers → add.
Until the last step the model does not exist; killed anywhere, the same pull finishes later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DiskFull
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.names import ModelRef, tag_of
from homelab_llm.core.units import format_bytes
from homelab_llm.store.choice import Wanted
from homelab_llm.store.file_names import is_weight
from homelab_llm.store.inspect.model import inspect_model, refuse_code_in
from homelab_llm.store.layout import free_bytes
from homelab_llm.store.progress import JobProgress, Progress
from homelab_llm.store.settings import PullSettings
from homelab_llm.store.sources.base import PackedModel, RemoteFile, RemoteModel, Source, agreed_facts
from homelab_llm.store.sources.table import open_source
from homelab_llm.store.transfer.download import Download, key_of
from homelab_llm.store.transfer.turn import turn
from homelab_llm.store.unpacking import select_packed, unpack

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

__all__ = ["FAILPOINTS", "JobProgress", "PullSettings", "fetch_files", "pull", "pull_from"]

FAILPOINTS = (
    "pull.resolved",
    "pull.file.opened",
    "pull.chunk",
    "pull.file.fetched",
    "pull.file.committed",
    "pull.inspected",
    "pull.added",
)
"""Every failpoint of a pull; those of the store (``layout.FAILPOINTS``) are passed as well."""


def pull(
    store: ModelStore,
    reference: str,
    *,
    name: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    settings: PullSettings | None = None,
    progress: Callable[[JobProgress], None] | None = None,
) -> StoredModel:
    """Bring the model of ``reference`` into the store; blocks. A second pull of the same at the same time joins.

    Args:
        reference: one of the forms of ``references.py``: ``smollm2:135m`` (catalogue), ``hf:org/name``, …
        name: under which name to keep it; None chooses one that suits the reference.
        include, exclude: patterns that narrow which files of a repository are taken.
        progress: called often, from this thread; KeyboardInterrupt from it (or anywhere) keeps what was fetched.

    Raises:
        InvalidInput, ModelNotFound: the reference; the hint shows the way.
        SourceNotFound, SourceDenied, SourceUnavailable: the source; run it again to continue.
        DigestMismatch, BadModelFile, UnsafeModel: what came is not what was promised, or no model to keep.
        DiskFull: too little room; nothing was fetched, or what was is kept.
    """
    settings = settings or PullSettings()
    wanted = ModelRef.parse(name) if name else None
    opening = open_source(reference, settings, Wanted(include=tuple(include), exclude=tuple(exclude)))
    entry = opening.entry
    if wanted is None and entry:
        wanted = ModelRef.parse(entry.name)
    try:
        return pull_from(
            opening.source,
            store,
            opening.reference,
            ref=wanted,
            settings=settings,
            progress=progress,
            licence=entry.licence if entry else "",
        )
    finally:
        opening.source.close()


def pull_from(
    source: Source,
    store: ModelStore,
    reference: str,
    *,
    ref: ModelRef | None,
    settings: PullSettings,
    progress: Callable[[JobProgress], None] | None = None,
    licence: str = "",
) -> StoredModel:
    """As ``pull``, from a source that is already chosen.

    Args:
        ref: None takes the name the source suggests.
        licence: what to record when neither the files nor the source say.
    """
    report = Progress(progress or (lambda _: None))
    report.stage("resolving")
    remote = source.resolve(reference)
    remote = replace(remote, licence=remote.licence or licence)
    for note in remote.notes:
        report.note(note)
    failpoint("pull.resolved")
    return _Pull(store, source, remote, settings, report).run(ref)


def fetch_files(
    store: ModelStore,
    source: Source,
    remote: RemoteModel,
    files: Sequence[RemoteFile],
    *,
    settings: PullSettings,
    report: Progress,
) -> dict[str, Digest]:
    """Fetch some files of a resolved model into blobs, in place of any that are known to be damaged; for ``repair``.

    The blobs stay held until a model has them or they are released. Raises as ``pull``.
    """
    pulling = _Pull(store, source, remote, settings, report)
    report.total([file.size_bytes for file in files])
    digests: dict[str, Digest] = {}
    try:
        pulling.fetch(files, digests)
    except BaseException:
        store.blobs.release(digests.values())
        raise
    return digests


def fetch_packed(
    store: ModelStore, source: Source, remote: RemoteModel, *, settings: PullSettings, report: Progress
) -> tuple[RemoteModel, set[Digest]]:
    """Unpack the files of a packed model again, in place of damaged ones; for ``repair``. Raises as ``pull``.

    Returns:
        The model with the files that are layers of their own, and the blobs that were written.
    """
    assert remote.packed is not None  # noqa: S101 — the caller has looked
    pulling, digests, archives = _Pull(store, source, remote, settings, report), dict[str, Digest](), list[Digest]()
    try:
        pulling.fetch_packed(remote.packed, digests, archives)
    finally:
        store.blobs.release(digests.values())
        store.free(archives)
    return pulling.remote, set(digests.values())


@dataclass(slots=True)
class _Pull:
    """One pull whose source has been resolved."""

    store: ModelStore
    source: Source
    remote: RemoteModel
    settings: PullSettings
    report: Progress

    def run(self, ref: ModelRef | None) -> StoredModel:
        """Fetch all files, look at them, add the model. Blobs of a model that is refused are let go."""
        digests: dict[str, Digest] = {}
        archives: list[Digest] = []
        try:
            with turn(self.store, self.remote, self.report):
                if self.remote.packed and not self._hold_known(digests):
                    self.fetch_packed(self.remote.packed, digests, archives)
                there = [path.stat().st_size for path in self._paths(digests).values()]
                self.report.total([*there, *(file.size_bytes for file in self.remote.files)])
                self._preflight(self.remote.files)
                files = sorted(self.remote.files, key=lambda file: file.path)
                self.fetch([file for file in files if not is_weight(file.path)], digests)
                refuse_code_in(self._paths(digests))  # before gigabytes are fetched for nothing
                self.fetch([file for file in files if is_weight(file.path)], digests)
            self.report.stage("inspecting")
            facts = inspect_model(self._paths(digests))
            facts = agreed_facts(facts, self.remote)
            failpoint("pull.inspected")
            tag = self.remote.tag or tag_of(facts.quantization)
            chosen = ref or ModelRef.parse(f"{self.remote.repository}:{tag}")
            self.report.stage("storing")
            model = self.store.add(
                chosen,
                digests,
                facts,
                source=self.remote.source if self.remote.origin is None else self.remote.origin,
                pulled_from=self.remote.source,
                defaults=self.remote.defaults,
                provenance=self.remote.provenance,
            )
        except BaseException:
            self.store.blobs.release([*digests.values(), *archives])
            raise
        self.store.free(archives)
        failpoint("pull.added")
        self.report.stage("done")
        return model

    def fetch_packed(self, packed: PackedModel, digests: dict[str, Digest], archives: list[Digest]) -> None:
        """Fetch the archives, choose, and make their files blobs; the other files are left to be fetched."""
        layers = [archive.layer for archive in packed.outline.archives]
        files = [RemoteFile(f"layer-{n}.tar", str(a.digest), a.size_bytes, a.digest) for n, a in enumerate(layers, 1)]
        self.report.total([file.size_bytes for file in files])
        self._preflight(files)
        fetched: dict[str, Digest] = {}
        try:
            self.fetch(files, fetched)
        finally:
            archives.extend(fetched.values())
        self.report.stage("inspecting")
        selection = select_packed(self.store.blobs, packed, self.report)
        plain = tuple(RemoteFile(p, str(d.digest), d.size_bytes, d.digest) for p, d in selection.layers.items())
        self.remote = replace(self.remote, files=plain)
        self._preflight([RemoteFile(path, "", size) for path, size in selection.sizes_bytes.items()])
        self.report.total(list(selection.sizes_bytes.values()))
        unpack(self.store.blobs, selection.members, digests.__setitem__, self.report)

    def _hold_known(self, digests: dict[str, Digest]) -> bool:
        """Take the files of a model that came from the same pinned place; False when there is none, or one is gone."""
        known = next((model for model in self.store.models() if model.source == self.remote.source), None)
        if known is None:
            return False
        for path, file in known.files.items():
            digest = Digest(file.name)
            if not self.store.blobs.hold(digest):
                return False
            digests[path] = digest
        return True

    def _paths(self, digests: Mapping[str, Digest]) -> dict[str, Path]:
        return {path: self.store.blobs.path(digest) for path, digest in digests.items()}

    def fetch(self, files: Sequence[RemoteFile], digests: dict[str, Digest]) -> None:
        """Fetch files into blobs, which then are held; also those of ``digests`` after an error."""
        done = sum(path.stat().st_size for path in self._paths(digests).values())
        download = Download(self.store, self.source, self.remote.source, self.settings, self.report, done)
        try:
            if files:
                download.fetch(files)
        finally:
            digests.update(download.digests)

    def _preflight(self, files: Sequence[RemoteFile]) -> None:
        """See that all that is missing fits and leaves the free floor; better now than at 99 %."""
        missing = {
            key_of(file, self.remote.source): file.size_bytes or 0
            for file in files
            if file.digest is None or not self.store.blobs.has(file.digest)
        }
        needed = sum(max(0, size - self.store.blobs.kept_bytes(key)) for key, size in missing.items())
        free = free_bytes(self.store.root)
        if needed > free - self.settings.free_floor_bytes and needed:
            raise DiskFull(
                f"{format_bytes(needed)} are needed and {format_bytes(free)} are free, of which "
                f"{format_bytes(self.settings.free_floor_bytes)} shall stay free",
                hint="remove a model (mlxctl rm NAME) or lower store.free_floor_bytes",
                needed_bytes=needed,
                free_bytes=free,
            )
