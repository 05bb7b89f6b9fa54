"""FleetLoop: the scheduler's life in the daemon. Carries effects out, keeps time, and lets requests wait.

Runs in one asyncio event loop and decides nothing: an event is stepped and its effects are applied within the
call that brought it, so a request of a loaded model with a free slot gets its lease without waiting.
"""

from __future__ import annotations

import asyncio
import secrets
import string
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from homelab_llm.core.clock import Clock, SystemClock
from homelab_llm.core.errors import DaemonUnavailable, HomelabError, WorkerCrashed, WorkerOutOfMemory, WorkerStalled
from homelab_llm.core.errors import LoadFailed as LoadError
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet.lease import FleetLease, Ticket
from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.seams import Planned, Workers
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.status import Running, worker_status
from homelab_llm.inference.fleet.subscription import Subscription
from homelab_llm.inference.fleet.vacating import Vacating
from homelab_llm.inference.fleet.vocabulary import (
    AliasChange,
    Cancel,
    Condemn,
    Drain,
    Event,
    Flip,
    Grant,
    Kill,
    LeaseEnd,
    Loaded,
    LoadFailed,
    Measured,
    Memory,
    Notify,
    Refuse,
    Start,
    Submit,
    Tick,
    Unload,
    WorkerExit,
)

__all__ = ["FleetLoop", "Limits", "Planned", "Workers"]

_ID_CHARACTERS = string.ascii_lowercase + string.digits
_DEADLY = (WorkerCrashed, WorkerOutOfMemory, WorkerStalled)


