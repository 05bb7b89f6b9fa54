"""Measuring: what workers really take, and what may be taken, told to the scheduler and to who remembers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.seams import Workers
from homelab_llm.inference.fleet.status import Running
from homelab_llm.inference.fleet.vocabulary import Event, Loaded, Measured, Memory


class Measuring:
    """Measures for one run loop.

    Args:
        running: the started workers.
        report: takes events.
        measure: the budget now, given the bytes our workers use. None: it never changes.
        every_s: how often serving workers are measured again.
        learned: gets the demand key, the model's digest and the bytes whenever a footprint was measured.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Workers,
        running: Mapping[str, Running],
        report: Callable[[Event], None],
        *,
        measure: Callable[[int], int] | None,
        every_s: float,
        learned: Callable[[str, str, int], None] | None,
    ) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._running = running
        self._report = report
        self._measure = measure
        self._every_s = every_s
        self._learned = learned
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def budget(self) -> None:
        """Measure the budget, before a load."""
        if self._measure is None:
            return
        ours_bytes = 0
        for view in self._scheduler.workers():
            info = self._workers.info(view.worker_id)
            known_bytes = info.memory_bytes if info is not None and view.state == "ready" else 0
            ours_bytes += known_bytes or view.reserved_bytes
        budget_bytes, before_bytes = self._measure(ours_bytes), self._scheduler.budget_bytes
        if abs(budget_bytes - before_bytes) * 100 > before_bytes:  # a change below 1 % is noise
            self._report(Memory(budget_bytes))

    def loaded(self, event: Loaded, running: Running) -> Loaded:
        """With the footprint to reserve; the event brings what was measured, or the worker's record does."""
        info = self._workers.info(event.worker_id)
        measured_bytes = event.footprint_bytes or (info.memory_bytes if info else 0)
        reserve_bytes = running.planned.reserve_bytes(measured_bytes)
        self._learn(running, reserve_bytes)
        self.again_later()
        return replace(event, footprint_bytes=reserve_bytes)

    def again_later(self) -> None:
        """Measure serving workers from time to time."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._every_s, self._again)

    def close(self) -> None:
        """Measure no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._timer = None
        for worker_id in list(self._running):
            info = self._workers.info(worker_id)
            if info is not None and info.memory_bytes:
                self._report(Measured(worker_id, info.memory_bytes))
        for view in self._scheduler.workers():
            if view.state == "ready" and (running := self._running.get(view.worker_id)) and running.learned_bytes:
                self._learn(running, view.reserved_bytes)
        if self._running:
            self.again_later()

    def _learn(self, running: Running, footprint_bytes: int) -> None:
        if self._learned is not None and footprint_bytes > running.learned_bytes:
            running.learned_bytes = footprint_bytes
            self._learned(running.planned.demand.key, running.digest, footprint_bytes)
