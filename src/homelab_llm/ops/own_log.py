"""The log of a detached daemon: its standard error is a file, and the daemon rotates that file itself.

Everything that goes to the descriptors counts, native code's prints too. 50 MB, five old files.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

MAX_BYTES = 50 * 10**6
KEPT_FILES = 5
_LOOK_EVERY_BYTES = 1 << 20


class OwnLog(io.TextIOBase):
    """A text stream that writes to descriptors 1 and 2 and moves on to a fresh file when theirs is full."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, descriptors: tuple[int, ...] = (1, 2)) -> None:
        self._path, self._max_bytes, self._descriptors = path, max_bytes, descriptors
        self._unseen_bytes = _LOOK_EVERY_BYTES

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        content = text.encode("utf-8", "backslashreplace")
        self._unseen_bytes += len(content)
        if self._unseen_bytes >= min(_LOOK_EVERY_BYTES, self._max_bytes):
            self._unseen_bytes = 0
            if os.fstat(self._descriptors[-1]).st_size + len(content) > self._max_bytes:
                self._rotate()
        while content:
            content = content[os.write(self._descriptors[-1], content) :]
        return len(text)

    def _rotate(self) -> None:
        for number in range(KEPT_FILES - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        with contextlib.suppress(FileNotFoundError):  # somebody removed the log: begin a new one all the same
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in self._descriptors:
            os.dup2(fresh, descriptor)
        os.close(fresh)


def writes_to(path: Path, descriptor: int = 2) -> bool:
    """Whether ``descriptor`` is open on ``path``: the daemon was started with its log there."""
    try:
        ours, named = os.fstat(descriptor), path.stat()
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)
