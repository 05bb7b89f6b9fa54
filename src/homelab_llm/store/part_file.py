"""The part file: the bytes of an unfinished blob, written at any place by several threads, with the map of them."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator

from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.blocks import ENTRY_BYTES, Blocks
from homelab_llm.store.partials import Partial

CHECKPOINT_BYTES = 64 << 20
"""A power cut costs at most so much of each file (a kill: what was on its way)."""

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14; Python names it from 3.12 on
_NOFOLLOW = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PartFile:
    """An open part; closed by who made it. ``create`` and ``take_up`` make one.

    Args:
        mapped: whether a later process shall be able to go on with it.
    """

    def __init__(self, handle: int, map_handle: int, blocks: Blocks) -> None:
        self._handle, self._map, self._blocks = handle, map_handle, blocks
        self._unsynced_bytes = 0
        self._idle = threading.Condition()
        self._writing, self._closed = 0, False

    @classmethod
    def create(cls, partial: Partial, *, mapped: bool) -> PartFile:
        """An empty one, in place of what there was."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handle = os.open(partial.part, flags, 0o644)
        try:
            return cls(handle, os.open(partial.map, flags, 0o600) if mapped else -1, Blocks())
        except BaseException:
            os.close(handle)
            raise

    @classmethod
    def take_up(cls, partial: Partial, *, durable_only: bool, size_bytes: int | None) -> PartFile | None:
        """What an earlier process left, as far as it can be believed; None where that is not even a plain file."""
        handles: list[int] = []
        try:
            for path in (partial.part, partial.map):
                handles.append(os.open(path, os.O_RDWR | _NOFOLLOW))
                found = os.fstat(handles[-1])
                if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                    raise FileNotFoundError(path)
            handle, map_handle = handles
            there = os.fstat(handle).st_size
            if size_bytes is not None and there > size_bytes:
                raise FileNotFoundError(partial.part)
            content = os.pread(map_handle, (there // (1 << 20) + 1) * ENTRY_BYTES, 0)
            blocks = Blocks.parse(content, size_bytes=there, durable_only=durable_only)
            os.pwrite(map_handle, blocks.encode(), 0)
            os.ftruncate(map_handle, len(blocks.encode()))
        except OSError:
            for handle in handles:
                os.close(handle)
            return None
        return cls(handle, map_handle, blocks)

    @property
    def there_bytes(self) -> int:
        """All bytes that are there."""
        return self._blocks.there_bytes

    @property
    def frontier(self) -> int:
        """The bytes that are there from the start without a gap."""
        with self._idle:
            return self._blocks.frontier

    @property
    def unsynced_bytes(self) -> int:
        """What was written since the last checkpoint."""
        return self._unsynced_bytes

    def gaps(self, size_bytes: int) -> list[tuple[int, int]]:
        """See ``Blocks.gaps``."""
        with self._idle:
            return self._blocks.gaps(size_bytes)

    def write(self, offset: int, data: memoryview) -> bool:
        """Write all of ``data`` at ``offset``; blocks. False when the part was closed meanwhile: nothing is written.

        Raises:
            OSError: as the system says; what was written before stays.
        """
        with self._idle:
            if self._closed:
                return False
            self._writing += 1
        try:
            while data:
                failpoint("store.blob.chunk")
                count = os.pwrite(self._handle, data, offset)
                failpoint("store.blob.written")
                self._note(offset, count)
                offset, data = offset + count, data[count:]
            return True
        finally:
            with self._idle:
                self._writing -= 1
                self._idle.notify_all()

    def _note(self, offset: int, count: int) -> None:
        with self._idle:
            changed = self._blocks.add(offset, count)
            self._unsynced_bytes += count
            if self._map >= 0:
                os.pwrite(self._map, self._blocks.encode(changed), changed.start * ENTRY_BYTES)

    @contextlib.contextmanager
    def look(self, offset: int, count: int) -> Iterator[memoryview | None]:
        """The bytes that are there, where they lie in the memory of the system; None where that cannot be had.

        The pages are made present first, so a disk that fails is None here and not a signal.
        """
        first = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(self._handle, offset + count - first, prot=mmap.PROT_READ, offset=first)
        except (OSError, ValueError):
            yield None
            return
        with mapped:
            try:
                mapped.madvise(_POPULATE_READ)
            except (OSError, ValueError):  # before Linux 5.14, and elsewhere
                yield None
                return
            with memoryview(mapped) as whole, whole[offset - first :] as view:
                yield view

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read what is there; the count. Not after ``close``."""
        return os.preadv(self._handle, [buffer], offset)

    def checkpoint(self) -> None:
        """Make durable what is there, and note that; blocks. Others may write meanwhile.

        Raises:
            OSError: the disk refused; then nothing is believed that no earlier checkpoint covered.
        """
        with self._idle:
            if self._closed:
                return
            self._writing += 1
            seen, self._unsynced_bytes = self._blocks.not_durable(), 0
        try:
            os.fsync(self._handle)
            failpoint("store.blob.checkpoint")
            self._note_durable(seen)
        except OSError:
            self.distrust()
            raise
        finally:
            with self._idle:
                self._writing -= 1
                self._idle.notify_all()

    def _note_durable(self, seen: list[tuple[int, int]]) -> None:
        with self._idle:
            changed = self._blocks.now_durable(seen)
            if self._map >= 0 and changed:
                span = range(min(changed), max(changed) + 1)
                os.pwrite(self._map, self._blocks.encode(span), span.start * ENTRY_BYTES)
        if self._map >= 0 and changed:
            os.fsync(self._map)

    def sync(self) -> None:
        """Make the bytes durable before they are published; raises as ``checkpoint`` does."""
        try:
            os.fsync(self._handle)
        except OSError:
            self.distrust()
            raise

    def distrust(self) -> None:
        """After a failed fsync nobody knows what was written: forget what no earlier one covered."""
        with self._idle:
            self._blocks = Blocks.parse(self._blocks.encode(), size_bytes=1 << 62, durable_only=True)
            if self._map >= 0:
                os.pwrite(self._map, self._blocks.encode(), 0)

    def reopen(self, opener: Callable[[], int]) -> None:
        """Go on with another file in its place, which is only read."""
        os.close(self._handle)
        self._handle = opener()

    @property
    def handle(self) -> int:
        """The open file, to clone something into it."""
        return self._handle

    def close(self) -> None:
        """Wait for the writes that are on their way, then close. Harmless when already closed."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._writing == 0)
            os.close(self._handle)
            if self._map >= 0:
                os.close(self._map)
