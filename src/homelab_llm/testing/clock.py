"""FakeClock: time that passes only when a test says so."""

from __future__ import annotations


class FakeClock:
    """A ``core.clock.Clock`` under control; both times advance together."""

    def __init__(self, *, monotonic_s: float = 1000.0, unix_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def unix_s(self) -> float:
        return self._unix_s

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: ``seconds`` is negative; a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError("time does not go backwards; use jump_unix for the wall clock")
        self._monotonic_s += seconds
        self._unix_s += seconds

    def jump_unix(self, seconds: float) -> None:
        """Set the wall clock forwards or back, as NTP or a person does; the monotonic time stays."""
        self._unix_s += seconds
