"""The ledger of the fleet: who waits, who runs where, what memory is reserved, and the moves that keep these in step.

Moves only; when to make which is decided in ``scheduler``.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.state import Limits, ModelQueue, Waiting, Worker
from homelab_llm.inference.fleet.vocabulary import (
    BATCH_PRIORITY,
    Demand,
    Drain,
    Effect,
    Grant,
    Kill,
    Notify,
    NotifyKind,
    Refuse,
    Submit,
)


class Ledger:
    """All records of one fleet; the effects of its moves gather in ``out``.

    ``hungry``: queues in which something waits and that have no worker. ``wake_s``: never later than the next
    moment at which time alone changes something. ``unsettled``: memory must be looked at again. ``frozen``: another
    daemon takes over. ``running`` counts the leases of all workers, ``batch_running`` the batch ones among them.
    """

    def __init__(self, budget_bytes: int, limits: Limits) -> None:
        self.limits = limits
        self.frozen = False
        self.running = 0
        self.batch_running = 0
        self.budget_bytes = budget_bytes
        self.reserved_bytes = 0
        self.now_s = -math.inf
        self.wake_s = math.inf
        self.unsettled = False
        self.queues: dict[str, ModelQueue] = {}
        self.hungry: dict[str, ModelQueue] = {}
        self.workers: dict[str, Worker] = {}
        self.waiting: OrderedDict[str, Waiting] = OrderedDict()  # by arrival
        self.leases: dict[str, tuple[Worker, float, bool]] = {}  # since when (NaN: unknown), whether batch
        self.out: list[Effect] = []
        self._arrivals = 0

    # --- requests -------------------------------------------------------------------------------------------

    def enqueue(self, queue: ModelQueue, request: Submit) -> Waiting:
        """Let a request wait."""
        self._arrivals += 1
        rank = (self.now_s + request.priority * self.limits.aging_s, self._arrivals)
        waiting = Waiting(request, queue, self.now_s, rank)
        queue.push(waiting)
        self.waiting[request.request_id] = waiting
        self.wake_s = min(self.wake_s, self.now_s + self.limits.max_wait_s)
        self.appetite(queue)
        return waiting

    def withdraw(self, waiting: Waiting) -> None:
        """A waiting request waits no more, for whatever reason."""
        del self.waiting[waiting.request.request_id]
        queue = waiting.queue
        queue.withdraw(waiting)
        self.appetite(queue)
        if queue.worker is not None and queue.worker.leases == 0 and not queue.length:
            self.idle(queue.worker)
        self.unsettled = True

    def admits(self, worker: Worker, request: Submit) -> bool:
        """Whether the request may have a slot of the worker now."""
        most = self.limits.max_running
        if request.priority < BATCH_PRIORITY:
            return worker.open and (not most or self.running < most)
        return worker.open_to_batch and (not most or self.running < most) and self.batch_allowed

    @property
    def batch_allowed(self) -> bool:
        """Whether one more batch request may run over all models."""
        most = self.limits.max_running
        return not most or self.batch_running < self.limits.batch_most(most)

    def occupy(self, request_id: str, worker: Worker, since_s: float, *, batch: bool) -> None:
        """A slot of the worker is used from now on."""
        self.leases[request_id] = (worker, since_s, batch)
        worker.leases += 1
        self.running += 1
        if batch:
            worker.batch_leases += 1
            self.batch_running += 1
        worker.last_used_s = self.now_s

    def vacate(self, request_id: str) -> tuple[Worker, float] | None:
        """A slot is free again; gives its worker and since when it was used. None: no such lease, or no such worker."""
        worker, since_s, batch = self.leases.pop(request_id, (None, 0.0, False))
        if worker is None or worker.state == "gone":
            return None
        worker.leases -= 1
        self.running -= 1
        if batch:
            worker.batch_leases -= 1
            self.batch_running -= 1
        worker.last_used_s = self.now_s
        return worker, since_s

    def grant(self, worker: Worker, request: Submit) -> None:
        """Give the request a slot of the worker."""
        self.occupy(request.request_id, worker, self.now_s, batch=request.priority >= BATCH_PRIORITY)
        own = request.keep_alive_s
        worker.keep_alive_s = worker.standing_keep_alive_s if own is None else own
        self.out.append(Grant(request.request_id, worker.worker_id))

    def grant_preload(self, worker: Worker, request: Submit) -> None:
        """Tell that the model is loaded; takes no slot. Its keep-alive holds for requests that bring none."""
        if request.keep_alive_s is not None:
            worker.standing_keep_alive_s = request.keep_alive_s
        worker.keep_alive_s = worker.standing_keep_alive_s
        worker.last_used_s = self.now_s
        self.out.append(Grant(request.request_id, worker.worker_id))

    def grant_waiting(self, worker: Worker) -> None:
        """Fill the free slots, the most urgent request first.

        When the number over all models is limited, a free place is for the most urgent one of all models.
        """
        if self.limits.max_running:
            self.grant_most_urgent()
            return
        while worker.open and (waiting := worker.queue.head(batch=worker.open_to_batch)) is not None:
            self._grant_from_queue(worker, waiting)

    def grant_most_urgent(self) -> None:
        """Fill the free places under ``max_running``."""
        while self.running < self.limits.max_running:
            batch = self.batch_allowed
            heads = [
                (waiting, worker)
                for worker in self.workers.values()
                if worker.open and worker.queue.length
                if (waiting := worker.queue.head(batch=batch and worker.open_to_batch)) is not None
            ]
            if not heads:
                return
            waiting, worker = min(heads, key=lambda head: head[0].rank)
            self._grant_from_queue(worker, waiting)

    def _grant_from_queue(self, worker: Worker, waiting: Waiting) -> None:
        worker.queue.take(waiting)
        del self.waiting[waiting.request.request_id]
        self.grant(worker, waiting.request)

    def refuse(self, request: Submit, error: HomelabError) -> None:
        """End a request that does not wait (any more)."""
        self.out.append(Refuse(request.request_id, error))
        name, request_id = request.demand.name, request.request_id
        self.out.append(Notify("refused", name, error.code, request_id=request_id, error=error))

    def refuse_waiting(self, queue: ModelQueue, error: HomelabError) -> None:
        """End all that wait in a queue, each with a copy of the error."""
        for waiting in queue.take_all():
            del self.waiting[waiting.request.request_id]
            self.refuse(waiting.request, refusals.again(error))
        self.appetite(queue)

    # --- workers --------------------------------------------------------------------------------------------

    def add_worker(self, worker_id: str, queue: ModelQueue, demand: Demand, reserved_bytes: int) -> Worker:
        """Reserve the memory of a worker; it stays reserved until ``remove_worker``."""
        keep_s = self.keep_alive_s(queue)
        slots = self.limits.batch_most(demand.parallel)
        worker = Worker(worker_id, demand, queue, reserved_bytes, self.now_s, keep_s, keep_s, slots)
        worker.last_used_s = self.now_s
        self.workers[worker_id] = worker
        self.reserved_bytes += reserved_bytes
        return worker

    def keep_alive_s(self, queue: ModelQueue) -> float:
        """What holds for a model's requests that bring none."""
        return self.limits.keep_alive_s if queue.terms.keep_alive_s is None else queue.terms.keep_alive_s

    def remove_worker(self, worker: Worker) -> None:
        """Its processes are proven dead. Leases in it end when their holders say so."""
        del self.workers[worker.worker_id]
        self.reserved_bytes -= worker.reserved_bytes
        self.running -= worker.leases
        self.batch_running -= worker.batch_leases
        worker.state, worker.held_for = "gone", None
        self.unsettled = True

    def reserve(self, worker: Worker, footprint_bytes: int) -> None:
        """Replace what is reserved for a worker by what was measured, for its next load too."""
        self.reserved_bytes += footprint_bytes - worker.reserved_bytes
        worker.reserved_bytes = footprint_bytes
        worker.queue.measured_bytes = footprint_bytes
        self.unsettled = True

    def end(self, worker: Worker, reason: str, *, kill: bool = False) -> None:
        """Ask for the end of a worker; its memory is free when it has left."""
        worker.state, worker.held_for = "ending", None
        if worker.queue.worker is worker:
            worker.queue.worker = None
        self.out.append(Kill(worker.worker_id, reason) if kill else Drain(worker.worker_id, reason))
        self.appetite(worker.queue)

    def evict(self, worker: Worker, queue: ModelQueue | None) -> None:
        """End an idle worker for the sake of another model, or (None) of a smaller budget."""
        reason = f"evicted for {queue.demand.name}" if queue else "evicted: less memory may be used"
        self.notify("evicted", worker.queue, reason, worker_id=worker.worker_id)
        self.end(worker, reason)

    def retire(self, worker: Worker) -> None:
        """No new grants; it ends after its last lease, and who waits gets another worker."""
        worker.state, worker.held_for, worker.queue.worker = "retiring", None, None
        self.appetite(worker.queue)

    def idle(self, worker: Worker) -> None:
        """The last lease of a worker ended, or it became ready and nobody waits."""
        if self.frozen:
            return
        if worker.state == "retiring":
            self.end(worker, "unloaded")
        elif worker.state != "ready":
            return
        elif worker.held_for is not None:
            self.evict(worker, worker.held_for)
        elif worker.pinned or worker.keep_alive_s < 0 or worker.queue.length:
            worker.expires_s = math.inf
        elif worker.keep_alive_s == 0:
            self.end(worker, "keep-alive is 0")
        else:
            worker.expires_s = self.now_s + worker.keep_alive_s
            self.wake_s = min(self.wake_s, worker.expires_s)
        if self.hungry or self.reserved_bytes > self.budget_bytes:
            self.unsettled = True

    # --- both -----------------------------------------------------------------------------------------------

    def appetite(self, queue: ModelQueue) -> None:
        """Keep ``hungry`` true; workers held for a queue that needs no room any more serve again."""
        if queue.length and queue.worker is None:
            if queue.hungry_since_s is None:
                queue.hungry_since_s = self.now_s
                self.hungry[queue.demand.key] = queue
                self.unsettled = True
        elif queue.hungry_since_s is not None:
            queue.hungry_since_s = None
            del self.hungry[queue.demand.key]
            for worker in self.workers.values():
                if worker.held_for is queue:
                    worker.held_for = None
                    self.grant_waiting(worker)

    def notify(
        self,
        kind: NotifyKind,
        queue: ModelQueue,
        text: str = "",
        *,
        done: float = 0.0,
        request_id: str = "",
        worker_id: str = "",
        error: HomelabError | None = None,
    ) -> None:
        self.out.append(Notify(kind, queue.demand.name, text, done, request_id, worker_id, error))
