"""A line: entries in order of urgency, from whose middle one can go at little cost."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar


class Entry(Protocol):
    """What can stand in a line; ``gone`` marks one that left and was not taken out yet."""

    gone: bool

    def __lt__(self, other: Any) -> bool: ...


E = TypeVar("E", bound=Entry)


class Line(Generic[E]):
    """A heap; one that is withdrawn stays as a mark until it comes up or marks are the larger part."""

    __slots__ = ("_heap", "_marks")

    def __init__(self) -> None:
        self._heap: list[E] = []
        self._marks = 0

    def __iter__(self) -> Iterator[E]:
        return (entry for entry in self._heap if not entry.gone)

    def push(self, entry: E) -> None:
        heapq.heappush(self._heap, entry)

    def head(self) -> E | None:
        """The most urgent, or None; it stays."""
        heap = self._heap
        while heap and heap[0].gone:
            heapq.heappop(heap)
            self._marks -= 1
        return heap[0] if heap else None

    def pop(self) -> None:
        """Take out the head."""
        if self.head() is not None:
            heapq.heappop(self._heap)

    def withdraw(self, entry: E) -> None:
        """Take out any."""
        entry.gone = True
        self._marks += 1
        if self._marks > 64 and 2 * self._marks > len(self._heap):
            self._heap = [other for other in self._heap if not other.gone]
            heapq.heapify(self._heap)
            self._marks = 0
