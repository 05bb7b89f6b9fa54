"""Progress of long work on models as numbers for people and programs: bytes, speed, time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal[
    "resolving",
    "waiting",
    "fetching",
    "retrying",
    "inspecting",
    "storing",
    "hashing",
    "uploading",
    "converting",
    "quantizing",
    "measuring",
    "done",
]

_REPORT_EVERY_S = 0.1
_SMOOTHING_S = 3.0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One report. Bytes count over all files, kept ones included; ``total_bytes`` is None while unknown.

    ``bytes_per_s`` is smoothed over some seconds and 0 at first; ``eta_s`` is None while it cannot be told. ``note`` is
    something people should know, told once.
    """

    stage: Stage
    file: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    note: str = ""


class Progress:
    """Collects what is done and reports at most ten times a second, every change of stage at once.

    Args:
        doing: the stage in which bytes move.
    """

    def __init__(
        self,
        report: Callable[[JobProgress], None],
        monotonic_s: Callable[[], float] = time.monotonic,
        *,
        doing: Stage = "fetching",
    ) -> None:
        self._report, self._monotonic_s, self._doing = report, monotonic_s, doing
        self._stage: Stage = "resolving"
        self._file = ""
        self._finished_bytes, self._file_bytes = 0, 0
        self._total_bytes: int | None = None
        self._rate, self._rate_at, self._rate_bytes = 0.0, 0.0, 0
        self._reported_at = float("-inf")

    def stage(self, stage: Stage) -> None:
        """Enter a stage."""
        if stage != self._stage or self._reported_at == float("-inf"):
            self._stage = stage
            self._send()

    def note(self, text: str) -> None:
        """Tell people something, for example what of a model was left out."""
        self._report(JobProgress(self._stage, note=text))

    def total(self, sizes: list[int | None]) -> None:
        """What all files together will have; unknown when one is."""
        known = [size for size in sizes if size is not None]
        self._total_bytes = sum(known) if len(known) == len(sizes) else None

    def begin(self, file: str, kept_bytes: int) -> None:
        """Start, or start over, with a file of which ``kept_bytes`` are here."""
        self._stage, self._file, self._file_bytes = self._doing, file, kept_bytes
        self._rate_at, self._rate_bytes = self._monotonic_s(), kept_bytes
        self._send()

    def bytes(self, done_bytes: int) -> None:
        """So much of the file is here."""
        self._stage, self._file_bytes = self._doing, done_bytes
        now = self._monotonic_s()
        if now - self._reported_at >= _REPORT_EVERY_S:
            self._measure(now)
            self._send()

    def at(self, stage: Stage, file: str, done_bytes: int) -> None:
        """For work on several files at once: what goes on, at which file foremost, and how much of all is done."""
        now, changed = self._monotonic_s(), stage != self._stage
        if self._rate_at == 0.0:
            self._rate_at, self._rate_bytes = now, done_bytes
        self._stage, self._file, self._finished_bytes, self._file_bytes = stage, file, 0, done_bytes
        if changed or now - self._reported_at >= _REPORT_EVERY_S or done_bytes == self._total_bytes:
            self._measure(now)
            self._send()

    def end(self, size_bytes: int) -> None:
        """The file is complete."""
        self._finished_bytes += size_bytes
        self._file_bytes = 0
        self._send()

    def _measure(self, now: float) -> None:
        elapsed = now - self._rate_at
        if elapsed <= 0:
            return
        current = (self._file_bytes - self._rate_bytes) / elapsed
        weight = min(1.0, elapsed / _SMOOTHING_S) if self._rate else 1.0
        self._rate += (current - self._rate) * weight
        self._rate_at, self._rate_bytes = now, self._file_bytes

    def _send(self) -> None:
        self._reported_at = self._monotonic_s()
        done = self._finished_bytes + self._file_bytes
        left = None if self._total_bytes is None else max(0, self._total_bytes - done)
        eta_s = left / self._rate if left is not None and self._rate > 0 else None
        self._report(JobProgress(self._stage, self._file, done, self._total_bytes, max(0.0, self._rate), eta_s))
