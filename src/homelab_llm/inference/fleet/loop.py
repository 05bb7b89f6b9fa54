"""Loop: the scheduler's life in the daemon. Carries effects out, keeps time, and lets requests wait.

Runs in one asyncio event loop and decides nothing: an event is stepped and its effects are applied within the
call that brought it, so a request of a loaded model with a free slot gets its lease without waiting.
"""

from __future__ import annotations

import asyncio
import secrets
import string
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from homelab_llm.core import events
from homelab_llm.core.clock import Clock, SystemClock
from homelab_llm.core.errors import (
    HomelabError,
    InsufficientMemory,
    WorkerCrashed,
    WorkerOutOfMemory,
    WorkerStalled,
)
from homelab_llm.core.errors import LoadFailed as LoadError
from homelab_llm.core.facts import StoredModel
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.adoption import adopted, note_of
from homelab_llm.inference.fleet.checking import Checking
from homelab_llm.inference.fleet.lease import FleetLease, Ticket
from homelab_llm.inference.fleet.measuring import Measuring
from homelab_llm.inference.fleet.news import event_of
from homelab_llm.inference.fleet.placeholders import Placeholders
from homelab_llm.inference.fleet.plans import Plans
from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.seams import Plan, Planned, Survivor, Trust, Workers
from homelab_llm.inference.fleet.state import Limits, WorkerView
from homelab_llm.inference.fleet.status import Running, worker_status
from homelab_llm.inference.fleet.vacating import Vacating
from homelab_llm.inference.fleet.vocabulary import (
    Cancel,
    Condemn,
    Drain,
    Event,
    Grant,
    Kill,
    LeaseEnd,
    Loaded,
    LoadFailed,
    Notify,
    Refuse,
    SetTerms,
    Start,
    Submit,
    Tick,
    WorkerExit,
)

_ID_CHARACTERS = string.ascii_lowercase + string.digits
_DEADLY = (WorkerCrashed, WorkerOutOfMemory, WorkerStalled)


