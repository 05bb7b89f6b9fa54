"""Spans: which connection fetches which bytes of one file. Pure: values and the time go in, spans come out.

Spans are handed out from the front, so that the hash, which follows without a gap, stays near the writers. They are as
long as a connection needs some seconds for, and become shorter towards the end, so that all connections end together.
When none is left, whoever has nothing to do takes over from a connection that is far slower.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from homelab_llm.store.blocks import BLOCK_BYTES

SMALLEST_BYTES = 4 * BLOCK_BYTES
LARGEST_BYTES = 64 * BLOCK_BYTES
WINDOW_BYTES = 1 << 30
"""How far ahead of the hash is written: what lies further back may have left the system's memory."""

ENOUGH_BYTES_PER_S = 600e6
"""As fast as disks write and hashes follow: where the connections make that, a further one only takes their time."""

BEHIND_BYTES = 16 << 20
"""Where so much waits for the hash, half of that is enough."""

_LASTS_S = 3.0
_WORTH_S = 4.0
_FAR_SLOWER = 4.0


@dataclass(slots=True, eq=False)
class Span:
    """The bytes from ``start`` to ``stop`` (None: to the end, wherever it is); ``at`` is the next to be written.

    ``expected`` is how many bytes per second its connection made so far (0: not known). ``busy``: bytes before ``at``
    are being written this moment.
    """

    start: int
    stop: int | None
    since_s: float
    at: int
    expected: float = 0.0
    busy: bool = False

    def speed(self, now_s: float, prior_bytes_per_s: float) -> float:
        """Bytes per second so far; in its first second it is believed to be as fast as ``prior_bytes_per_s``."""
        elapsed_s = now_s - self.since_s
        return prior_bytes_per_s if elapsed_s < 1.0 else max(1.0, self.at - self.start) / elapsed_s


class Spans:
    """The spans of one file.

    Args:
        gaps: what is missing, as (start, stop), in order.
    """

    def __init__(self, gaps: list[tuple[int, int]]) -> None:
        self._gaps = [gap for gap in gaps if gap[0] < gap[1]]
        self.active: list[Span] = []

    @property
    def done(self) -> bool:
        """Whether nothing is missing and nobody is at it."""
        return not self._gaps and not self.active

    def claim(
        self, now_s: float, *, connections: int, speed: float = 0.0, frontier: int = 0, hashed: int | None = None
    ) -> Span | None:
        """The next span for a connection that made ``speed`` bytes per second so far (0: not known); None: none now.

        Args:
            connections: how many there are at most.
            frontier: how far the hash can go, ``hashed``: how far it is (None: does not matter).
        """
        behind = hashed is not None and frontier - hashed > BEHIND_BYTES
        enough = ENOUGH_BYTES_PER_S / 2 if behind else ENOUGH_BYTES_PER_S
        if self.active and sum(span.expected for span in self.active) >= enough:
            return None
        if not self._gaps:
            return self._take_over(now_s, speed)
        start, stop = self._gaps[0]
        if start >= frontier + WINDOW_BYTES:
            return self._take_over(now_s, speed)
        end = min(stop, _up(start + self._size(connections, speed)))
        if stop - end < BLOCK_BYTES:
            end = stop
        self._gaps[:1] = [(end, stop)] if end < stop else []
        return self._begin(start, end, now_s, speed)

    def claim_all(self, start: int, now_s: float) -> Span:
        """One span from ``start`` on to the end, wherever that is; for who gets bytes in order only."""
        self._gaps = []
        return self._begin(start, None, now_s)

    def reserve(self, span: Span, count: int) -> int:
        """So many of ``count`` bytes belong to the span; they are about to be written. 0: it is done, or taken over."""
        room = count if span.stop is None else min(count, span.stop - span.at)
        span.at, span.busy = span.at + room, room > 0
        return room

    def give_back(self, span: Span) -> None:
        """Nobody is at the span any more; what is missing of it is for others."""
        self.active.remove(span)
        if span.stop is not None and span.at < span.stop:
            bisect.insort(self._gaps, (span.at, span.stop))

    def _begin(self, start: int, stop: int | None, now_s: float, expected: float = 0.0) -> Span:
        span = Span(start, stop, now_s, start, expected)
        self.active.append(span)
        return span

    def _size(self, connections: int, speed: float) -> int:
        left = sum(stop - start for start, stop in self._gaps)
        wanted = speed * _LASTS_S if speed else 2 * SMALLEST_BYTES
        return int(max(SMALLEST_BYTES, min(wanted, LARGEST_BYTES, left / (2 * connections))))

    def _take_over(self, now_s: float, speed: float) -> Span | None:
        """A part of the span that would be done last, as much as makes both end together, if its connection is slow.

        What is on its way to the slow one is lost by that; connections about as fast leave each other alone.
        """
        slowest, its_speed, longest_s = None, 0.0, 0.0
        for span in self.active:
            if speed and span.stop is not None:
                left, pace = span.stop - span.at, span.speed(now_s, speed)
                if left / pace > max(longest_s, _WORTH_S + _FAR_SLOWER * left / speed):
                    slowest, its_speed, longest_s = span, pace, left / pace
        if slowest is None or slowest.stop is None:
            return None
        at, stop = slowest.at, slowest.stop
        middle = _up(at + int((stop - at) * its_speed / (its_speed + speed)))
        if middle < stop:
            slowest.stop = middle
            return self._begin(middle, stop, now_s, speed)
        if slowest.busy:
            return None
        slowest.stop = at
        return self._begin(at, stop, now_s, speed)


def _up(offset: int) -> int:
    """To the next border of blocks."""
    return -(-offset // BLOCK_BYTES) * BLOCK_BYTES
