"""Appointments: when somebody for whom there is no room should come again. Pure.

``Retry-After`` has whole seconds and many clients obey it to the letter, so those who are sent away at once come back
at once. Each is given a second in which the queue, as it drains now and with all who were given one before, has room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LATEST_S = 3600
"""Nobody is told to come later than this many seconds from now."""

_FILLED = 0.75
"""Part of the queue that appointments may fill: others come without one, and no rate is exact."""

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class _Found:
    """The latest appointment: in how many seconds, and how many will wait a second before it.

    ``length`` and ``rate`` are those of the queue when it was given.
    """

    in_s: int
    waiting: float
    length: int
    rate: float


class Appointments:
    """Who was told to come when, for one model."""

    def __init__(self) -> None:
        self._due: dict[int, int] = {}  # second → how many come in it
        self._last_s = 0
        self._swept_s = -1
        self._found: _Found | None = None

    @property
    def sent_away(self) -> int:
        """How many were sent away and have not been due yet."""
        return sum(self._due.values())

    def book(self, now_s: float, *, length: int, room: int, rate: float, starts_in_s: float = 0.0) -> int:
        """Give an appointment.

        Args:
            length: how many wait now.
            room: how many may wait.
            rate: how many leave the queue per second while the model serves.
            starts_in_s: how long nothing leaves yet, for the model loads.

        Returns:
            In how many whole seconds to come again, 1 to ``LATEST_S``.
        """
        self._sweep(now_s)
        begin = _Found(0, float(length), length, rate)
        before = self._found
        if before is not None and before.rate == rate and before.length <= length:
            # Others were sent away within this second: nothing before their appointment has become free since.
            begin = _Found(before.in_s - 1, before.waiting + length - before.length, length, rate)
        self._found = self._first_fit(now_s, begin, max(1, int(room * _FILLED)), starts_in_s)
        second = math.floor(now_s + self._found.in_s)
        self._due[second] = self._due.get(second, 0) + 1
        self._last_s = max(self._last_s, second)
        return self._found.in_s

    def _sweep(self, now_s: float) -> None:
        """Forget those who were due: they are in the queue now, or will not come."""
        second = math.floor(now_s)
        if second > self._swept_s:
            self._swept_s, self._found = second, None
            self._due = {due: count for due, count in self._due.items() if due >= second}

    def _first_fit(self, now_s: float, begin: _Found, most: int, starts_in_s: float) -> _Found:
        """The first second in which one more may come without making the queue too long then or later."""
        last_in_s = self._last_s - math.floor(now_s)
        waiting, rate = begin.waiting, begin.rate
        found: _Found | None = None
        for in_s in range(begin.in_s + 1, LATEST_S):
            before = waiting
            waiting -= rate * min(1.0, max(0.0, in_s - starts_in_s))
            if found and (in_s > last_in_s or waiting <= -1.0):
                return found  # whoever comes at that time is served before anybody later counts
            waiting = max(0.0, waiting) + self._due.get(math.floor(now_s + in_s), 0)
            if waiting + 1 > most + _ROUNDING:
                found = None
            elif found is None:
                found = _Found(in_s, before, begin.length, rate)
        return found or _Found(LATEST_S, waiting, begin.length, rate)
