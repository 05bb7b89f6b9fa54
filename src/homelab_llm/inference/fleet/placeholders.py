"""Placeholders: leases for requests that an earlier daemon still answers in workers that are ours now."""

from __future__ import annotations

from collections.abc import Callable

from homelab_llm.inference.fleet.vocabulary import Event, LeaseEnd


class Placeholders:
    """The placeholders of one fleet, by worker.

    Args:
        new_id: makes the id of a request that is not in use from a wish.
    """

    def __init__(self, report: Callable[[Event], None], new_id: Callable[[str], str]) -> None:
        self._report = report
        self._new_id = new_id
        self._held: dict[str, list[str]] = {}

    def make(self, worker_id: str, leases: int) -> tuple[str, ...]:
        """Ids for ``leases`` slots of the worker."""
        self._held[worker_id] = [self._new_id(f"held-{worker_id}-{number}") for number in range(leases)]
        return tuple(self._held[worker_id])

    def let_go(self, worker_id: str) -> None:
        """One of them is free; harmless when none is held."""
        if held := self._held.get(worker_id):
            self._report(LeaseEnd(held.pop(), well=False))
