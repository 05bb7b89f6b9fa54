"""The scheduler: which request gets which worker, what is loaded, and what must go. Pure: no clock, no I/O, no await.

Events in, effects out (``vocabulary``); the caller carries the effects out and tells what came of them. Records and
moves are in ``ledger`` and ``state``; what is loaded and evicted is decided in ``placement`` and ``eviction``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from homelab_llm.core.errors import HomelabError, QueueFull
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.ledger import Ledger
from homelab_llm.inference.fleet.lives import Lives
from homelab_llm.inference.fleet.placement import hopeless, outlook, settle
from homelab_llm.inference.fleet.state import (
    Limits,
    ModelQueue,
    Outlook,
    QuarantineView,
    QueueView,
    WorkerView,
)
from homelab_llm.inference.fleet.vocabulary import (
    BATCH_PRIORITY,
    Adopted,
    Cancel,
    Condemn,
    Demand,
    Effect,
    Event,
    HandOver,
    LeaseEnd,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    Memory,
    Refuse,
    Resume,
    SetTerms,
    Submit,
    Tick,
    Unload,
    Unquarantine,
    WorkerExit,
)


class Scheduler:
    """The state of one machine's fleet.

    Args:
        budget_bytes: what all workers together may take.
        new_id: makes a worker id that is not in use.
    """

    def __init__(self, budget_bytes: int, new_id: Callable[[], str], limits: Limits | None = None) -> None:
        self._book = Ledger(budget_bytes, limits or Limits())
        self._new_id = new_id
        lives = Lives(self._book)
        self._handlers: dict[type, Callable[..., None]] = {
            Submit: self._submit,
            Cancel: self._cancel,
            LeaseEnd: self._lease_end,
            LoadProgress: lives.load_progress,
            Loaded: lives.loaded,
            Measured: lives.measured,
            LoadFailed: lives.load_failed,
            WorkerExit: lives.worker_exit,
            Adopted: lives.adopted,
            Memory: self._memory,
            Unload: self._unload,
            SetTerms: self._set_terms,
            Unquarantine: self._unquarantine,
            HandOver: self._hand_over,
            Resume: self._resume,
            Condemn: lives.condemn,
            Tick: self._tick,
        }

    def step(self, event: Event, now_s: float) -> list[Effect]:
        """Take one event and say what to do. O(1) for a request of a loaded model with a free slot and for its end.

        A worker::

            state     event                                          → state     effects
            (none)    a request, and its memory is free              → loading   Start
            (none)    Adopted                                        → ready     Grant up to parallel
            (none)    Adopted, not ready                             → loading   none: its load goes on
            (none)    Adopted, unwanted or not the only one          → ending    Drain; retiring while held leases run
            loading   Loaded                                         → ready     Grant up to parallel
            loading   LoadFailed                                     → ending    Refuse all that wait; counts
            loading   Unload; nobody waits and others need room      → ending    Drain (Kill when forced), Refuse
            ready     Submit, LeaseEnd with a free slot              → ready     Grant, the most urgent first
            ready     an overdue model needs its memory              → held      none: no new grants
            held      the overdue model is served or withdrawn       → ready     Grant
            held      last LeaseEnd                                  → ending    Drain
            ready     idle: keep-alive over, evicted, memory shrank  → ending    Drain
            ready     Unload while leases run                        → retiring  none: no new grants
            ready     Unload while idle; forced; Condemn             → ending    Drain; Kill; Kill and counts
            retiring  last LeaseEnd                                  → ending    Drain
            (any)     WorkerExit                                     → (none)    memory is free; Start for who waits

        A pinned worker is never held, evicted or ended for being idle. One that is ready is not evicted for another
        before its stay is over. A model::

            failures  event                                          → failures  what it means
            n         a load failed, a worker crashed or Condemn     → n + 1     from the second on the next try waits
            limit - 1 the same                                       → limit     quarantined: every Submit is refused
            n         LeaseEnd that ended well; Unquarantine         → 0         it may be tried at once

        A request::

            Submit   → granted at once | waiting | refused (QueueFull, InsufficientMemory, ModelQuarantined, HandedOver)
            waiting  → granted | refused (LoadFailed, ModelQuarantined, DeadlineExceeded, InsufficientMemory, Cancelled,
                       HandedOver) | withdrawn
            granted  → LeaseEnd; the death of its worker does not end it here

        Between HandOver and Resume nothing is granted, started or ended; leases end, workers become ready or die.

        A preload is granted as soon as the model is loaded and takes no slot.

        Args:
            now_s: monotonic; an earlier value than before counts as the one before.

        Raises:
            ValueError: a ``Submit`` with the id of a request that has not ended.
        """
        book = self._book
        book.now_s = max(book.now_s, now_s)
        self._handlers[type(event)](event)
        if book.unsettled and not book.frozen:
            settle(book, self._new_id)
        out, book.out = book.out, []
        return out

    def next_wake_s(self) -> float | None:
        """When to send a ``Tick`` at the latest; it may be early, never late. None: time alone changes nothing."""
        return None if self._book.wake_s == math.inf else self._book.wake_s

    # --- views ----------------------------------------------------------------------------------------------

    @property
    def budget_bytes(self) -> int:
        return self._book.budget_bytes

    @property
    def reserved_bytes(self) -> int:
        """Memory of all workers whose death is not proven."""
        return self._book.reserved_bytes

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not (self._book.running or self._book.waiting)

    @property
    def waiting(self) -> int:
        """Requests that wait, over all models."""
        return len(self._book.waiting)

    def workers(self, now_s: float | None = None) -> list[WorkerView]:
        """Every worker, oldest first, as seen at ``now_s``; None = at the last event."""
        at_s = self._book.now_s if now_s is None else now_s
        return [worker.view(at_s) for worker in self._book.workers.values()]

    def has_worker(self, key: str) -> bool:
        """Whether a worker serves or loads this model."""
        queue = self._book.queues.get(key)
        return queue is not None and queue.worker is not None

    def leases(self, worker_id: str) -> int:
        """How many requests use this worker now."""
        worker = self._book.workers.get(worker_id)
        return 0 if worker is None else worker.leases

    def knows(self, request_id: str) -> bool:
        """Whether a request of this id waits or runs."""
        return request_id in self._book.leases or request_id in self._book.waiting

    def queues(self) -> list[QueueView]:
        """Models that are waited for and have no worker, the most urgent first."""
        hungry = sorted(self._book.hungry.values(), key=ModelQueue.rank)
        return [QueueView(queue.demand, queue.length, queue.hungry_since_s or 0.0) for queue in hungry]

    def quarantined(self) -> list[QuarantineView]:
        """Models that failed too often and are not tried again."""
        return [
            QuarantineView(queue.demand, queue.failures, queue.last_error.message if queue.last_error else "")
            for queue in self._book.queues.values()
            if queue.quarantined
        ]

    def outlook(self, demand: Demand) -> Outlook:
        """Memory as it stands for ``demand``."""
        return outlook(self._book, demand)

    def wait(self, request_id: str) -> Wait | None:
        """Where a waiting request stands; None when it does not wait."""
        waiting = self._book.waiting.get(request_id)
        if waiting is None:
            return None
        place = waiting.queue.place(waiting)
        worker = waiting.queue.worker
        if worker is not None and worker.state == "loading":
            return Wait(worker.stage, worker.done, place)
        return Wait("queued", 0.0, place)

    # --- requests -------------------------------------------------------------------------------------------

    def _submit(self, event: Submit) -> None:
        book = self._book
        if event.request_id in book.leases or event.request_id in book.waiting:
            raise ValueError(f"request {event.request_id} has not ended")
        queue = book.queues.get(event.demand.key)
        if queue is None:
            queue = book.queues[event.demand.key] = ModelQueue(event.demand)
        worker = queue.worker
        if book.frozen:
            book.out.append(Refuse(event.request_id, refusals.handed_over()))
        elif worker is not None and event.preload and worker.state == "ready":
            book.grant_preload(worker, event)
            if worker.leases == 0:
                book.idle(worker)
        elif worker is not None and not event.preload and book.admits(worker, event):
            book.grant(worker, event)
        else:
            self._wait_or_refuse(queue, event)

    def _wait_or_refuse(self, queue: ModelQueue, event: Submit) -> None:
        error = self._refusal(queue, event.priority)
        if error is not None:
            self._book.refuse(event, error)
            return
        waiting = self._book.enqueue(queue, event)
        self._book.notify("queued", queue, f"place {queue.place(waiting)}", request_id=event.request_id)

    def _refusal(self, queue: ModelQueue, priority: int) -> HomelabError | None:
        book = self._book
        if queue.worker is None and (error := hopeless(book, queue)) is not None:
            return error
        if queue.length >= book.limits.queue_most(priority):
            return self._appointment(queue, priority)
        return None

    def _appointment(self, queue: ModelQueue, priority: int) -> QueueFull:
        """No room: come again when there will be."""
        book, limits = self._book, self._book.limits
        slots = min(queue.demand.parallel, limits.max_running or math.inf)
        if priority >= BATCH_PRIORITY:
            slots = limits.batch_most(int(slots))
        place = queue.length + queue.appointments.sent_away + 1
        in_s = queue.appointments.book(
            book.now_s,
            length=queue.length,
            room=limits.queue_most(priority),
            rate=queue.rate(int(slots)),
            starts_in_s=queue.starts_in_s(book.now_s, limits.turn_s),
        )
        return refusals.queue_full(queue.demand.name, queue.length, place, in_s)

    def _cancel(self, event: Cancel) -> None:
        waiting = self._book.waiting.get(event.request_id)
        if waiting is not None:
            self._book.withdraw(waiting)

    def _lease_end(self, event: LeaseEnd) -> None:
        book = self._book
        vacated = book.vacate(event.request_id)
        if vacated is None:
            return
        worker, since_s = vacated
        if since_s >= 0.0:
            worker.queue.served(book.now_s - since_s)
        if event.well and worker.queue.failures and worker.state != "ending":
            worker.queue.failures, worker.queue.quarantined = 0, False
        if book.waiting:
            book.grant_waiting(worker)
        if worker.leases == 0:
            book.idle(worker)

    # --- the operator ---------------------------------------------------------------------------------------

    def _unload(self, event: Unload) -> None:
        book = self._book
        queue = book.queues.get(event.key)
        if queue is None or book.frozen:
            return
        worker = queue.worker
        if event.force:
            for other in [w for w in book.workers.values() if w.queue is queue and w is not worker]:
                book.end(other, "unloaded", kill=True)
        if event.force or (worker is not None and worker.state == "loading"):
            book.refuse_waiting(queue, refusals.unloaded(queue.demand.name))
        if worker is not None and worker.leases and not event.force:
            book.retire(worker)
        elif worker is not None:
            book.end(worker, "unloaded", kill=event.force)
        book.unsettled = True

    def _set_terms(self, event: SetTerms) -> None:
        book = self._book
        queue = book.queues.setdefault(event.demand.key, ModelQueue(event.demand))
        before, queue.terms = queue.terms, event.terms
        worker = queue.worker
        book.unsettled = True  # what is not pinned any more may make room
        if worker is None or before == event.terms:
            return
        if before.keep_alive_s != event.terms.keep_alive_s:
            worker.standing_keep_alive_s = worker.keep_alive_s = book.keep_alive_s(queue)
        if event.terms.pinned and worker.held_for is not None:
            worker.held_for = None
            book.grant_waiting(worker)
        if worker.leases == 0:
            book.idle(worker)

    def _unquarantine(self, event: Unquarantine) -> None:
        queue = self._book.queues.get(event.key)
        if queue is not None:
            queue.quarantined, queue.failures, queue.retry_at_s, queue.last_error = False, 0, 0.0, None
            self._book.unsettled = True

    def _hand_over(self, _: HandOver) -> None:
        book = self._book
        book.frozen = True
        book.out.extend(Refuse(request_id, refusals.handed_over()) for request_id in book.waiting)
        book.waiting.clear()
        empty = [queue for queue in book.queues.values() if queue.take_all()]
        for queue in empty:
            book.appetite(queue)
        book.wake_s = math.inf

    def _resume(self, _: Resume) -> None:
        book = self._book
        book.frozen, book.unsettled = False, True
        for worker in list(book.workers.values()):
            if worker.leases == 0:
                book.idle(worker)

    # --- memory and time ------------------------------------------------------------------------------------

    def _memory(self, event: Memory) -> None:
        self._book.budget_bytes = event.budget_bytes
        self._book.unsettled = True

    def _tick(self, _: Tick) -> None:
        book = self._book
        limit_s = book.limits.max_wait_s
        if book.frozen:
            book.wake_s = math.inf
            return
        while book.waiting:
            waiting = next(iter(book.waiting.values()))
            if waiting.since_s + limit_s > book.now_s:
                break
            place = waiting.queue.place(waiting)
            book.refuse(waiting.request, refusals.waited_too_long(waiting.request.demand.name, limit_s, place))
            book.withdraw(waiting)
        for worker in list(book.workers.values()):
            if worker.state == "ready" and worker.idle and worker.expires_s <= book.now_s:
                book.end(worker, "idle")
        book.wake_s = math.inf
        if book.waiting:
            book.wake_s = next(iter(book.waiting.values())).since_s + limit_s
        for worker in book.workers.values():
            if worker.state == "ready" and worker.idle:
                book.wake_s = min(book.wake_s, worker.expires_s)
        book.unsettled = True
