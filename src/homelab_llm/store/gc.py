"""Freeing: which blobs nothing refers to, and removing them. All of it with the store's lock held.

What is kept: every blob that a document named by the index leads to; every blob that a living process has
written and not yet added (``pins.py``); unfinished transfers that can be continued and are young. Whatever
cannot be read might lead to anything, so then no blob is freed at all and the report says why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.atomic import sync_folder
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidDigest, StoreDamaged
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.index import Index
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, read_small, remove_folder
from homelab_llm.store.manifests import references
from homelab_llm.store.oci.upload_records import sweep_uploads
from homelab_llm.store.partials import Partial, finished_digest, partial_key
from homelab_llm.store.pins import pinned
from homelab_llm.store.views import drop_view


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was freed. ``bytes_freed`` counts what the disk gets back: not content that others link to."""

    blobs: int = 0
    partials: int = 0
    bytes_freed: int = 0
    problems: tuple[str, ...] = ()

    def __add__(self, other: PruneReport) -> PruneReport:
        return PruneReport(
            self.blobs + other.blobs,
            self.partials + other.partials,
            self.bytes_freed + other.bytes_freed,
            self.problems + other.problems,
        )


@dataclass(frozen=True, slots=True)
class Marks:
    """The result of following the index: what is needed, and what could not be followed."""

    needed: frozenset[str]
    problems: tuple[str, ...]


def mark(layout: Layout, index: Index) -> Marks:
    """Follow every entry of the index to the end."""
    needed: set[str] = set()
    problems: list[str] = []
    waiting: list[Digest] = []
    for entry in index.entries:
        if entry.digest is None:
            problems.append("index.json of the store has an entry without a valid digest")
        else:
            waiting.append(entry.digest)
    while waiting:
        digest = waiting.pop()
        if digest.hex in needed:
            continue
        needed.add(digest.hex)
        path = layout.blob(digest)
        try:
            found = references(read_small(path, MAX_DOCUMENT_BYTES), digest, path)
        except FileNotFoundError:
            problems.append(f"blobs/sha256/{path.name} of the store is missing")
        except StoreDamaged as error:
            problems.append(error.message)
        else:
            needed.update(blob.hex for blob in found.blobs)
            waiting += found.documents
    return Marks(frozenset(needed), tuple(problems))


def free_blobs(layout: Layout, index: Index, candidates: Iterable[Digest], now_unix_s: float) -> PruneReport:
    """Remove those of ``candidates`` that nothing needs, and the views of those that were manifests."""
    marks = mark(layout, index)
    failpoint("store.gc.marked")
    if marks.problems:
        return PruneReport(problems=marks.problems)
    kept = marks.needed | pinned(layout, now_unix_s)
    freed = PruneReport()
    for digest in candidates:
        if digest.hex not in kept:
            drop_view(layout.view(digest))
            failpoint("store.gc.blob")
            freed += PruneReport(blobs=1, bytes_freed=_unlink(layout.blob(digest)))
    if freed.blobs:
        sync_folder(layout.blobs)
    return freed


def all_blobs(layout: Layout) -> list[Digest]:
    """Every blob there is; files of other names are not ours and stay."""
    names = sorted(path.name for path in layout.blobs.iterdir())
    return [digest for name in names if (digest := _named(name))]


def free_partials(layout: Layout, keep_s: float, now_unix_s: float) -> PruneReport:
    """Remove unfinished transfers that nobody writes and that are old, cannot be continued, or are done with."""
    freed = PruneReport()
    for key in sorted({key for path in layout.tmp.iterdir() if (key := partial_key(path))}, key=str):
        partial = Partial.at(layout, key)
        held = partial.try_hold()
        if held is None:
            continue
        if not _worth_keeping(layout, partial, keep_s, now_unix_s):
            failpoint("store.prune.partial")
            count = 1 if partial.part.exists() else 0
            freed += PruneReport(partials=count, bytes_freed=_unlink(partial.part))
            partial.discard()
        partial.sweep()
        partial.let_go(held)
    sweep_uploads(layout, keep_s, now_unix_s)
    return freed


def free_leftovers(layout: Layout, index: Index) -> PruneReport:
    """Remove what a killed process left of steps that hold the store's lock; while we hold it, nobody is in one."""
    freed = PruneReport()
    for path in [*layout.tmp.glob("*.put"), *layout.root.glob(".*.tmp")]:
        failpoint("store.prune.leftover")
        freed += PruneReport(bytes_freed=_unlink(path))
    wanted = {entry.digest.hex for entry in index.entries if entry.digest}
    for path in layout.views.iterdir() if layout.views.is_dir() else ():
        if path.name not in wanted:
            failpoint("store.prune.leftover")
            remove_folder(path)
    return freed


def _worth_keeping(layout: Layout, partial: Partial, keep_s: float, now_unix_s: float) -> bool:
    record = partial.record()
    done = finished_digest(record)
    if done is not None:
        return layout.blob(done).exists() and _is_young(partial.record_path, keep_s, now_unix_s)
    if not record.resumable or (record.expected and layout.blob(Digest.parse(record.expected)).exists()):
        return False
    return _is_young(partial.part, keep_s, now_unix_s)


def _is_young(path: Path, keep_s: float, now_unix_s: float) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return found.st_mtime > now_unix_s - keep_s


def _unlink(path: Path) -> int:
    """Remove a file; the bytes that the disk gets back by that."""
    try:
        found = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size if found.st_nlink == 1 else 0


def _named(name: str) -> Digest | None:
    with contextlib.suppress(InvalidDigest):
        return Digest.parse(f"sha256:{name}")
    return None
