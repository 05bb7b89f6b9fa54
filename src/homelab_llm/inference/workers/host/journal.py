"""What the engine prints: its log with a bound on the disk, its progress, and the last words for the exit reason."""

# ruff: noqa: PTH105, PTH108, PTH110 — pathlib would cost this small process a megabyte
from __future__ import annotations

import contextlib
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TAIL_BYTES = 4096
_MARK = b"@progress "
_LINE_BYTES = 8192


class Journal:
    """Takes output as it comes; whole lines go to the log, ``@progress {…}`` lines to ``progress``.

    Args:
        path: the log; ``path.1`` … are older parts.
        part_bytes: size of one part; at most ``parts`` of them lie on the disk.
        progress: called with ``(stage, done)``, ``done`` from 0 to 1.
    """

    def __init__(self, path: str, part_bytes: int, parts: int, progress: Callable[[str, float], None]) -> None:
        self._path = path
        self._part_bytes = part_bytes
        self._parts = parts
        self._progress = progress
        self._partial = b""
        self._tail = b""
        self._log = self._open()
        self._size = os.fstat(self._log).st_size

    @property
    def tail(self) -> str:
        """The last 4 kB printed, progress left out."""
        return self._tail.decode("utf-8", "replace")

    def feed(self, content: bytes) -> None:
        """Take the next bytes of output."""
        *lines, self._partial = (self._partial + content).split(b"\n")
        text = b"".join(line + b"\n" for line in lines if not self._is_progress(line))
        if len(self._partial) > _LINE_BYTES:
            text += self._partial
            self._partial = b""
        self._write(text)

    def close(self) -> None:
        """Write what is left; nothing may be fed after."""
        self._write(self._partial)
        os.close(self._log)

    def _is_progress(self, line: bytes) -> bool:
        if not line.startswith(_MARK):
            return False
        try:
            told = json.loads(line[len(_MARK) :])
            self._progress(str(told["stage"])[:64], min(1.0, max(0.0, float(told["done"]))))
        except (ValueError, TypeError, KeyError):
            return False
        return True

    def _write(self, text: bytes) -> None:
        self._tail = (self._tail + text)[-TAIL_BYTES:]
        while text:
            cut = self._fitting(text)
            with contextlib.suppress(OSError):  # a full disk must not end a model that answers; the tail is in memory
                os.write(self._log, text[:cut])
            self._size += cut
            text = text[cut:]
            if text:
                self._rotate()

    def _fitting(self, text: bytes) -> int:
        """How many bytes go into the current part: whole lines, unless one alone is larger than a part."""
        room = self._part_bytes - self._size
        if len(text) <= room:
            return len(text)
        return text.rfind(b"\n", 0, max(0, room)) + 1 or (0 if self._size else self._part_bytes)

    def _rotate(self) -> None:
        os.close(self._log)
        with contextlib.suppress(OSError):
            for number in range(self._parts - 2, 0, -1):
                if os.path.exists(f"{self._path}.{number}"):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.replace(self._path, f"{self._path}.1") if self._parts > 1 else os.unlink(self._path)
        self._log = self._open()
        self._size = os.fstat(self._log).st_size
        if self._size:  # it could not be moved away: the bound counts more than old lines
            os.ftruncate(self._log, 0)
            self._size = 0

    def _open(self) -> int:
        """The log; nothing in its place where it cannot be written, for the engine's sake."""
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
