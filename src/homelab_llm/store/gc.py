"""Freeing: which blobs nothing refers to, and removing them. All of it with the store's lock held.

What is kept: every blob that a document named by the index leads to; every blob that a living process has
written and not yet added (``pins.py``); unfinished transfers that can be continued and are young. Whatever
cannot be read might lead to anything, so then no blob is freed at all and the report says why. Files of other
names than ours are nobody's business here and stay.

A rehearsal (``Sweep(dry=True)``) goes the same way and takes nothing away.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from homelab_llm.core.atomic import sync_folder
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidDigest, StoreDamaged
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.index import Index
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES, Layout, read_small, remove_folder
from homelab_llm.store.manifests import references
from homelab_llm.store.partials import Partial, finished_digest, partial_key
from homelab_llm.store.pins import pinned
from homelab_llm.store.scratch import free_scratch
from homelab_llm.store.upload_records import sweep_uploads
from homelab_llm.store.views import BUILDING, GOING, drop_view

_VIEW = re.compile(rf"[0-9a-f]{{64}}({re.escape(BUILDING)}|{re.escape(GOING)})?")


ItemKind = Literal["blob", "partial", "leftover", "view"]


@dataclass(frozen=True, slots=True)
class PruneItem:
    """One thing that was freed; ``name`` is that of the file or folder. ``bytes`` is what the disk gets back."""

    kind: ItemKind
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was freed, or would be. ``bytes_freed`` counts what the disk gets back: not content that others link to."""

    items: tuple[PruneItem, ...] = ()
    problems: tuple[str, ...] = ()
    dry: bool = False

    @property
    def blobs(self) -> int:
        return sum(item.kind == "blob" for item in self.items)

    @property
    def partials(self) -> int:
        return sum(item.kind == "partial" for item in self.items)

    @property
    def bytes_freed(self) -> int:
        return sum(item.bytes for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "dry_run": self.dry,
            "blobs": self.blobs,
            "partials": self.partials,
            "bytes_freed": self.bytes_freed,
            "items": [asdict(item) for item in self.items],
            "problems": list(self.problems),
        }


@dataclass(slots=True)
class Sweep:
    """Takes files away and keeps count; ``dry`` only counts."""

    dry: bool = False
    items: list[PruneItem] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)

    def file(self, kind: ItemKind, path: Path, name: str = "") -> None:
        """Remove a file; the disk gets its bytes back unless others link to it."""
        try:
            found = path.lstat()
            if not self.dry:
                path.unlink()
        except FileNotFoundError:
            return
        self.items.append(PruneItem(kind, name or path.name, found.st_size if found.st_nlink == 1 else 0))

    def folder(self, path: Path) -> None:
        """Remove a view or what is left of one."""
        self.items.append(PruneItem("view", path.name, 0))
        if not self.dry:
            remove_folder(path)

    def view(self, place: Path) -> None:
        """Remove a view that may be in use; so that it is whole or absent at every moment."""
        self.dropped.add(place.name)
        if not self.dry:
            drop_view(place)

    def report(self) -> PruneReport:
        """What it came to."""
        return PruneReport(tuple(self.items), tuple(self.problems), self.dry)


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


def free_blobs(layout: Layout, index: Index, candidates: Iterable[Digest], now_unix_s: float, sweep: Sweep) -> None:
    """Remove those of ``candidates`` that nothing needs, and the views of those that were manifests."""
    marks = mark(layout, index)
    failpoint("store.gc.marked")
    if marks.problems:
        sweep.problems += marks.problems
        return
    kept = marks.needed | pinned(layout, now_unix_s)
    before = len(sweep.items)
    for digest in candidates:
        if digest.hex not in kept:
            sweep.view(layout.view(digest))
            failpoint("store.gc.blob")
            sweep.file("blob", layout.blob(digest))
    if len(sweep.items) > before and not sweep.dry:
        sync_folder(layout.blobs)


def all_blobs(layout: Layout) -> list[Digest]:
    """Every blob there is; files of other names are not ours and stay."""
    with os.scandir(layout.blobs) as entries:
        names = sorted(entry.name for entry in entries)
    return [digest for name in names if (digest := _named(name))]


def free_partials(layout: Layout, keep_s: float, now_unix_s: float, sweep: Sweep) -> None:
    """Remove unfinished transfers that nobody writes and that are old, cannot be continued, or are done with."""
    for key in sorted({key for path in layout.tmp.iterdir() if (key := partial_key(path))}, key=str):
        partial = Partial.at(layout, key)
        held = partial.try_hold()
        if held is None:
            continue
        if not _worth_keeping(layout, partial, keep_s, now_unix_s):
            failpoint("store.prune.partial")
            sweep.file("partial", partial.part)
            if not sweep.dry:
                partial.discard()
        if not sweep.dry:
            partial.sweep()
        partial.let_go(held)
    if not sweep.dry:
        sweep_uploads(layout, keep_s, now_unix_s)  # records of a few hundred bytes


def free_scratch_folders(layout: Layout, sweep: Sweep) -> None:
    """Remove the scratch folders of dead processes."""
    if freed := free_scratch(layout, dry=sweep.dry):
        sweep.items.append(PruneItem("leftover", "scratch", freed))


def free_leftovers(layout: Layout, index: Index, sweep: Sweep) -> None:
    """Remove what a killed process left of steps that hold the store's lock; while we hold it, nobody is in one."""
    for path in [*layout.tmp.glob("*.put"), *layout.root.glob(".*.tmp")]:
        failpoint("store.prune.leftover")
        sweep.file("leftover", path)
    wanted = {entry.digest.hex for entry in index.entries if entry.digest}
    for path in layout.views.iterdir() if layout.views.is_dir() else ():
        if path.name not in wanted | sweep.dropped and _VIEW.fullmatch(path.name):
            failpoint("store.prune.leftover")
            sweep.folder(path)


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


def _named(name: str) -> Digest | None:
    with contextlib.suppress(InvalidDigest):
        return Digest.parse(f"sha256:{name}")
    return None
