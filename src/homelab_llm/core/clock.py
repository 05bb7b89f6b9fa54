"""Clock: time as an argument, so that policies can be tested without waiting."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What code that needs the time asks for."""

    def monotonic_s(self) -> float:
        """Seconds that never go backwards; only differences mean something."""
        ...

    def unix_s(self) -> float:
        """Seconds since 1970 UTC, for records that people read."""
        ...


class SystemClock:
    """The real clock."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def unix_s(self) -> float:
        return time.time()
