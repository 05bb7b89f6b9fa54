"""FleetLoop: the fleet as gateway, controller and node see it. How it lives is in ``loop``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from homelab_llm.core.errors import (
    HomelabError,
)
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.fitting import fit
from homelab_llm.inference.fleet.lease import FleetLease, Ticket
from homelab_llm.inference.fleet.loop import Loop
from homelab_llm.inference.fleet.seams import Planned, Workers
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.status import quarantine_status
from homelab_llm.inference.fleet.vocabulary import (
    HandOver,
    Resume,
    SetTerms,
    Terms,
    Unload,
    Unquarantine,
)

__all__ = ["FleetLoop", "Limits", "Planned", "Terms", "Workers"]


class FleetLoop(Loop):
    """The fleet (``gateway.seams.Fleet``, ``controller.seams.Fleet``); the arguments are those of ``Loop``."""

    # --- the gateway's door ---------------------------------------------------------------------------------

    async def acquire(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None, priority: int = 0
    ) -> FleetLease:
        """Wait for a lease; cancelling the call withdraws the request. Does not wait when a slot is free.

        Args:
            priority: smaller is sooner; 0 interactive, 10 batch, which leaves the reserved slots free.

        Raises:
            QueueFull, InsufficientMemory, LoadFailed, EngineUnavailable, DeadlineExceeded: as they are named.
            ModelQuarantined: the model failed too often.
            Cancelled: the operator unloaded the model meanwhile.
            HandedOver: another daemon of this home takes the request.
            ModelDamaged: its files are not what they should be; the hint says what mends them.
            DaemonUnavailable: the daemon is stopping.
        """
        if self._must_check(model):
            async for _ in self._checking.until_known(model, request_id):
                pass  # ``standing`` tells it
        ticket = self._submit(model, request_id, keep_alive_s, priority, preload=False)
        try:
            while not ticket.done:
                await ticket.changed()
        except asyncio.CancelledError:
            self._abandon(ticket)
            raise
        if ticket.lease is None:
            raise _error_of(ticket)
        return ticket.lease

    async def load(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None
    ) -> AsyncIterator[Wait]:
        """Load without a request; tells progress, at last ``ready``. Raises as ``acquire``.

        ``keep_alive_s`` then holds for all requests that bring none, as long as the model stays loaded.
        """
        if self._must_check(model):
            async for standing in self._checking.until_known(model, request_id):
                yield standing
        ticket = self._submit(model, request_id, keep_alive_s, 0, preload=True)
        self._loads.add(ticket)
        shown: Wait | None = None
        try:
            while not ticket.done:
                wait = self._scheduler.wait(ticket.request_id)
                if wait is not None and wait != shown:
                    shown = wait
                    yield wait
                else:
                    await ticket.changed()
        finally:
            self._loads.discard(ticket)
            self._abandon(ticket)
        if ticket.error is not None:
            raise ticket.error
        yield Wait("ready", 1.0)

    async def unload(self, model: StoredModel, *, force: bool = False) -> bool:
        """End the model's worker and wait until it is gone, after its running requests unless forced.

        A worker of the same digest with other options stays when another name uses it.

        Returns:
            False when it was neither loaded nor loading.

        Raises:
            HandedOver: another daemon of this home has the workers.
        """
        if self._handing:
            raise refusals.handed_over()
        digest, others = str(model.digest), self._plans.elsewhere(model)
        called_off = self._checking.call_off(digest)
        leaving = [w for w in self._running.values() if w.digest == digest and w.planned.demand.key not in others]
        keys = {running.planned.demand.key for running in leaving}
        if planned := self._plans.get(model):
            keys.add(planned.demand.key)
        for key in keys:
            self.report(Unload(key, force))
        for running in leaving:
            await running.gone.wait()
        return bool(leaving) or called_off

    def standing(self, request_id: str) -> Wait | None:
        """Where a waiting request stands; None when it does not wait."""
        return self._checking.standing(request_id) or self._scheduler.wait(request_id)

    def status(self) -> dict[str, Any]:
        """Plain JSON: the budget, every worker, who waits, who is quarantined."""
        now_s = self._clock.monotonic_s()
        return {
            "budget_bytes": self._scheduler.budget_bytes,
            "used_bytes": self._scheduler.reserved_bytes,
            "waiting": self._scheduler.waiting,
            "workers": [self._row(view) for view in self._scheduler.workers(now_s)],
            "queues": [
                {"model": q.demand.name, "waiting": q.waiting, "since_s": max(0.0, now_s - q.since_s)}
                for q in self._scheduler.queues()
            ],
            "quarantined": [quarantine_status(view) for view in self._scheduler.quarantined()],
        }

    def loaded(self, digest: str) -> dict[str, Any] | None:
        """The status row of the ready worker of a model; None when it has none."""
        for view in self._scheduler.workers(self._clock.monotonic_s()):
            if view.state == "ready" and self._running[view.worker_id].digest == digest:
                return self._row(view)
        return None

    def fit(self, model: StoredModel, context_tokens: int | None = None) -> dict[str, Any]:
        """Whether and how a model fits into memory now, with all numbers (``fitting.fit``); loads nothing.

        Raises:
            EngineUnavailable, UnsupportedRequest: it cannot be run like that here.
        """
        planned = self._plans.make(model, context_tokens) if context_tokens else self._planned_for(model)
        self._measuring.budget()
        outlook = self._scheduler.outlook(planned.demand)
        return {**fit(planned, outlook, model.facts.context_tokens), "others_bytes": self._others_bytes}

    # --- the operator's door --------------------------------------------------------------------------------

    def set_terms(self, digest: str, terms: Terms) -> None:
        """What the operator wants for a model: holds for its workers now and for those to come."""
        self._plans.set_terms(digest, terms)
        for planned in self._plans.of_digest(digest):
            self.report(SetTerms(planned.demand, terms))

    def unquarantine(self, model: StoredModel) -> bool:
        """Let a model be tried again; False when it was not quarantined."""
        before = len(self._scheduler.quarantined())
        for planned in self._plans.of_digest(str(model.digest)):
            self.report(Unquarantine(planned.demand.key))
        return len(self._scheduler.quarantined()) < before

    # --- a change of daemons --------------------------------------------------------------------------------

    async def adopt(
        self, resolve: Callable[[str], StoredModel | None], held: Mapping[str, int] | None = None
    ) -> list[str]:
        """Take the workers of an earlier daemon over; call once, before the first request.

        One whose model is gone, or would be run in another way now, is drained.

        Args:
            resolve: the model of a digest; None = it is not in the store any more.
            held: how many requests the earlier daemon still answers, by worker; they use slots until ``let_go``.

        Returns:
            The ids of those that stay.
        """
        survivors = await self._workers.survivors()
        return [s.worker_id for s in survivors if self._adopt(s, resolve, (held or {}).get(s.worker_id, 0))]

    def let_go(self, worker_id: str) -> None:
        """One of the ``held`` requests of ``adopt`` has ended; harmless when none is left."""
        self._placeholders.let_go(worker_id)
        if self._on_end is not None:  # the daemon after this one counts it too
            self._on_end(worker_id)

    def hand_over(self, on_end: Callable[[str], None] | None = None) -> dict[str, int]:
        """Refuse all that wait and all that come with ``HandedOver``; running requests go on; start and end nothing.

        Args:
            on_end: gets the worker's id each time one of the running requests ends.

        Returns:
            For each worker the new daemon shall adopt, how many requests run in it.
        """
        self._handing, self._on_end = True, on_end
        self._checking.close()
        self.report(HandOver())
        return {w.worker_id: w.leases for w in self._scheduler.workers() if w.state != "draining" or w.leases}

    def resume(self) -> None:
        """The new daemon did not come up: go on as before ``hand_over``."""
        self._handing, self._on_end = False, None
        self.report(Resume())


def _error_of(ticket: Ticket) -> HomelabError:
    return ticket.error or refusals.stopping()
