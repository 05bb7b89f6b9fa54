"""The writer of one blob: bytes are hashed while they are written, and continued after a kill."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from homelab_llm.core.digests import CHUNK_BYTES, Digest
from homelab_llm.core.errors import DigestMismatch, TransferError
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.clone import clone_into
from homelab_llm.store.layout import Layout, disk_full, disk_full_is_typed, free_bytes
from homelab_llm.store.partials import Partial, PartialRecord

CHECKPOINT_BYTES = 16 << 20
"""Where no digest is known beforehand, a kill or power cut costs at most so much."""

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP}


class BlobWriter:
    """Writes one blob; a context manager, made by ``BlobStore.open_writer``.

    Leaving it without ``commit`` keeps the bytes for the next writer of the key if they can be proved to
    belong to it (a digest or validator was given), and forgets them otherwise. Not for several threads.

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
    ) -> None:
        self._layout, self._publish, self._partial, self._held = layout, publish, partial, held
        self._expected, self._size_bytes = expected, size_bytes
        self._record = PartialRecord(str(expected or ""), validator)
        self._hash = hashlib.sha256()
        self._handle = -1
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
        if self._digest is None and self._record.resumable and self.offset and not self._expected:
            with contextlib.suppress(OSError):  # then fewer bytes are believed next time, which is safe
                self._checkpoint()
        if self._handle >= 0:
            os.close(self._handle)
        if self._digest is None and not (self._record.resumable and self.offset):
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
        with disk_full_is_typed(self._layout.root, max(self._missing_bytes(), len(view))):
            while view:
                failpoint("store.blob.chunk")
                count = os.write(self._handle, view)
                self._hash.update(view[:count])
                self.offset += count
                view = view[count:]
            if self._record.resumable and not self._expected and self._unsynced_bytes() >= CHECKPOINT_BYTES:
                self._checkpoint()

    def restart(self) -> None:
        """Throw all bytes away and begin at 0, under a new inode; for a source that cannot continue.

        Never truncates: an adopted part may be a hard link to somebody's file.
        """
        if self.complete:
            return
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._partial.discard()
        self._record = replace(self._record, durable_bytes=0)
        self._hash, self.offset = hashlib.sha256(), 0
        self._handle = os.open(self._partial.part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if self._record.resumable:
            self._partial.write_record(self._record)
        failpoint("store.partial.recorded")

    def adopt_clone(self, source: int) -> bool:
        """Fill the empty blob with a copy-on-write clone of an open file; False when the file system cannot.

        The bytes still have to be hashed: ``hash_adopted``.
        """
        if not clone_into(source, self._handle, self._partial.part, self._partial.beside):
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
        self._hash_part(progress)

    def commit(self) -> Digest:
        """Check, make durable, publish and close.

        Raises:
            TransferError: fewer bytes than ``size_bytes``; they are kept.
            DigestMismatch: another digest than expected; the bytes were discarded.
            DiskFull: no room; discarded, because after a failed fsync nobody knows what was written.
        """
        if self._digest is not None:
            return self._digest
        try:
            with disk_full_is_typed(self._layout.root):
                digest = self._checked()
                self._sync()
                self._publish(self._partial.part, digest)
                self._conclude(digest)
            self._digest = digest
            return digest
        finally:
            self.close()

    def _checked(self) -> Digest:
        if self._size_bytes is not None and self.offset < self._size_bytes:
            raise TransferError(
                f"only {self.offset} of {self._size_bytes} bytes arrived",
                hint="run the same command again; it continues",
                received_bytes=self.offset,
                expected_bytes=self._size_bytes,
            )
        digest = Digest(self._hash.hexdigest())
        if self._expected is not None and digest != self._expected:
            self.restart()
            raise DigestMismatch(
                "the bytes are not those promised; they were discarded",
                hint="run the same command again",
                expected=str(self._expected),
                actual=str(digest),
            )
        return digest

    def _sync(self) -> None:
        failpoint("store.blob.before_sync")
        try:
            os.fsync(self._handle)
        except OSError:
            self.restart()
            raise
        failpoint("store.blob.synced")

    def _conclude(self, digest: Digest) -> None:
        """Leave a record of the digest for who waits with the same validator; else leave nothing."""
        if self._record.validator and not self._expected:
            self._partial.write_record(replace(self._record, digest=str(digest)))
        else:
            self._partial.discard()
        failpoint("store.blob.committed")

    def _continue(self, kept: PartialRecord) -> bool:
        """Open the kept bytes, cut what cannot be believed and rebuild the hash; False: they are of no use."""
        try:
            self._handle = os.open(self._partial.part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        found = os.fstat(self._handle)
        believed = found.st_size if self._expected else min(found.st_size, kept.durable_bytes)
        too_long = self._size_bytes is not None and believed > self._size_bytes
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or too_long:
            return False
        self._record = replace(self._record, durable_bytes=min(believed, kept.durable_bytes))
        os.ftruncate(self._handle, believed)
        self._hash_part(lambda _: None)
        return True

    def _hash_part(self, progress: Callable[[int], None]) -> None:
        self._hash, self.offset = hashlib.sha256(), 0
        block = bytearray(CHUNK_BYTES)
        while count := os.readv(self._handle, [block]):
            self._hash.update(memoryview(block)[:count])
            self.offset += count
            progress(count)

    def _reopen(self) -> None:
        os.close(self._handle)
        self._handle = os.open(self._partial.part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _checkpoint(self) -> None:
        os.fsync(self._handle)
        self._record = replace(self._record, durable_bytes=self.offset)
        self._partial.write_record(self._record)

    def _unsynced_bytes(self) -> int:
        return self.offset - self._record.durable_bytes

    def _missing_bytes(self) -> int:
        return 0 if self._size_bytes is None else max(0, self._size_bytes - self.offset)
