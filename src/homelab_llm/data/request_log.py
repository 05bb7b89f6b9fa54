"""Request log: one JSON line for each request in ``HOME/logs/requests.jsonl``. Never its content.

A row is encoded where it is recorded (about a microsecond); a thread joins and writes them in batches, so a slow
disk delays nobody and the thread has no work that would hold the interpreter. The file is rotated by size. What
cannot be written is dropped and counted, never raised.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 50 * 10**6
FILES = 5
BATCH_S = 0.5
MAX_WAITING = 100_000


class RequestLog:
    """Records rows (dataclass instances) as JSON lines.

    Args:
        path: the newest file; older ones are ``path.1`` (newest) to ``path.4``.
        enabled: False takes rows and writes none (setting ``log.requests``).
    """

    def __init__(
        self,
        path: Path,
        *,
        enabled: bool = True,
        max_file_bytes: int = MAX_FILE_BYTES,
        files: int = FILES,
        batch_s: float = BATCH_S,
    ) -> None:
        self._path = path
        self._enabled = enabled
        self._max_file_bytes = max_file_bytes
        self._files = files
        self._batch_s = batch_s
        self._lines: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._ending = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def record(self, row: Any) -> None:
        """Take a row; returns at once and never raises. It is written while the log is open, or by ``flush``."""
        if not self._enabled:
            return
        try:
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # orjson's encoding errors are TypeErrors
            self.dropped += 1
            return
        if len(self._lines) == MAX_WAITING:
            self.dropped += 1
        self._lines.append(line)

    def open(self) -> None:
        """Start writing; a second call does nothing."""
        if self._thread is None and self._enabled:
            self._ending.clear()
            self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Write what has been recorded so far; blocks."""
        with self._writing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not lines:
                return
            try:
                self._write(b"".join(lines))
            except OSError as error:
                self.dropped += len(lines)
                log.warning("requests could not be recorded", extra={"rows": len(lines), "reason": str(error)})

    def close(self) -> None:
        """Write the rest and end the thread; blocks."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.flush()

    def _run(self) -> None:
        while not self._ending.wait(self._batch_s):
            self.flush()

    def _write(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._path.exists() and self._path.stat().st_size + len(content) > self._max_file_bytes:
            self._rotate()
        with self._path.open("ab") as stream:
            stream.write(content)

    def _rotate(self) -> None:
        older = [self._path.with_name(f"{self._path.name}.{number}") for number in range(1, self._files)]
        for source, target in reversed(list(zip([self._path, *older], older, strict=False))):
            if source.exists():
                source.replace(target)
