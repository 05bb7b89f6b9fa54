"""The scheduler's records: workers, the queue of each model, limits. Mutable, owned by one ``Scheduler``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.fleet.appointments import Appointments
from homelab_llm.inference.fleet.line import Line
from homelab_llm.inference.fleet.vocabulary import BATCH_PRIORITY, NO_TERMS, Demand, Submit, Terms

State = Literal["loading", "ready", "retiring", "ending", "gone"]

UNMEASURED_SERVICE_S = 5.0
"""Assumed length of a request of a model that has not finished one yet; only for ``retry_after_s``."""

UNMEASURED_LOAD_S = 10.0
"""Assumed length of a load of a model that was never loaded, at least; only for ``retry_after_s``."""

_SERVICE_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator and the product allow; seconds unless the name says otherwise.

    ``turn_s``: a model without a worker waits this long before busy ones must make room, and a worker serves at
    least this long (or as long as its load took) before it must. ``min_stay_s``: a model just loaded is not evicted
    for another before this (or as long as its load took, if that is less). ``max_running``: requests at once over all
    models, 0 = no limit. ``reserved_slots``: slots of a worker that batch requests leave free, at most all but one.
    ``quarantine_after``: failures in a row after which a model is not tried again; from the second on, the next try
    comes ``backoff_s`` later for each failure. ``aging_s``: how much earlier a request must have come to go before one
    whose priority is smaller by one.
    """

    keep_alive_s: float = 300.0
    queue_limit: int = 256
    max_wait_s: float = 600.0
    turn_s: float = 30.0
    min_stay_s: float = 2.0
    max_running: int = 0
    reserved_slots: int = 1
    quarantine_after: int = 3
    backoff_s: float = 2.0
    aging_s: float = 3.0

    def batch_most(self, slots: int) -> int:
        """How many of ``slots`` batch requests may use."""
        return max(min(slots, 1), slots - self.reserved_slots)

    def queue_most(self, priority: int) -> int:
        """How many may wait for one model before a request of this priority is refused.

        A quarter of the queue is for interactive requests only: batch can fill the rest, not shut them out.
        """
        return self.queue_limit if priority < BATCH_PRIORITY else self.queue_limit - self.queue_limit // 4


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
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class QueueView:
    """A model for which requests wait while it has no worker."""

    demand: Demand
    waiting: int
    since_s: float


