"""Stop strings in a stream: text before the first one passes, what may be the beginning of one waits. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Finds the stop string that ends first; the result does not depend on how the text is cut into pieces."""

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = ""  # the stop string that was found

    def feed(self, text: str) -> str:
        """The text that may be shown; after a match nothing more."""
        if not self._stops or self.matched:
            return "" if self.matched else text
        whole = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := whole.find(stop)) >= 0]
        if ends:
            _, start, self.matched = min(ends)
            self._held = ""
            return whole[:start]
        keep = self._possible(whole)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def flush(self) -> str:
        """What waited and turned out to be no stop string; the end of the reply."""
        held, self._held = self._held, ""
        return held

    def _possible(self, whole: str) -> int:
        """How many of the last characters may begin a stop string."""
        longest = min(len(whole), max(map(len, self._stops)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(whole[-n:]) for s in self._stops)), 0)
