"""The end of a log file, and what is added to it, through rotation."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 64 << 10
_MAX_TAIL_BYTES = 8 << 20


def last_lines(path: Path, count: int) -> list[str]:
    """The last ``count`` lines; none when there is no such file. Reads from the end, at most 8 MB."""
    try:
        with path.open("rb") as stream:
            return _from_end(stream.fileno(), count)
    except FileNotFoundError:
        return []


def _from_end(handle: int, count: int) -> list[str]:
    at = os.fstat(handle).st_size
    content = b""
    while at > 0 and content.count(b"\n") <= count and len(content) < _MAX_TAIL_BYTES:
        size = min(_BLOCK_BYTES, at)
        at -= size
        content = os.pread(handle, size, at) + content
    return content.decode("utf-8", "replace").splitlines()[-count:] if count else []


def follow(path: Path, *, poll_s: float = 0.2) -> Iterator[str]:
    """Lines added to ``path`` from now on, without end; goes over to the new file when it is rotated.

    Waits for a file that is not there yet. Blocks; end it with an exception or by closing the generator.
    """
    handle = _open(path)
    if handle is not None:
        os.lseek(handle, 0, os.SEEK_END)
    rest = b""
    try:
        while True:
            piece = os.read(handle, _BLOCK_BYTES) if handle is not None else b""
            if piece:
                *lines, rest = (rest + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
                continue
            if handle is None or _was_replaced(handle, path):
                if handle is not None:
                    os.close(handle)
                handle, rest = _open(path), b""
                if handle is not None:
                    continue
            time.sleep(poll_s)
    finally:
        if handle is not None:
            os.close(handle)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _was_replaced(handle: int, path: Path) -> bool:
    """Whether ``path`` is another file now, or this one was cut to less than we read."""
    ours = os.fstat(handle)
    try:
        named = path.stat()
    except FileNotFoundError:
        return True
    if (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino):
        return True
    return ours.st_size < os.lseek(handle, 0, os.SEEK_CUR)
