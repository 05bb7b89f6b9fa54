"""Locks between processes: an exclusive ``flock`` held over a whole read-modify-write.

The kernel drops it when the holder dies, so nothing stale is ever left. The file itself stays; its content
is the holder's pid, for messages only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from homelab_llm.core.errors import StoreBusy

_POLL_S = 0.02


def try_lock(path: Path) -> int | None:
    """Take the lock now and return its file descriptor, or None when somebody holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    sign(handle)
    return handle


def sign(handle: int) -> None:
    """Write our pid into a lock that we hold, for messages."""
    with contextlib.suppress(OSError):  # a full disk: the pid is for messages only, the lock is held
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 60.0, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock for the block; blocks up to ``wait_s`` and calls ``waiting`` once when it has to wait.

    Raises:
        StoreBusy: somebody else held it all that time.
    """
    deadline = time.monotonic() + wait_s
    handle = try_lock(path)
    if handle is None and waiting is not None:
        waiting()
    while handle is None:
        if time.monotonic() >= deadline:
            raise StoreBusy(
                f"another process has held {path.name} for {wait_s:.0f} s", hint="try again", lock=path.name
            )
        time.sleep(_POLL_S)
        handle = try_lock(path)
    try:
        yield
    finally:
        os.close(handle)


def holder_pid(path: Path) -> int | None:
    """The pid the last holder wrote, if it reads as one."""
    try:
        return int(path.read_text() or "0") or None
    except (OSError, ValueError):
        return None
