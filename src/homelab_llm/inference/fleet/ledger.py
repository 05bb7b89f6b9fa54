"""The ledger of the fleet: who waits, who runs where, what memory is reserved, and the moves that keep these in step.

Moves only; when to make which is decided in ``scheduler``.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.aliases import Aliases
from homelab_llm.inference.fleet.state import Limits, ModelQueue, Waiting, Worker
from homelab_llm.inference.fleet.vocabulary import (
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
    moment at which time alone changes something. ``unsettled``: memory must be looked at again.
    """

    def __init__(self, budget_bytes: int, limits: Limits) -> None:
        self.limits = limits
        self.budget_bytes = budget_bytes
        self.reserved_bytes = 0
        self.now_s = -math.inf
        self.wake_s = math.inf
        self.unsettled = False
        self.queues: dict[str, ModelQueue] = {}
        self.hungry: dict[str, ModelQueue] = {}
        self.workers: dict[str, Worker] = {}
        self.waiting: OrderedDict[str, Waiting] = OrderedDict()  # by arrival
        self.leases: dict[str, tuple[Worker, float]] = {}
        self.aliases = Aliases()
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
        waiting.queue.withdraw(waiting)
        self.appetite(waiting.queue)
        self.unsettled = True

    def grant(self, worker: Worker, request: Submit) -> None:
        """Give the request a slot of the worker."""
        self.leases[request.request_id] = (worker, self.now_s)
        worker.leases += 1
        worker.last_used_s = self.now_s
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
        """Fill the free slots, the most urgent request first."""
        while worker.open and (waiting := worker.queue.pop()) is not None:
            del self.waiting[waiting.request.request_id]
            self.grant(worker, waiting.request)

    def refuse(self, request: Submit, error: HomelabError) -> None:
        """End a request that does not wait (any more)."""
        self.out.append(Refuse(request.request_id, error))
        self.out.append(Notify("refused", request.demand.name, error.code, request_id=request.request_id))

    def refuse_waiting(self, queue: ModelQueue, error: HomelabError) -> None:
        """End all that wait in a queue, each with a copy of the error."""
        requests = [waiting.request for waiting in queue.take_preloads()]
        while (waiting := queue.pop()) is not None:
            requests.append(waiting.request)
        for request in requests:
            del self.waiting[request.request_id]
            self.refuse(request, refusals.again(error))
        self.appetite(queue)

    # --- workers --------------------------------------------------------------------------------------------

    def add_worker(self, worker_id: str, queue: ModelQueue, demand: Demand, reserved_bytes: int) -> Worker:
        """Reserve the memory of a worker; it stays reserved until ``remove_worker``."""
        keep_s = self.limits.keep_alive_s
        worker = Worker(worker_id, demand, queue, reserved_bytes, self.now_s, keep_s, keep_s)
        worker.last_used_s = self.now_s
        self.workers[worker_id] = worker
        self.reserved_bytes += reserved_bytes
        return worker

    def remove_worker(self, worker: Worker) -> None:
        """Its processes are proven dead. Leases in it end when their holders say so."""
        del self.workers[worker.worker_id]
        self.reserved_bytes -= worker.reserved_bytes
        self.unpoint(worker)
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
        self.unpoint(worker)
        self.out.append(Kill(worker.worker_id, reason) if kill else Drain(worker.worker_id, reason))
        self.appetite(worker.queue)

    def evict(self, worker: Worker, queue: ModelQueue | None) -> None:
        """End an idle worker for the sake of another model, or (None) of a smaller budget."""
        reason = f"evicted for {queue.demand.name}" if queue else "evicted: less memory may be used"
        self.notify("evicted", worker.queue, reason)
        self.end(worker, reason)

    def retire(self, worker: Worker) -> None:
        """No new grants; it ends after its last lease, and who waits gets another worker."""
        worker.state, worker.held_for, worker.queue.worker = "retiring", None, None
        self.unpoint(worker)
        self.appetite(worker.queue)

    def idle(self, worker: Worker) -> None:
        """The last lease of a worker ended, or it became ready and nobody waits."""
        if worker.state == "retiring":
            self.end(worker, "unloaded")
        elif worker.state != "ready":
            return
        elif worker.held_for is not None:
            self.evict(worker, worker.held_for)
        elif worker.keep_alive_s == 0:
            self.end(worker, "keep-alive is 0")
        else:
            worker.expires_s = self.now_s + worker.keep_alive_s if worker.keep_alive_s > 0 else math.inf
            self.wake_s = min(self.wake_s, worker.expires_s)
        if self.hungry or self.reserved_bytes > self.budget_bytes:
            self.unsettled = True

    def unpoint(self, worker: Worker) -> None:
        """No alias points to it any more."""
        self.out.extend(self.aliases.leaves(worker.worker_id))

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
        self, kind: NotifyKind, queue: ModelQueue, text: str = "", *, done: float = 0.0, request_id: str = ""
    ) -> None:
        self.out.append(Notify(kind, queue.demand.name, text, done, request_id))
