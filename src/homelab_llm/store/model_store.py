"""The model store: names, models and their blobs on disk. Synchronous, safe across threads and processes.

Reading takes no lock: the index is replaced in one step and everything it leads to is there before it.
Every change holds the store's lock from reading the index to writing it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidInput, InvalidName, ModelDamaged, ModelNotFound
from homelab_llm.core.facts import NO_DEFAULTS, NO_PROVENANCE, ModelDefaults, ModelFacts, Provenance, StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.names import DEFAULT_TAG, ModelRef
from homelab_llm.store.blobs import BlobStore
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.gc import (
    PruneReport,
    Sweep,
    all_blobs,
    free_blobs,
    free_leftovers,
    free_partials,
    free_scratch_folders,
)
from homelab_llm.store.gist import Gist
from homelab_llm.store.index import Entry, Index, Stamp, index_stamp, read_index, write_index
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, disk_full_is_typed
from homelab_llm.store.manifests import Layer, encode_config, encode_manifest
from homelab_llm.store.pins import KEPT_S
from homelab_llm.store.snapshot import Problem, Snapshot, take_snapshot
from homelab_llm.store.verification import Verification
from homelab_llm.store.views import view_folder

_CLOSEST = 3
_ALIKE = 0.5
_MISSES_REMEMBERED = 256  # a client that asks for ever new wrong names costs time, not memory


class ModelStore:
    """The store at ``root``; nothing is created until something is written."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)
        self._blobs = BlobStore(self._layout)
        self._snapshot = Snapshot()
        self._closest: dict[str, list[str]] = {}
        self._reading = threading.Lock()

    @property
    def root(self) -> Path:
        return self._layout.root

    @property
    def layout(self) -> Layout:
        """Where its files lie; for the parts of the store."""
        return self._layout

    @property
    def blobs(self) -> BlobStore:
        return self._blobs

    @property
    def verification(self) -> Verification:
        """Which blobs are known to be good."""
        return self._blobs.verification

    def stamp(self) -> Stamp:
        """Changes whenever ``models()`` would answer something else; one system call."""
        return index_stamp(self._layout)

    def models(self) -> list[StoredModel]:
        """All complete models, by name.

        Raises:
            StoreDamaged: the index is unreadable. A damaged model only shows in ``problems()``.
        """
        return list(self._current().models)

    def problems(self) -> list[Problem]:
        """What is wrong in the store: models that are not listed because something of theirs is damaged."""
        return list(self._current().problems)

    def entries(self, name: str) -> tuple[Entry, ...]:
        """The entries of the index that a name means, also a damaged model's; never none.

        Raises:
            InvalidName, InvalidDigest: outside the grammar. ModelNotFound: with the ``closest`` names.
        """
        return self._entries(read_index(self._layout), ModelRef.parse(name))

    def resolve(self, name: str) -> StoredModel:
        """The model of a name: ``smollm2:135m``, ``smollm2`` (means ``latest``), ``smollm2@sha256:…``, ``sha256:…``.

        A look-up in a dictionary when nothing changed.

        Raises:
            InvalidName, InvalidDigest: outside the grammar.
            ModelNotFound: with the ``closest`` names; never guessed, also where only one tag exists.
            ModelDamaged: it is there, and something of it is missing.
        """
        snapshot = self._current()
        found = snapshot.by_name.get(name)
        if found is not None:
            return found
        digest = _bare_digest(name)
        ref = ModelRef("any", digest=digest) if digest else ModelRef.parse(name)
        if ref.digest is None:
            found = snapshot.by_name.get(str(ref))
        else:
            found = next((model for model in snapshot.models if _is_meant(model, ref, bare=digest is not None)), None)
        if found is not None:
            return found
        _refuse_damaged(snapshot, ref)
        raise self._missing(ref, digest)

    def add(
        self,
        ref: ModelRef,
        files: Mapping[str, Digest],
        facts: ModelFacts,
        *,
        source: str,
        pulled_from: str = "",
        defaults: ModelDefaults = NO_DEFAULTS,
        provenance: Provenance = NO_PROVENANCE,
    ) -> StoredModel:
        """Write configuration, manifest and name of a model whose blobs are all in the store.

        A name that exists is moved to the new model, in one step. The same files, facts, source, defaults and
        provenance give the same manifest, byte for byte: that is how a model which was pushed is the same elsewhere.

        Args:
            files: path inside the model → its blob.
            source: where it came from first, as a reference; part of the model.
            pulled_from: the reference by which it came into this store; kept with the name.

        Raises:
            InvalidName: ``ref`` has a digest, or a file name is outside the grammar.
            InvalidInput: a blob is not in the store.
            DiskFull: nothing changed.
        """
        _check_new(ref)
        check_file_names(files)
        self._layout.ensure()
        with self._layout.locked(), disk_full_is_typed(self.root):
            index = read_index(self._layout)
            layers = tuple(self._layer(name, digest) for name, digest in sorted(files.items()))
            failpoint("store.add.checked")
            config = encode_config(layers, facts)
            manifest = encode_manifest(layers, config, facts, source, defaults=defaults, provenance=provenance)
            if max(len(config), len(manifest)) > MAX_DOCUMENT_BYTES:
                raise InvalidInput("the model's description is larger than 4 MiB", field="facts")
            self._blobs.put_locked(config)
            failpoint("store.add.config")
            digest = self._blobs.put_locked(manifest)
            failpoint("store.add.manifest")
            self._write(index.tagged(ref, digest, len(manifest), time.time(), pulled_from), index)
            self._blobs.release_locked(files.values())
        return self.resolve(str(ref))

    def import_path(
        self,
        path: Path,
        ref: ModelRef,
        *,
        progress: Callable[[int, int], None] | None = None,
        source: str = "",
        copy: bool = True,
        link: bool = False,
        defaults: ModelDefaults = NO_DEFAULTS,
        provenance: Provenance = NO_PROVENANCE,
    ) -> StoredModel:
        """Add a GGUF file (one shard stands for all) or a folder in Hugging Face's format.

        Content is cloned where the file system can, hard-linked only out of a Hugging Face cache, else copied;
        in each case it is hashed. The source is never changed.

        Args:
            progress: called with bytes done and bytes in total, both of the content to be hashed.
            source: where it came from; empty = ``file:NAME``.
            copy: whether bytes may be copied where they can be neither cloned nor linked.
            link: whether the files may be hard-linked: only for files nobody will ever write to again.
            defaults, provenance: as in ``add``.

        Raises:
            Conflict: they would have to be copied and may not.
            NotRegularFile: a FIFO, device or symbolic link (other than a Hugging Face cache's).
            BadModelFile: no model there, shards missing, or files that contradict themselves.
            UnsafeModel: the weights are pickle files, or the model brings code.
            DiskFull: nothing half-written is left to see.
        """
        from homelab_llm.store.imports import import_files

        _check_new(ref)
        report = progress or (lambda _done, _total: None)
        files, facts = import_files(self._blobs, path, report, copy=copy, link=link)
        try:
            name = os.fsencode(path.absolute().name).decode("utf-8", "replace")
            origin = source or f"file:{name}"
            return self.add(ref, files, facts, source=origin, defaults=defaults, provenance=provenance)
        except BaseException:
            self._blobs.release(files.values())
            raise

    def copy(self, source: ModelRef, target: ModelRef) -> StoredModel:
        """Give a model a further name, a tag; no byte is copied. A ``target`` that exists is moved.

        Raises:
            ModelNotFound: no such ``source``.
            InvalidName: ``target`` has a digest.
        """
        _check_new(target)
        self.resolve(str(source))
        with self._layout.locked(), disk_full_is_typed(self.root):
            index = read_index(self._layout)
            entry = self._entries(index, source)[0]
            assert entry.digest is not None  # noqa: S101 — it resolves
            size = self._blobs.size_bytes(entry.digest) or 0
            self._write(index.tagged(target, entry.digest, size, time.time(), entry.pulled_from), index)
        return self.resolve(str(target))

    def remove(self, ref: ModelRef) -> PruneReport:
        """Take a name away, also a damaged model's; what no other name needs is freed at once.

        With a digest, all names which mean it: of that repository, or of any for a bare ``sha256:…``. Whether
        the model is in use is the caller's to know: a running worker keeps its open files.

        Raises:
            ModelNotFound: with the ``closest`` names.
        """
        self._layout.check()
        if not self._layout.marker.exists():
            raise self._missing(ref)
        with self._layout.locked(), disk_full_is_typed(self.root):
            index = read_index(self._layout)
            going = self._entries(index, ref)
            digests = [entry.digest for entry in going if entry.digest]
            known = self._current().gists
            left = index.without(lambda entry: entry in going)
            self._write(left, index)
            failpoint("store.remove.untagged")
            sweep = Sweep()
            free_blobs(self._layout, left, _contents(digests, known), time.time(), sweep)
            return sweep.report()

    def prune(self, *, keep_partials_s: float = KEPT_S, dry: bool = False) -> PruneReport:
        """Free every blob that no manifest needs, stale views, and unfinished downloads older than the limit.

        Safe while others read, write and add: a blob that a living process has written, or holds, is kept
        although no manifest names it yet.

        Args:
            keep_partials_s: how old a download that could be continued may be; 0 frees all that nobody writes.
            dry: take nothing away, and report what would go.

        Raises:
            StoreDamaged: the index is unreadable; nothing was freed. (A damaged manifest: no blob is freed,
                and the report's ``problems`` say which.)
        """
        self._layout.check()
        if not self._layout.blobs.is_dir():
            return PruneReport()
        with self._layout.locked():
            now, sweep = time.time(), Sweep(dry)
            index = read_index(self._layout)
            if self._layout.marker.exists():  # else its first use was killed: there is nothing but litter
                free_blobs(self._layout, index, all_blobs(self._layout), now, sweep)
                free_partials(self._layout, keep_partials_s, now, sweep)
                free_scratch_folders(self._layout, sweep)
            free_leftovers(self._layout, index, sweep)
            return sweep.report()

    def free(self, digests: Iterable[Digest]) -> PruneReport:
        """Let go of blobs that were needed on the way only, and free them where no model has them."""
        digests = list(digests)
        if not digests:
            return PruneReport()
        with self._layout.locked(), disk_full_is_typed(self.root):
            self._blobs.release_locked(digests)
            sweep = Sweep()
            free_blobs(self._layout, read_index(self._layout), digests, time.time(), sweep)
            return sweep.report()

    def view(self, model: StoredModel) -> Path:
        """A folder with the model's real file names, links into the blobs; read-only, gone with the model.

        Raises:
            ModelNotFound: it was removed meanwhile.
        """
        return view_folder(self._layout, model)

    def _current(self) -> Snapshot:
        snapshot = self._snapshot
        if snapshot.is_current(self._layout):
            return snapshot
        with self._reading:
            self._snapshot = snapshot = take_snapshot(self._layout, self._blobs, self._snapshot)
            self._closest = {}
            return snapshot

    def _write(self, index: Index, before: Index) -> None:
        if index is not before:
            write_index(self._layout, index)

    def _layer(self, name: str, digest: Digest) -> Layer:
        size = self._blobs.size_bytes(digest)
        if size is None:
            raise InvalidInput(
                f"the content of {name[:80]} ({digest.short}) is not in the store",
                hint="run the same command again",
                digest=str(digest),
            )
        return Layer(name, digest, size)

    def _entries(self, index: Index, ref: ModelRef) -> tuple[Entry, ...]:
        """What ``ref`` names, never nothing: a name given twice by another tool counts as one."""
        if (bare := _bare_digest(str(ref))) is not None:
            found = index.meaning(bare)
        elif ref.digest is not None:
            found = tuple(e for e in index.meaning(ref.digest) if e.ref and e.ref.repository == ref.repository)
        else:
            found = tuple(entry for entry in index.entries if entry.ref == ref)
        if not found:
            raise self._missing(ref, bare)
        return found

    def _missing(self, ref: ModelRef, bare: Digest | None = None) -> ModelNotFound:
        """The error for a name that is not there; what is closest is worked out once per name and index."""
        shown = str(bare or ref)
        closest = self._closest.get(shown)
        if closest is None:
            closest = closest_names(shown, [model.name for model in self._current().models])
            if len(self._closest) < _MISSES_REMEMBERED:
                self._closest[shown] = closest
        return ModelNotFound(
            f"no model {shown} in the store" + (f"; did you mean {' or '.join(closest)}?" if closest else ""),
            hint="mlxctl list" if bare or ref.digest or closest else f"mlxctl pull {shown}",
            model=shown,
            closest=closest,
        )


