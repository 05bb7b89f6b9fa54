"""Imports: files of this machine become blobs, by clone, by hard link out of a Hugging Face cache, or by copy.

Whichever way the bytes come they are read and hashed, and the facts are taken from the blobs, not from the
source, which may change while it is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import BadModelFile, Conflict
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.blobs import BlobStore, BlobWriter
from homelab_llm.store.candidates import Candidate, choose_files
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.layout import disk_full, free_bytes


@dataclass(slots=True)
class _Meter:
    """Counts hashed bytes towards a total."""

    report: Callable[[int, int], None]
    total_bytes: int
    done_bytes: int = 0

    def add(self, count: int) -> None:
        self.done_bytes += count
        self.report(self.done_bytes, self.total_bytes)


def import_files(
    blobs: BlobStore, path: Path, progress: Callable[[int, int], None], *, copy: bool = True, link: bool = False
) -> tuple[dict[str, Digest], ModelFacts]:
    """Bring the model at ``path`` into the store as blobs, which stay held until they are added or released.

    What can be refused by looking at headers is refused before a byte is copied.

    Raises:
        NotRegularFile, BadModelFile, UnsafeModel, InvalidInput, DiskFull, Conflict: see ``ModelStore.import_path``.
    """
    from homelab_llm.store.inspect.model import inspect_model

    chosen = choose_files(path)
    check_file_names([candidate.name for candidate in chosen])
    inspect_model({candidate.name: candidate.path for candidate in chosen})
    failpoint("store.import.chosen")
    meter = _Meter(progress, sum(candidate.size_bytes for candidate in chosen))
    meter.add(0)
    files: dict[str, Digest] = {}
    try:
        for candidate in chosen:
            files[candidate.name] = _import_file(blobs, candidate, meter, copy=copy, link=link)
            failpoint("store.import.file")
        facts = inspect_model({name: blobs.path(digest) for name, digest in files.items()})
        failpoint("store.import.inspected")
    except BaseException:
        blobs.release(files.values())
        raise
    return files, facts


def import_file(blobs: BlobStore, path: Path, progress: Callable[[int], None]) -> Digest:
    """Bring one plain file into the store as a blob, which stays held until it is added or released.

    Raises:
        NotRegularFile, BadModelFile, DiskFull: see ``ModelStore.import_path``.
    """
    size = path.lstat().st_size
    candidate = Candidate(path.name, path, size, cached=False)
    return _import_file(blobs, candidate, _Meter(lambda done, _total: progress(done), size), copy=True, link=False)


def _import_file(blobs: BlobStore, candidate: Candidate, meter: _Meter, *, copy: bool, link: bool) -> Digest:
    from homelab_llm.store.inspect.regular import open_regular

    with open_regular(candidate.path) as source:
        found = os.fstat(source.fileno())
        with blobs.open_writer(f"import:{found.st_dev}:{found.st_ino}") as writer:
            linkable = link or candidate.cached
            if writer.adopt_clone(source.fileno()) or (linkable and writer.adopt_link(candidate.path)):
                failpoint("store.import.cloned")
                writer.hash_adopted(meter.add)
            elif not copy:
                raise Conflict(
                    f"{candidate.name} can be neither linked nor cloned into the store: another file system",
                    hint="allow copies, or keep the store on the file system of the source",
                    file=candidate.name,
                )
            else:
                _refuse_if_full(blobs, found.st_size)
                _copy(source, writer, meter)
            now = os.fstat(source.fileno())
            if writer.offset != candidate.size_bytes or (now.st_size, now.st_mtime_ns) != (
                found.st_size,
                found.st_mtime_ns,
            ):
                raise BadModelFile(f"{candidate.name} changed while it was read", hint="import it again")
            return writer.commit()


def _refuse_if_full(blobs: BlobStore, needed_bytes: int) -> None:
    free = free_bytes(blobs.path(Digest.of(b"")).parent)
    if free < needed_bytes:
        raise disk_full(needed_bytes, free)


def _copy(source: BinaryIO, writer: BlobWriter, meter: _Meter) -> None:
    while block := source.read(CHUNK_BYTES):
        writer.write(block)
        meter.add(len(block))
