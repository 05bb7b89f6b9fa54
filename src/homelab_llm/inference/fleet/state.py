"""The scheduler's records: workers, the queue of each model, limits. Mutable, owned by one ``Scheduler``."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Literal

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.fleet.vocabulary import Demand, Submit

State = Literal["loading", "ready", "retiring", "ending", "gone"]

UNMEASURED_SERVICE_S = 5.0
"""Assumed length of a request of a model that has not finished one yet; only for ``retry_after_s``."""

_SERVICE_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator and the product allow; seconds unless the name says otherwise.

    ``fairness_s``: a model without a worker waits this long before busy ones must make room, and a worker
    serves at least this long (or as long as its load took) before it must. ``aging_s``: how much earlier a
    request must have come to go before one whose priority is smaller by one. ``tries``: loads that may fail in
    a row before the next is delayed, by ``backoff_s`` doubled each time up to ``backoff_most_s``.
    """

    keep_alive_s: float = 300.0
    queue_limit: int = 256
    max_wait_s: float = 600.0
    fairness_s: float = 30.0
    aging_s: float = 3.0
    tries: int = 3
    backoff_s: float = 5.0
    backoff_most_s: float = 300.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker for status; ``expires_in_s`` is None while it is used or stays for ever."""

    worker_id: str
    demand: Demand
    state: Literal["loading", "ready", "draining"]
    leases: int
    waiting: int
    reserved_bytes: int
    expires_in_s: float | None
    stage: str
    done: float


@dataclass(frozen=True, slots=True)
class QueueView:
    """A model for which requests wait while it has no worker."""

    demand: Demand
    waiting: int
    since_s: float


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in a queue. ``rank``: its arrival, later by ``aging_s`` for each step of priority."""

    request: Submit
    queue: ModelQueue
    since_s: float
    rank: tuple[float, int]
    gone: bool = False

    def __lt__(self, other: Waiting) -> bool:
        return self.rank < other.rank


@dataclass(slots=True, eq=False)
class Worker:
    """One worker from its start until the proof of its death.

    ``standing_keep_alive_s`` holds for requests that bring none; ``keep_alive_s`` is that of the last request.
    ``held_for``: the queue for which it gets no new request, or None.
    """

    worker_id: str
    demand: Demand
    queue: ModelQueue
    reserved_bytes: int
    started_s: float
    standing_keep_alive_s: float
    keep_alive_s: float
    state: State = "loading"
    leases: int = 0
    ready_s: float = math.inf
    last_used_s: float = 0.0
    expires_s: float = math.inf
    held_for: ModelQueue | None = None
    stage: str = "loading"
    done: float = 0.0

    @property
    def open(self) -> bool:
        """Whether a request may be granted now."""
        return self.state == "ready" and self.leases < self.demand.parallel and self.held_for is None

    @property
    def idle(self) -> bool:
        """Nothing runs in it and nothing waits for it; a load for which nobody waits any more counts too."""
        return self.leases == 0 and self.state in ("loading", "ready") and not self.queue.length

    @property
    def leaving(self) -> bool:
        """Whether its memory comes back without a further decision."""
        return self.held_for is not None or self.state in ("retiring", "ending")

    def view(self, now_s: float) -> WorkerView:
        """What status shows of it."""
        expires = self.state == "ready" and self.leases == 0 and self.expires_s != math.inf
        return WorkerView(
            self.worker_id,
            self.demand,
            self.state if self.state in ("loading", "ready") else "draining",
            self.leases,
            self.queue.length if self.queue.worker is self else 0,
            self.reserved_bytes,
            max(0.0, self.expires_s - now_s) if expires else None,
            self.stage,
            self.done,
        )

    def turn_ends_s(self, fairness_s: float) -> float:
        """From when on it may be held for an overdue model; infinite while it loads."""
        return self.ready_s + max(fairness_s, self.ready_s - self.started_s) if self.state == "ready" else math.inf


@dataclass(slots=True, eq=False)
class ModelQueue:
    """Everything about one model (``demand.key``): its worker, who waits, what was measured, what failed.

    ``worker`` is the one that serves or loads; workers that are ending are not it.
    """

    demand: Demand
    worker: Worker | None = None
    hungry_since_s: float | None = None
    length: int = 0
    preloads: list[Waiting] = field(default_factory=list)
    service_s: float = 0.0
    load_s: float = 0.0
    measured_bytes: int = 0
    failures: int = 0
    retry_at_s: float = 0.0
    last_error: HomelabError | None = None
    _heap: list[Waiting] = field(default_factory=list)

    def push(self, waiting: Waiting) -> None:
        self.length += 1
        if waiting.request.preload:
            self.preloads.append(waiting)
        else:
            heapq.heappush(self._heap, waiting)

    def pop(self) -> Waiting | None:
        """The next request that wants a lease, or None; preloads are not among them."""
        self._drop_gone()
        if not self._heap:
            return None
        self.length -= 1
        return heapq.heappop(self._heap)

    def take_preloads(self) -> list[Waiting]:
        taken, self.preloads = self.preloads, []
        self.length -= len(taken)
        return taken

    def withdraw(self, waiting: Waiting) -> None:
        """Take one out; in the heap it stays as a mark until it comes up or marks are the larger part."""
        self.length -= 1
        waiting.gone = True
        if waiting.request.preload:
            self.preloads.remove(waiting)
        elif len(self._heap) > 2 * self.length + 64:
            self._heap = [entry for entry in self._heap if not entry.gone]
            heapq.heapify(self._heap)

    def rank(self) -> tuple[float, int]:
        """The rank of the most urgent one that waits."""
        self._drop_gone()
        heads = self._heap[:1] + self.preloads[:1]
        return min(entry.rank for entry in heads)

    def place(self, waiting: Waiting) -> int:
        """1 for the next in line."""
        others = self._heap + self.preloads
        return 1 + sum(1 for entry in others if not entry.gone and entry.rank < waiting.rank)

    def needed_bytes(self, budget_bytes: int) -> int:
        """Memory for the next load: what was measured last time, else the estimate.

        A model that once ran within the budget is not refused for its measurement: it gets the whole budget.
        """
        if not self.measured_bytes:
            return self.demand.footprint_bytes
        return min(self.measured_bytes, max(budget_bytes, self.demand.footprint_bytes))

    def served(self, duration_s: float) -> None:
        """Learn the drain rate from a lease that ended."""
        if self.service_s:
            self.service_s += _SERVICE_WEIGHT * (duration_s - self.service_s)
        else:
            self.service_s = duration_s

    def wait_s(self, place: int, now_s: float) -> float:
        """When the request at ``place`` can expect its lease: the rest of the load and the drain rate."""
        load_s = 0.0
        if self.worker is None:
            load_s = self.load_s
        elif self.worker.state == "loading":
            load_s = max(0.0, self.load_s - (now_s - self.worker.started_s))
        return load_s + place * (self.service_s or UNMEASURED_SERVICE_S) / self.demand.parallel

    def _drop_gone(self) -> None:
        while self._heap and self._heap[0].gone:
            heapq.heappop(self._heap)