@dataclass(frozen=True, slots=True)
class QuarantineView:
    """A model that failed too often; ``reason`` is the last failure."""

    demand: Demand
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """Memory as it stands for a model that might be loaded.

    ``reachable_bytes``: what it could get when every other model that is not pinned went. ``evictable_bytes``: what
    idle models would give back now. ``evicts`` and ``waits_for`` are the models that would go at once and when idle.
    """

    budget_bytes: int
    free_bytes: int
    evictable_bytes: int
    pinned_bytes: int
    reachable_bytes: int
    loaded: bool
    evicts: tuple[str, ...]
    waits_for: tuple[str, ...]


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
    ``held_for``: the queue for which it gets no new request, or None. ``batch_leases`` are among ``leases``.
    """

    worker_id: str
    demand: Demand
    queue: ModelQueue
    reserved_bytes: int
    started_s: float
    standing_keep_alive_s: float
    keep_alive_s: float
    batch_slots: int
    state: State = "loading"
    leases: int = 0
    batch_leases: int = 0
    ready_s: float = math.inf
    last_used_s: float = 0.0
    expires_s: float = math.inf
    held_for: ModelQueue | None = None
    stage: str = "loading"
    done: float = 0.0

    @property
    def open(self) -> bool:
        """Whether an interactive request may be granted now."""
        return self.state == "ready" and self.leases < self.demand.parallel and self.held_for is None

    @property
    def open_to_batch(self) -> bool:
        """Whether a batch request may be granted now; the reserved slots are not for it."""
        return self.open and self.batch_leases < self.batch_slots

    @property
    def idle(self) -> bool:
        """Nothing runs in it and nothing waits for it; a load for which nobody waits any more counts too."""
        return self.leases == 0 and self.state in ("loading", "ready") and not self.queue.length

    @property
    def pinned(self) -> bool:
        """Whether the operator wants its model to stay."""
        return self.queue.terms.pinned

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
            self.pinned,
        )

    def turn_ends_s(self, turn_s: float) -> float:
        """From when on it may be held for an overdue model; infinite while it loads."""
        return self.ready_s + max(turn_s, self.ready_s - self.started_s) if self.state == "ready" else math.inf

    def stays_until_s(self, min_stay_s: float) -> float:
        """Until when it is not evicted for another model though it is idle."""
        return self.ready_s + min(min_stay_s, self.ready_s - self.started_s) if self.state == "ready" else -math.inf


@dataclass(slots=True, eq=False)
class ModelQueue:
    """Everything about one model (``demand.key``): its worker, who waits, what was measured, what failed.

    ``worker`` is the one that serves or loads; workers that are ending are not it. ``failures`` counts those in a row
    since a request ended well.
    """

    demand: Demand
    worker: Worker | None = None
    terms: Terms = NO_TERMS
    hungry_since_s: float | None = None
    length: int = 0
    preloads: list[Waiting] = field(default_factory=list)
    service_s: float = 0.0
    load_s: float = 0.0
    measured_bytes: int = field(init=False)
    failures: int = 0
    retry_at_s: float = 0.0
    last_error: HomelabError | None = None
    quarantined: bool = False
    appointments: Appointments = field(default_factory=Appointments)
    _interactive: Line[Waiting] = field(default_factory=Line)
    _batch: Line[Waiting] = field(default_factory=Line)

    def __post_init__(self) -> None:
        self.measured_bytes = self.demand.measured_bytes

    def push(self, waiting: Waiting) -> None:
        self.length += 1
        if waiting.request.preload:
            self.preloads.append(waiting)
        else:
            self._line(waiting).push(waiting)

    def head(self, *, batch: bool) -> Waiting | None:
        """The most urgent request that wants a lease, or None; preloads are not among them.

        Args:
            batch: whether batch requests count.
        """
        first = self._interactive.head()
        second = self._batch.head() if batch else None
        if first is None or second is None:
            return first or second
        return min(first, second)

    def take(self, waiting: Waiting) -> None:
        """Take out what ``head`` gave."""
        self.length -= 1
        self._line(waiting).pop()

    def take_all(self) -> list[Waiting]:
        """Take everybody out, preloads first."""
        taken = self.take_preloads()
        while (waiting := self.head(batch=True)) is not None:
            self.take(waiting)
            taken.append(waiting)
        return taken

    def take_preloads(self) -> list[Waiting]:
        taken, self.preloads = self.preloads, []
        self.length -= len(taken)
        return taken

    def withdraw(self, waiting: Waiting) -> None:
        """Take one out of the middle."""
        self.length -= 1
        if waiting.request.preload:
            self.preloads.remove(waiting)
        else:
            self._line(waiting).withdraw(waiting)

    def rank(self) -> tuple[float, int]:
        """The rank of the most urgent one that waits."""
        heads = [self._interactive.head(), self._batch.head(), *self.preloads[:1]]
        return min(entry.rank for entry in heads if entry is not None)

    def place(self, waiting: Waiting) -> int:
        """1 for the next in line."""
        others = [*self._interactive, *self._batch, *self.preloads]
        return 1 + sum(1 for entry in others if entry.rank < waiting.rank)

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

    def rate(self, slots: int) -> float:
        """How many requests per second ``slots`` finish."""
        return slots / (self.service_s or UNMEASURED_SERVICE_S)

    def starts_in_s(self, now_s: float, turn_s: float) -> float:
        """When the model will serve, as far as can be told: the rest of the load, and before that of a turn."""
        worker = self.worker
        if worker is None:
            since_s = now_s if self.hungry_since_s is None else self.hungry_since_s
            return max(0.0, turn_s - (now_s - since_s)) + (self.load_s or UNMEASURED_LOAD_S)
        if worker.state != "loading":
            return 0.0
        elapsed_s = now_s - worker.started_s
        if elapsed_s < self.load_s:
            return self.load_s - elapsed_s
        return max(UNMEASURED_LOAD_S, elapsed_s)  # nobody knows; what has lasted long lasts longer

    def _line(self, waiting: Waiting) -> Line[Waiting]:
        return self._interactive if waiting.request.priority < BATCH_PRIORITY else self._batch