class Loop:
    """What ``FleetLoop`` stands on: events, effects, tickets, timers, and the home of leases.

    Args:
        plan: how a model is run here; may raise (``EngineUnavailable``), then it is asked again next time.
        workers: makes the part that runs processes; it gets the sink for their events. The loop closes it.
        budget_bytes: what all workers together may take.
        measure: the budget now, given the bytes our workers use; asked before each load. None: it never changes.
        remeasure_s: how often serving workers are measured again.
        publish: gets what happens, for people and records; must not block or raise.
        known_bytes: the measured footprint of a demand key from an earlier life, 0 = never measured.
        learned: gets the demand key, the model's digest and the bytes whenever a footprint was measured.
        busy: told True when a request runs or waits and none did, False when that is over; must not block or raise.
        trust: what knows whether a model's files are what they should be; None trusts every model.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        workers: Callable[[Callable[[Event], None]], Workers],
        budget_bytes: int,
        limits: Limits | None = None,
        clock: Clock | None = None,
        measure: Callable[[int], int] | None = None,
        remeasure_s: float = 30.0,
        publish: Callable[[events.Event], None] | None = None,
        known_bytes: Callable[[str], int] | None = None,
        learned: Callable[[str, str, int], None] | None = None,
        busy: Callable[[bool], None] | None = None,
        trust: Trust | None = None,
    ) -> None:
        self._checking = Checking(trust)
        self._plans = Plans(plan, known_bytes)
        self._publish = publish
        self._tell_busy = busy
        self._idle = True
        self._clock = clock or SystemClock()
        self._whole_bytes = budget_bytes
        self._scheduler = Scheduler(budget_bytes, self._new_id, limits)
        self._running: dict[str, Running] = {}
        self._tickets: dict[str, Ticket] = {}
        self._loads: set[Ticket] = set()
        self._on_end: Callable[[str], None] | None = None
        self._inbox: deque[Event] = deque()
        self._applying = False
        self._closed = False
        self._handing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._effects: dict[type, Callable[[Any], None]] = {
            Grant: self._granted,
            Refuse: self._refused,
            Start: self._start,
            Drain: self._drain,
            Kill: self._kill,
            Notify: self._tell,
        }
        self._workers = workers(self.report)
        self._measuring = Measuring(
            self._scheduler,
            self._workers,
            self._running,
            self.report,
            measure=measure,
            every_s=remeasure_s,
            learned=learned,
        )
        self._placeholders = Placeholders(self.report, self._own_id)

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
                self._hear(event)
                if isinstance(event, Loaded):
                    event = self._loaded(event)
                for effect in self._scheduler.step(event, self._clock.monotonic_s()):
                    self._effects[type(effect)](effect)
                if isinstance(event, WorkerExit):
                    self._exited(event)
        finally:
            self._applying = False
        self._arm()
        if self._tell_busy is not None and self._scheduler.idle != self._idle:
            self._idle = not self._idle
            self._tell_busy(not self._idle)

    def tick(self) -> None:
        """Time may have passed; the loop calls this itself when its clock is the system's."""
        self.report(Tick())

    def forget_plans(self) -> None:
        """Plan every model anew when it is next asked for: settings or installed engines changed."""
        self._plans.forget()

    async def close(self, *, leave_workers: bool = False) -> None:
        """Refuse all that wait, end all workers and wait for the proof of their death.

        Args:
            leave_workers: end none of them: a later daemon of this home shall adopt them.
        """
        self._closed = True
        self._checking.close()
        for ticket in list(self._tickets.values()):
            self.report(Cancel(ticket.request_id))
            self._refused(Refuse(ticket.request_id, refusals.stopping()))
        await (self._workers.release() if leave_workers else self._workers.close())
        self._measuring.close()
        if self._timer is not None:
            self._timer.cancel()

    # --- a lease's home -------------------------------------------------------------------------------------

    def end_lease(self, request_id: str, worker_id: str, *, well: bool) -> None:
        """The request is over; ``well``: its reply was complete."""
        self.report(LeaseEnd(request_id, well))
        if self._on_end is not None:
            self._on_end(worker_id)

    def leave(self, request_id: str, worker_id: str) -> None:
        """The client left in mid-reply; the lease ends when the worker says that the slot is free."""
        running = self._running.get(worker_id)
        if running is None or self._closed:
            self.end_lease(request_id, worker_id, well=False)
            return
        if running.vacating is None:
            running.vacating = Vacating(
                running.socket,
                running.planned.traits.busy_path,
                serving=lambda: self._scheduler.leases(worker_id),
                end=lambda request_id: self.end_lease(request_id, worker_id, well=False),
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
            raise refusals.stopping()
        planned = self._plans.get(model) or self._planned_for(model)
        demand = planned.demand
        if not self._scheduler.has_worker(demand.key):
            self._measuring.budget()
        request_id = self._own_id(request_id)
        ticket = Ticket(request_id, planned, preload=preload)
        self._tickets[request_id] = ticket
        self.report(Submit(request_id, demand, keep_alive_s, priority, preload))
        return ticket

    def _must_check(self, model: StoredModel) -> bool:
        """Whether its files have to be hashed before a worker may be started. One that has a worker was checked."""
        if self._closed or self._handing:
            return False
        planned = self._plans.get(model) or self._planned_for(model)
        return not self._scheduler.has_worker(planned.demand.key) and self._checking.needed(model)

    def _own_id(self, request_id: str) -> str:
        """Ids come from outside and may repeat; a request needs one of its own until it ends."""
        while request_id in self._tickets or self._scheduler.knows(request_id):
            request_id = f"{request_id}~{secrets.token_hex(3)}"
        return request_id

    def _planned_for(self, model: StoredModel) -> Planned:
        planned = self._plans.get(model)
        if planned is None:
            planned = self._plans.make(model)
            if terms := self._plans.terms(str(model.digest)):
                self.report(SetTerms(planned.demand, terms))
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
        ticket, error = self._tickets.pop(effect.request_id), effect.error
        if isinstance(error, InsufficientMemory):
            error = refusals.in_parts(error, ticket.planned.footprint, self._others_bytes)
        ticket.end(None, error)

    @property
    def _others_bytes(self) -> int:
        """What other processes take of the memory we may use; 0 when that is not measured."""
        return max(0, self._whole_bytes - self._scheduler.budget_bytes)

    # --- workers --------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        while True:
            worker_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(5))
            if worker_id not in self._running:
                return worker_id

    def _start(self, effect: Start) -> None:
        planned, digest = self._plans.of_key(effect.demand.key)
        socket = self._workers.sockets(effect.worker_id)
        self._running[effect.worker_id] = Running(planned, socket, digest)
        note = note_of(planned, digest, effect.demand.measured_bytes or effect.demand.footprint_bytes)
        try:
            self._workers.start(effect.worker_id, planned.launch(socket), note)
        except (HomelabError, OSError) as error:
            failure = error if isinstance(error, HomelabError) else LoadError(f"the worker did not start: {error}")
            self._inbox.append(LoadFailed(effect.worker_id, failure))
            self._inbox.append(WorkerExit(effect.worker_id, None))

    def _drain(self, effect: Drain) -> None:
        self._workers.drain(effect.worker_id)

    def _kill(self, effect: Kill) -> None:
        self._workers.kill(effect.worker_id)

    def _hear(self, event: Event) -> None:
        """What became of a worker tells something about its model's files."""
        if isinstance(event, Loaded | LoadFailed | WorkerExit) and (running := self._running.get(event.worker_id)):
            if isinstance(event, Loaded):
                self._checking.loaded(running.digest)
            else:
                loading = isinstance(event, LoadFailed)
                self._checking.failed(running.digest, event.error, loading=loading)

    def _loaded(self, event: Loaded) -> Loaded:
        """With the footprint to reserve."""
        running = self._running.get(event.worker_id)
        if running is None:
            return event
        running.loaded_unix_s = self._clock.unix_s()
        return self._measuring.loaded(event, running)

    def _adopt(self, survivor: Survivor, resolve: Callable[[str], StoredModel | None], held: int) -> bool:
        """Take one over; False when it must go."""
        digest = str(survivor.note.get("digest", ""))
        model = resolve(digest)
        if model is not None:  # it may have several names, each with options of its own
            model = replace(model, name=str(survivor.note.get("model") or model.name))
        try:
            planned = self._planned_for(model) if model is not None else None
        except HomelabError:
            planned = None
        event, planned = adopted(survivor, planned)
        socket = self._workers.sockets(survivor.worker_id)
        running = Running(planned, socket, digest, survivor.started_unix_s if survivor.ready else None)
        self._running[survivor.worker_id] = running
        self.report(replace(event, held=self._placeholders.make(survivor.worker_id, held)))
        self._measuring.again_later()
        return not event.unwanted

    def _row(self, view: WorkerView) -> dict[str, Any]:
        return worker_status(view, self._running[view.worker_id], self._workers.info(view.worker_id))

    def _exited(self, event: WorkerExit) -> None:
        running = self._running.pop(event.worker_id, None)
        if running is not None:
            if running.vacating is not None:
                running.vacating.close()
            running.gone.set()

    # --- telling and time -----------------------------------------------------------------------------------

    def _tell(self, effect: Notify) -> None:
        if self._publish is not None:
            self._publish(event_of(effect, self._known_of(effect.worker_id)))
        for ticket in self._loads:
            ticket.wake()

    def _known_of(self, worker_id: str) -> dict[str, Any]:
        """What an event of this worker tells about it; empty where there is none."""
        running = self._running.get(worker_id)
        if running is None:
            return {}
        info = self._workers.info(worker_id)
        pid, memory_bytes = (info.pid, info.memory_bytes) if info else (0, 0)
        return {"engine": running.planned.engine, "pid": pid, "footprint_bytes": memory_bytes}

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
