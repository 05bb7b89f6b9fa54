"""Hashing: many blobs at once, the largest first, as fast as the processors compute SHA-256.

Threads do: hashing and reading let go of the interpreter. There are more of them than processors, so that some hash
while others wait for the disk. What was not in the page cache before is not left there; what was is hashed where it
lies (Linux), without the copy that costs a tenth of the time. Pages are made present first, by a call that fails where
touching them would end the process (a disk error, a file cut short); then they are read the ordinary way.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import queue
import stat
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.digests import Digest
from homelab_llm.store.verification import FileState

_BUFFER_BYTES = 1 << 20
_WINDOW_BYTES = 4 << 20
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14; Python names it from 3.12 on
_DROP_BYTES = 64 << 20
_MOST_THREADS = 16
_POLL_S = 0.1
_ATTEMPTS = 3
_NICE = 10


@dataclass(frozen=True, slots=True)
class Hashed:
    """What one file turned out to be.

    ``trouble`` is empty when it was read to its end; then ``digest`` is that of the content. ``state`` is how the file
    lay there all the while, None when it could not even be looked at.
    """

    wanted: Digest
    digest: Digest | None
    state: FileState | None
    trouble: str = ""

    @property
    def good(self) -> bool:
        return self.digest == self.wanted


def hash_blobs(
    wanted: Sequence[tuple[Digest, Path]],
    *,
    told: Callable[[int], None],
    threads: int = 0,
    drop: bool = False,
    gently: bool = False,
) -> Generator[Hashed, None, None]:
    """Hash files; yields in the order they are done. Leaving the iterator early ends the threads within a chunk.

    Args:
        told: called from this thread about ten times a second with the bytes hashed since; may raise to end it.
        threads: 0 chooses by the processors.
        drop: leave the page cache as it was: let go of what was not in it, hash what was where it lies.
        gently: leave the processors to others where they want them.
    """
    ordered = sorted(wanted, key=lambda item: -_size(item[1]))
    work = _Work(ordered, drop, gently)
    count = min(len(ordered), threads or min(_MOST_THREADS, 2 * (os.cpu_count() or 1)))
    crew = [threading.Thread(target=work.run, name=f"hash {i}", daemon=True) for i in range(count)]
    for thread in crew:
        thread.start()
    try:
        left, reported = len(ordered), 0
        while left:
            done: Hashed | None = None
            with contextlib.suppress(queue.Empty):
                done = work.results.get(timeout=_POLL_S)
            now = work.done_bytes
            told(now - reported)
            reported = now
            if done is not None:
                left -= 1
                yield done
    finally:
        work.stopping.set()
        for thread in crew:
            thread.join()


class _Work:
    """What the threads share."""

    def __init__(self, files: Sequence[tuple[Digest, Path]], drop: bool, gently: bool) -> None:
        self.results: queue.SimpleQueue[Hashed] = queue.SimpleQueue()
        self.stopping = threading.Event()
        self._files = list(reversed(files))
        self._drop, self._gently = drop, gently
        self._bytes: dict[int, int] = {}

    @property
    def done_bytes(self) -> int:
        """All bytes hashed so far, by all threads."""
        return sum(self._bytes.copy().values())

    def run(self) -> None:
        if self._gently and sys.platform == "linux":  # elsewhere niceness belongs to the whole process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while not self.stopping.is_set():
            try:
                wanted, path = self._files.pop()
            except IndexError:
                return
            found = Hashed(wanted, None, None, "it changed while it was read")
            for _ in range(_ATTEMPTS):
                found = self._hash(wanted, path, buffer)
                if not found.trouble or found.state is not None:
                    break
            if not self.stopping.is_set():
                self.results.put(found)

    def _hash(self, wanted: Digest, path: Path, buffer: memoryview) -> Hashed:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            return Hashed(wanted, None, None, _trouble(error))
        state: FileState | None = None
        try:
            found = os.fstat(handle)
            state = FileState.of(found)
            if not stat.S_ISREG(found.st_mode):
                return Hashed(wanted, None, state, "it is not a plain file")
            digest = self._read(handle, buffer, found.st_size)
            # Repaired, or touched, meanwhile: what was read is not what lies there.
            if FileState.of(os.fstat(handle)) != state or FileState.of(os.lstat(path)) != state:
                return Hashed(wanted, None, None, "it changed while it was read")
            return Hashed(wanted, digest, state)
        except OSError as error:
            return Hashed(wanted, None, state, _trouble(error))
        finally:
            os.close(handle)

    def _read(self, handle: int, buffer: memoryview, size: int) -> Digest:
        hashed, offset, me = hashlib.sha256(), 0, threading.get_ident()
        cached = _cached(handle, size)
        dropping = self._drop and not cached
        if self._drop and cached and sys.platform == "linux":
            offset = self._map(handle, size, hashed)
            os.lseek(handle, offset, os.SEEK_SET)
        dropped = 0
        while not self.stopping.is_set():
            count = os.readv(handle, [buffer])
            if not count:
                break
            hashed.update(buffer[:count])
            offset += count
            self._bytes[me] = self._bytes.get(me, 0) + count
            if dropping and offset - dropped >= _DROP_BYTES:
                os.posix_fadvise(handle, dropped, offset - dropped, os.POSIX_FADV_DONTNEED)
                dropped = offset
        if dropping:
            os.posix_fadvise(handle, dropped, 0, os.POSIX_FADV_DONTNEED)
        return Digest(hashed.hexdigest())

    def _map(self, handle: int, size: int, hashed: Any) -> int:
        """Hash from the start as far as pages can be made present; where the ordinary way goes on."""
        offset, me = 0, threading.get_ident()
        try:
            with mmap.mmap(handle, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
                while offset < size and not self.stopping.is_set():
                    count = min(_WINDOW_BYTES, size - offset)
                    mapped.madvise(_POPULATE_READ, offset, count)
                    hashed.update(view[offset : offset + count])
                    mapped.madvise(mmap.MADV_DONTNEED, offset, count)
                    offset += count
                    self._bytes[me] = self._bytes.get(me, 0) + count
        except (OSError, ValueError):
            pass
        return offset


def _cached(handle: int, size: int) -> bool:
    """Whether the file seems to be in the page cache: its middle is. True where that cannot be told."""
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")) or not size:
        return True
    try:
        return bool(os.preadv(handle, [bytearray(1)], size // 2, os.RWF_NOWAIT))
    except OSError as error:
        return error.errno != errno.EAGAIN


def _size(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _trouble(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "it is missing"
    if error.errno in (errno.ELOOP, errno.ENXIO):
        return "it is not a plain file"
    return f"it cannot be read: {error.strerror}"