def _contents(digests: list[Digest], known: Mapping[Digest, Gist]) -> list[Digest]:
    """The manifests, and the blobs of those that could be read, each once."""
    found = dict.fromkeys(digests)
    for digest in digests:
        if (gist := known.get(digest)) is not None:
            found |= dict.fromkeys(gist.blobs())
    return list(found)


def closest_names(wanted: str, names: list[str]) -> list[str]:
    """The names most like ``wanted``, best first: other tags of the same repository, then similar spellings.

    Likeness is Dice's coefficient over pairs of letters and digits: a few milliseconds for a thousand names.
    """
    repository = wanted.partition(":")[0].partition("@")[0]
    sought = [_pairs(wanted), _pairs(repository)]
    scores: dict[str, float] = {}
    for name in names:
        base = name.partition(":")[0]
        if base == repository:
            scores[name] = 2.0
            continue
        spelled = (_pairs(name), _pairs(base))
        scores[name] = max(2 * len(a & b) / (len(a) + len(b)) for a in sought for b in spelled)
    likely = [name for name, score in scores.items() if score >= _ALIKE]
    return sorted(likely, key=lambda name: (-scores[name], name))[:_CLOSEST]


def _pairs(name: str) -> set[str]:
    text = "^" + "".join(filter(str.isalnum, name.removesuffix(f":{DEFAULT_TAG}").lower())) + "$"
    return {text[i : i + 2] for i in range(len(text) - 1)}


def _is_meant(model: StoredModel, ref: ModelRef, *, bare: bool) -> bool:
    return model.digest == ref.digest and (bare or model.name.rpartition(":")[0] == ref.repository)


def _refuse_damaged(snapshot: Snapshot, ref: ModelRef) -> None:
    """A name that is there and leads to something damaged is not "not found"."""
    found = next((problem for problem in snapshot.problems if problem.name and problem.name == str(ref)), None)
    if found is not None:
        raise ModelDamaged(found.message, hint=found.hint, model=found.name)


def _bare_digest(name: str) -> Digest | None:
    return Digest.parse(name) if name.startswith("sha256:") and len(name) == 71 else None


def _check_new(ref: ModelRef) -> None:
    if ref.digest is not None or ref.repository == "sha256":
        raise InvalidName(
            "a new name is repository:tag, without a digest", hint=f"use {DEFAULT_TAG} or a tag of your own"
        )
