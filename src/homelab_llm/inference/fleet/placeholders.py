"""Placeholders: leases for requests that an earlier daemon still answers in workers that are ours now."""

from __future__ import annotations

from collections.abc import Callable

from homelab_llm.inference.fleet.vocabulary import Event, Hold, LeaseEnd


class Placeholders:
    """The placeholders of one fleet, by worker.

    Args:
        new_id: makes the id of a request that is not in use from a wish.
    """

    def __init__(self, report: Callable[[Event], None], new_id: Callable[[str], str]) -> None:
        self._report = report
        self._new_id = new_id
        self._held: dict[str, list[str]] = {}

    def hold(self, worker_id: str, leases: int) -> None:
        """``leases`` slots of the worker are used."""
        for _ in range(leases):
            request_id = self._new_id(f"held-{worker_id}")
            self._held.setdefault(worker_id, []).append(request_id)
            self._report(Hold(request_id, worker_id))

    def let_go(self, worker_id: str) -> None:
        """One of them is free; harmless when none is held."""
        if held := self._held.get(worker_id):
            self._report(LeaseEnd(held.pop(), well=False))

    def let_go_all(self) -> None:
        """All are free."""
        for worker_id, held in self._held.items():
            for _ in list(held):
                self.let_go(worker_id)