class FleetLoop:
    """The fleet as the gateway sees it (``gateway.seams.Fleet``).

    Args:
        plan: how a model is run here; may raise (``EngineUnavailable``), then it is asked again next time.
        workers: makes the part that runs processes; it gets the sink for their events. The loop closes it.
        budget_bytes: what all workers together may take.
        measure: the budget now, given the bytes our workers use; asked before each load. None: it never changes.
        remeasure_s: how often serving workers are measured again.
    """

    def __init__(
        self,
        *,
        plan: Callable[[StoredModel], Planned],
        workers: Callable[[Callable[[Event], None]], Workers],
        budget_bytes: int,
        limits: Limits | None = None,
        clock: Clock | None = None,
        measure: Callable[[int], int] | None = None,
        remeasure_s: float = 30.0,
    ) -> None:
        self._plan = plan
        self._clock = clock or SystemClock()
        self._measure = measure
        self._remeasure_s = remeasure_s
        self._scheduler = Scheduler(budget_bytes, self._new_id, limits)
        self._planned: dict[str, Planned] = {}  # by the model's digest
        self._by_key: dict[str, tuple[Planned, str]] = {}
        self._running: dict[str, Running] = {}
        self._tickets: dict[str, Ticket] = {}
        self._loads: set[Ticket] = set()
        self._subscriptions: set[Subscription] = set()
        self._inbox: deque[Event] = deque()
        self._applying = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._measuring: asyncio.TimerHandle | None = None
        self.aliases: dict[str, str] = {}
        self._effects: dict[type, Callable[[Any], None]] = {
            Grant: self._granted,
            Refuse: self._refused,
            Start: self._start,
            Drain: self._drain,
            Kill: self._kill,
            Flip: self._flip,
            Notify: self._tell,
        }
        self._workers = workers(self.report)

    # --- the gateway's door ---------------------------------------------------------------------------------

    async def acquire(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None, priority: int = 0
    ) -> FleetLease:
        """Wait for a lease; cancelling the call withdraws the request. Does not wait when a slot is free.

        Raises:
            QueueFull, InsufficientMemory, LoadFailed, EngineUnavailable, DeadlineExceeded: as they are named.
            Cancelled: the operator unloaded the model meanwhile.
            DaemonUnavailable: the daemon is stopping.
        """
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

        Returns:
            False when it was neither loaded nor loading.
        """
        leaving = [running for running in self._running.values() if running.digest == str(model.digest)]
        keys = {running.planned.demand.key for running in leaving}
        if model.digest.hex in self._planned:
            keys.add(self._planned[model.digest.hex].demand.key)
        for key in keys:
            self.report(Unload(key, force))
        for running in leaving:
            await running.gone.wait()
        return bool(leaving)

    def standing(self, request_id: str) -> Wait | None:
        """Where a waiting request stands; None when it does not wait."""
        return self._scheduler.wait(request_id)

    def status(self) -> dict[str, Any]:
        """Plain JSON: the budget, every worker, who waits."""
        now_s = self._clock.monotonic_s()
        return {
            "budget_bytes": self._scheduler.budget_bytes,
            "used_bytes": self._scheduler.reserved_bytes,
            "waiting": self._scheduler.waiting,
            "workers": [
                worker_status(view, self._running[view.worker_id], self._workers.info(view.worker_id))
                for view in self._scheduler.workers(now_s)
            ],
            "queues": [
                {"model": q.demand.name, "waiting": q.waiting, "since_s": max(0.0, now_s - q.since_s)}
                for q in self._scheduler.queues()
            ],
        }

    # --- the node's door ------------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Take an event and carry out its effects, at once. Only from the event loop's thread.

        Effects that cause events in turn do not recurse: those are taken after them, in order.
        """
        self._inbox.append(event)
        if self._applying:
            return
        self._applying = True
        try:
            while self._inbox:
                event = self._inbox.popleft()
                if isinstance(event, Loaded):
                    event = self._loaded(event)
                for effect in self._scheduler.step(event, self._clock.monotonic_s()):
                    self._effects[type(effect)](effect)
                if isinstance(event, WorkerExit):
                    self._exited(event)
        finally:
            self._applying = False
        self._arm()

    def tick(self) -> None:
        """Time may have passed; the loop calls this itself when its clock is the system's."""
        self.report(Tick())

    def set_budget(self, budget_bytes: int) -> None:
        """All workers together may take this much from now on."""
        self.report(Memory(budget_bytes))

    def point(self, alias: str, model: StoredModel | None) -> None:
        """``alias`` shall serve ``model``: it flips to it as soon as that is loaded. None: it serves nothing."""
        self.report(AliasChange(alias, self._planned_for(model).demand if model else None))

    def subscribe(self, limit: int = 256) -> Subscription:
        """What happens to models and requests from now on, for people; ``limit`` notices are kept unread."""
        subscription = Subscription(limit, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    def forget_plans(self) -> None:
        """Plan every model anew when it is next asked for: settings or installed engines changed."""
        self._planned.clear()

    async def close(self) -> None:
        """Refuse all that wait, end all workers and wait for the proof of their death."""
        self._closed = True
        for ticket in list(self._tickets.values()):
            self.report(Cancel(ticket.request_id))
            self._refused(Refuse(ticket.request_id, _stopping()))
        await self._workers.close()
        for timer in (self._timer, self._measuring):
            if timer is not None:
                timer.cancel()
        for subscription in list(self._subscriptions):
            subscription.close()

    # --- a lease's home -------------------------------------------------------------------------------------

    def end_lease(self, request_id: str) -> None:
        """The request is over, however it ended."""
        self.report(LeaseEnd(request_id))

    def leave(self, request_id: str, worker_id: str) -> None:
        """The client left in mid-reply; the lease ends when the worker says that the slot is free."""
        running = self._running.get(worker_id)
        if running is None or self._closed:
            self.end_lease(request_id)
            return
        if running.vacating is None:
            running.vacating = Vacating(
                running.socket,
                running.planned.traits.busy_path,
                serving=lambda: self._scheduler.leases(worker_id),
                end=self.end_lease,
            )
        running.vacating.add(request_id)

    def condemn(self, worker_id: str) -> None:
        """The worker does not answer any more: end it at once."""
        self.report(Condemn(worker_id))

    async def failure(self, worker_id: str) -> HomelabError:
        """Why the worker broke off.

        A worker that is dead, but not yet proven to be, gets no request from then on.
        """
        error = await self._workers.failure(worker_id)
        if worker_id in self._running and isinstance(error, _DEADLY):
            self.condemn(worker_id)
        return error

    # --- requests -------------------------------------------------------------------------------------------

    def _submit(
        self, model: StoredModel, request_id: str, keep_alive_s: float | None, priority: int, *, preload: bool
    ) -> Ticket:
        if self._closed:
            raise _stopping()
        planned = self._planned.get(model.digest.hex) or self._planned_for(model)
        demand = planned.demand
        if self._measure is not None and not self._scheduler.has_worker(demand.key):
            self._measure_budget(self._measure)
        request_id = self._own_id(request_id)
        ticket = Ticket(request_id, preload=preload)
        self._tickets[request_id] = ticket
        self.report(Submit(request_id, demand, keep_alive_s, priority, preload))
        return ticket

    def _own_id(self, request_id: str) -> str:
        """Ids come from outside and may repeat; a request needs one of its own until it ends."""
        while request_id in self._tickets or self._scheduler.knows(request_id):
            request_id = f"{request_id}~{secrets.token_hex(3)}"
        return request_id

    def _planned_for(self, model: StoredModel) -> Planned:
        planned = self._planned.get(model.digest.hex)
        if planned is None:
            planned = self._planned[model.digest.hex] = self._plan(model)
            self._by_key[planned.demand.key] = (planned, str(model.digest))
        return planned

    def _abandon(self, ticket: Ticket) -> None:
        """The caller went away: withdraw the request, or give back what it was granted in the same turn."""
        if ticket.lease is not None:
            ticket.lease.release()
        elif not ticket.done:
            del self._tickets[ticket.request_id]
            self.report(Cancel(ticket.request_id))

    def _granted(self, effect: Grant) -> None:
        ticket = self._tickets.pop(effect.request_id)
        if ticket.preload:
            ticket.end(None, None)
            return
        running = self._running[effect.worker_id]
        lease = FleetLease(
            self,
            effect.request_id,
            effect.worker_id,
            socket=running.socket,
            traits=running.planned.traits,
            context_tokens=running.planned.context_tokens,
        )
        ticket.end(lease, None)

    def _refused(self, effect: Refuse) -> None:
        self._tickets.pop(effect.request_id).end(None, effect.error)

    # --- workers --------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        while True:
            worker_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(5))
            if worker_id not in self._running:
                return worker_id

    def _start(self, effect: Start) -> None:
        planned, digest = self._by_key[effect.demand.key]
        socket = self._workers.sockets(effect.worker_id)
        self._running[effect.worker_id] = Running(planned, socket, digest)
        try:
            self._workers.start(effect.worker_id, planned.launch(socket))
        except (HomelabError, OSError) as error:
            failure = error if isinstance(error, HomelabError) else LoadError(f"the worker did not start: {error}")
            self._inbox.append(LoadFailed(effect.worker_id, failure))
            self._inbox.append(WorkerExit(effect.worker_id, None))

    def _drain(self, effect: Drain) -> None:
        self._workers.drain(effect.worker_id)

    def _kill(self, effect: Kill) -> None:
        self._workers.kill(effect.worker_id)

    def _loaded(self, event: Loaded) -> Loaded:
        """With the footprint to reserve; the event brings what was measured, or the worker's record does."""
        running = self._running.get(event.worker_id)
        if running is None:
            return event
        running.loaded_unix_s = self._clock.unix_s()
        info = self._workers.info(event.worker_id)
        measured_bytes = event.footprint_bytes or (info.memory_bytes if info else 0)
        if self._measuring is None:
            self._measuring = asyncio.get_running_loop().call_later(self._remeasure_s, self._remeasure)
        return replace(event, footprint_bytes=running.planned.reserve_bytes(measured_bytes))

    def _exited(self, event: WorkerExit) -> None:
        running = self._running.pop(event.worker_id, None)
        if running is not None:
            if running.vacating is not None:
                running.vacating.close()
            running.gone.set()

    def _remeasure(self) -> None:
        self._measuring = None
        for worker_id in list(self._running):
            info = self._workers.info(worker_id)
            if info is not None and info.memory_bytes:
                self.report(Measured(worker_id, info.memory_bytes))
        if self._running:
            self._measuring = asyncio.get_running_loop().call_later(self._remeasure_s, self._remeasure)

    def _measure_budget(self, measure: Callable[[int], int]) -> None:
        ours_bytes = 0
        for view in self._scheduler.workers():
            info = self._workers.info(view.worker_id)
            known_bytes = info.memory_bytes if info is not None and view.state == "ready" else 0
            ours_bytes += known_bytes or view.reserved_bytes
        budget_bytes, before_bytes = measure(ours_bytes), self._scheduler.budget_bytes
        if abs(budget_bytes - before_bytes) * 100 > before_bytes:  # a change below 1 % is noise
            self.set_budget(budget_bytes)

    # --- telling and time -----------------------------------------------------------------------------------

    def _flip(self, effect: Flip) -> None:
        if effect.worker_id is None:
            self.aliases.pop(effect.alias, None)
        else:
            self.aliases[effect.alias] = effect.worker_id

    def _tell(self, effect: Notify) -> None:
        for subscription in self._subscriptions:
            subscription.put(effect)
        for ticket in self._loads:
            ticket.wake()

    def _arm(self) -> None:
        wake_s = self._scheduler.next_wake_s()
        if wake_s is None or self._closed or (self._timer is not None and self._timer_s <= wake_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(0.0, wake_s - self._clock.monotonic_s())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)
        self._timer_s = wake_s

    def _on_timer(self) -> None:
        self._timer = None
        self.tick()


def _stopping() -> DaemonUnavailable:
    return DaemonUnavailable("the daemon is stopping", hint="mlxctl daemon start")


def _error_of(ticket: Ticket) -> HomelabError:
    return ticket.error or _stopping()
