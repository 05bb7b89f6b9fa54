"""The writer of one blob: bytes are hashed in order while they are written, and continued after a kill."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from homelab_llm.core.boot import boot_id
from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import DigestMismatch, TransferError
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.clone import clone_into
from homelab_llm.store.layout import Layout, disk_full, disk_full_is_typed, free_bytes
from homelab_llm.store.part_file import CHECKPOINT_BYTES, PartFile
from homelab_llm.store.partials import Partial, PartialRecord

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP}
_AT_ONCE_BYTES = 4 << 20  # each piece costs a turn of the interpreter's lock
_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class FurtherHash(Protocol):
    """Another promise that the bytes have to keep, beside their SHA-256."""

    def restart(self) -> None: ...

    def update(self, chunk: memoryview) -> None: ...

    def check(self) -> None:
        """See that all bytes together are those promised.

        Raises:
            DigestMismatch: they are not.
        """
        ...


class BlobWriter:
    """Writes one blob; a context manager, made by ``BlobStore.open_writer``.

    Leaving it without ``commit`` keeps the bytes for the next writer of the key if they can be proved to
    belong to it (a digest or validator was given), and forgets them otherwise.

    Who has the bytes in order calls ``write`` from one thread; ``offset`` is where the next ones go. Who has them from
    several places lets threads write to ``part``, and one of them calls ``follow``.

    Args:
        publish: gives the finished part its place.
        held: the lock of the key, closed by this writer.
    """

    def __init__(
        self,
        layout: Layout,
        publish: Callable[[Path, Digest], None],
        partial: Partial,
        held: int,
        *,
        expected: Digest | None,
        size_bytes: int | None,
        validator: str,
        further: FurtherHash | None = None,
    ) -> None:
        self._layout, self._publish, self._partial, self._held = layout, publish, partial, held
        self._expected, self._size_bytes, self._further = expected, size_bytes, further
        self._record = PartialRecord(str(expected or ""), validator, boot_id())
        self._hash = hashlib.sha256()
        self._hashed_bytes = 0
        self._hashing = threading.RLock()
        self._buffer = bytearray()
        self._part: PartFile | None = None
        self._closed = False
        self._digest: Digest | None = None
        self.offset = 0

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether the blob is already there. Then ``offset`` is its size, ``write`` and ``restart`` do nothing
        and ``commit`` answers at once.
        """
        return self._digest is not None

    @property
    def part(self) -> PartFile:
        """The bytes, for threads that write at places of their own; another one after ``restart``."""
        assert self._part is not None, "opened, and not complete"  # noqa: S101
        return self._part

    @property
    def hashed_bytes(self) -> int:
        """How far the hash is."""
        return self._hashed_bytes

    def find(self, digest: Digest, size_bytes: int) -> None:
        """The blob turned out to be there, and is held."""
        self._digest, self.offset = digest, size_bytes
        self._partial.discard()
        self.close()

    def open(self) -> None:
        """Take up kept bytes, or begin; called once, by who made the writer.

        Raises:
            DiskFull: what is missing does not fit.
        """
        with disk_full_is_typed(self._layout.root, self._missing_bytes()):
            kept = self._partial.record()
            if kept.digest or not self._record.continues(kept) or not self._continue(kept):
                self.restart()
        if self._missing_bytes() > (free := free_bytes(self._layout.root)):
            raise disk_full(self._missing_bytes(), free)

    def close(self) -> None:
        """End writing; what can be continued later is kept. Harmless when already closed."""
        if self._closed:
            return
        self._closed = True
        keeps = self._digest is None and self._record.resumable and self._part is not None
        if keeps and self.part.there_bytes:
            with contextlib.suppress(OSError):  # then a power cut costs more
                self.part.checkpoint()
        if self._part is not None:
            with self._hashing:
                self._part.close()
        if self._digest is None and not (keeps and self.part.there_bytes):
            self._partial.discard()
        self._partial.let_go(self._held)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``; blocks.

        Raises:
            DigestMismatch: more bytes than ``size_bytes``; all were discarded.
            DiskFull: what was written stays and is continued by the next writer.
        """
        if self.complete:
            return
        view = memoryview(data)
        if self._size_bytes is not None and self.offset + len(view) > self._size_bytes:
            self.restart()
            raise DigestMismatch(
                f"more than the promised {self._size_bytes} bytes arrived; they were discarded",
                hint="run the same command again",
                expected_bytes=self._size_bytes,
            )
        while self.follow():
            pass
        with disk_full_is_typed(self._layout.root, max(self._missing_bytes(), len(view))):
            try:
                self.part.write(self.offset, view)
            finally:
                count = self.part.frontier - self.offset
                self._update(view[:count])
                self.offset += count
            if self._record.resumable and self.part.unsynced_bytes >= CHECKPOINT_BYTES:
                self.part.checkpoint()

    def follow(self, at_least_bytes: int = 1) -> int:
        """Hash the next of the bytes that are there without a gap, if there are so many; how many it were.

        They are hashed where they lie in the memory of the system, to which they have just been written.
        """
        with self._hashing:
            there = 0 if self._closed else self.part.frontier - self._hashed_bytes
            if there < at_least_bytes or there <= 0:
                return 0
            count = min(there, _AT_ONCE_BYTES)
            with self.part.look(self._hashed_bytes, count) as view:
                if view is None:
                    count = self._read_again(count)
                else:
                    self._update(view)
            self.offset = max(self.offset, self._hashed_bytes)
            return count

    def _read_again(self, count: int) -> int:
        self._buffer = self._buffer or bytearray(_AT_ONCE_BYTES)
        view = memoryview(self._buffer)[:count]
        count = self.part.read_into(self._hashed_bytes, view)
        self._update(view[:count])
        return count

    def restart(self, validator: str | None = None) -> None:
        """Throw all bytes away and begin at 0, under a new inode; for a source that cannot continue.

        Never truncates: an adopted part may be a hard link to somebody's file.

        Args:
            validator: that of the bytes which come now, where it is another one than was thought.
        """
        if self.complete:
            return
        with self._hashing:
            if self._part is not None:
                self._part.close()
            self._partial.discard()
            self._begin_hash()
            self.offset = 0
            if validator is not None:
                self._record = replace(self._record, validator=validator)
            self._part = PartFile.create(self._partial, mapped=self._record.resumable)
            if self._record.resumable:
                self._partial.write_record(self._record)
        failpoint("store.partial.recorded")

    def adopt_clone(self, source: int) -> bool:
        """Fill the empty blob with a copy-on-write clone of an open file; False when the file system cannot.

        The bytes still have to be hashed: ``hash_adopted``.
        """
        if not clone_into(source, self.part.handle, self._partial.part, self._partial.beside):
            return False
        self._reopen()
        return True

    def adopt_link(self, source: Path) -> bool:
        """As ``adopt_clone``, by hard link: the blob then shares its bytes with ``source`` for ever."""
        self._partial.beside.unlink(missing_ok=True)
        try:
            os.link(source, self._partial.beside, follow_symlinks=False)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
        self._partial.beside.rename(self._partial.part)
        self._reopen()
        return True

    def hash_adopted(self, progress: Callable[[int], None]) -> None:
        """Read and hash what was adopted, calling ``progress`` with the size of each chunk; blocks."""
        self._begin_hash()
        block = memoryview(bytearray(CHUNK_BYTES))
        while count := self.part.read_into(self._hashed_bytes, block):
            self._update(block[:count])
            progress(count)
        self.offset = self._hashed_bytes

    def commit(self) -> Digest:
        """Check, make durable, publish and close.

        Raises:
            TransferError: fewer bytes than ``size_bytes``; they are kept.
            DigestMismatch: another digest than expected; the bytes were discarded.
            DiskFull: no room; nothing is kept that no checkpoint covered: after a failed fsync nobody knows what was
                written.
        """
        if self._digest is not None:
            return self._digest
        try:
            with disk_full_is_typed(self._layout.root):
                digest = self._checked()
                failpoint("store.blob.before_sync")
                self.part.sync()
                failpoint("store.blob.synced")
                self._publish(self._partial.part, digest)
                self._conclude(digest)
            self._digest = digest
            return digest
        finally:
            self.close()

    def _checked(self) -> Digest:
        while self.follow():
            pass
        if self._size_bytes is not None and self.offset < self._size_bytes:
            raise TransferError(
                f"only {self.offset} of {self._size_bytes} bytes arrived",
                hint="run the same command again; it continues",
                received_bytes=self.offset,
                expected_bytes=self._size_bytes,
            )
        digest = Digest(self._hash.hexdigest())
        try:
            if self._further is not None:
                self._further.check()
            if self._expected is not None and digest != self._expected:
                raise DigestMismatch(
                    "the bytes are not those promised; they were discarded",
                    hint="run the same command again",
                    expected=str(self._expected),
                    actual=str(digest),
                )
        except DigestMismatch:
            self.restart()
            raise
        return digest

    def _conclude(self, digest: Digest) -> None:
        """Leave a record of the digest for who waits with the same validator; else leave nothing."""
        if self._record.validator and not self._expected:
            self._partial.map.unlink(missing_ok=True)
            self._partial.write_record(replace(self._record, digest=str(digest)))
        else:
            self._partial.discard()
        failpoint("store.blob.committed")

    def _continue(self, kept: PartialRecord) -> bool:
        """Take up the kept bytes that can be believed; False: they are of no use."""
        another_boot = not kept.boot or kept.boot != self._record.boot
        self._part = PartFile.take_up(self._partial, durable_only=another_boot, size_bytes=self._size_bytes)
        if self._part is None:
            return False
        if another_boot:
            self._partial.write_record(self._record)
        self.offset = self._part.frontier
        return True

    def _begin_hash(self) -> None:
        self._hash, self._hashed_bytes = hashlib.sha256(), 0
        if self._further is not None:
            self._further.restart()

    def _update(self, view: memoryview) -> None:
        self._hash.update(view)
        if self._further is not None:
            self._further.update(view)
        self._hashed_bytes += len(view)

    def _reopen(self) -> None:
        self.part.reopen(lambda: os.open(self._partial.part, _READ_ONLY))

    def _missing_bytes(self) -> int:
        there = self._part.there_bytes if self._part is not None else 0
        return 0 if self._size_bytes is None else max(0, self._size_bytes - there)
