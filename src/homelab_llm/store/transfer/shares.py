"""Shares: how many connections a host gets, and how many bytes per second the line, from all of this process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BURST_S = 0.25
_LOOK_S = 0.5


class HostShares:
    """Who has how many connections to a host."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def one(self, host: str, most: int, given_up: Callable[[], bool]) -> Iterator[bool]:
        """Wait for a connection to ``host``, of which this process has ``most``; gives False when given up first."""
        with self._changed:
            while self._used[host] >= most and not given_up():
                self._changed.wait(_LOOK_S)
            taken = not given_up()
            self._used[host] += taken
        try:
            yield taken
        finally:
            with self._changed:
                self._used[host] -= taken
                self._changed.notify()


class RateLimit:
    """How fast bytes may come, counted over all who spend here; a quarter of a second may be spent at once."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._free_at_s = 0.0
        self._lock = threading.Lock()

    def spend(self, count: int, bytes_per_s: int) -> float:
        """``count`` bytes came; how many seconds to wait before the next are read. 0 bytes per second: no limit."""
        if bytes_per_s <= 0:
            return 0.0
        with self._lock:
            now = self._monotonic_s()
            self._free_at_s = max(self._free_at_s, now - _BURST_S) + count / bytes_per_s
            return max(0.0, self._free_at_s - now)


HOSTS = HostShares()
RATE = RateLimit()
