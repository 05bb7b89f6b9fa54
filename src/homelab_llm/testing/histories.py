"""Histories: seeded random lives of a fleet, played against the real scheduler in simulated time, checked at each step.

``run_history(seed)`` is deterministic. It plays clients, workers and the operator; it never looks inside the
scheduler, only at the effects and the public views. About 800 histories a second and core.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from homelab_llm.core.errors import LoadFailed as LoadError
from homelab_llm.core.errors import WorkerCrashed
from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import (
    Adopted,
    AliasChange,
    Cancel,
    Demand,
    Drain,
    Effect,
    Event,
    Flip,
    Grant,
    Kill,
    LeaseEnd,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    Memory,
    Refuse,
    Start,
    Submit,
    Tick,
    Unload,
    WorkerExit,
)


@dataclass(slots=True)
class Report:
    """What a history showed; ``violations`` must be empty."""

    seed: int
    steps: int = 0
    requests: int = 0
    granted: int = 0
    refused: int = 0
    cancelled: int = 0
    starts: int = 0
    evictions: int = 0
    longest_wait_s: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Process:
    demand: Demand
    reserved_bytes: int
    state: str  # loading ready ending
    leases: set[str] = field(default_factory=set)
    forced: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """The odds of one history. ``patient``: nobody gives up and nothing breaks, so that waits can be bounded."""

    models: tuple[Demand, ...]
    budget_bytes: int
    limits: Limits
    patient: bool
    load_s: float
    service_s: float
    exit_s: float

    @classmethod
    def of(cls, random: Random) -> World:
        budget = random.randint(8, 24)
        models = tuple(
            Demand(f"m{n}", f"model-{n}", random.randint(1, budget + (random.random() < 0.2) * 6), random.randint(1, 4))
            for n in range(random.randint(1, 5))
        )
        patient = random.random() < 0.3
        limits = Limits(
            keep_alive_s=random.choice((0.0, 2.0, 30.0, -1.0)),
            queue_limit=1000 if patient else random.choice((2, 8, 100)),
            max_wait_s=math.inf if patient else random.choice((5.0, 60.0)),
            turn_s=random.choice((0.0, 1.0, 10.0)),
            aging_s=random.choice((0.5, 3.0)),
            backoff_s=0.0,
            reserved_slots=0,
        )
        return cls(models, budget, limits, patient, random.choice((0.1, 3.0)), random.choice((0.1, 2.0)), 0.2)


def run_history(seed: int, *, arrivals: int = 30) -> Report:
    """Play one history to its end: ``arrivals`` happenings, then quiet until everything has ended."""
    return History(seed, arrivals).run()


class History:
    """One history: the world around a scheduler, and what must hold in it."""

    def __init__(self, seed: int, arrivals: int) -> None:
        self.random = Random(seed)  # noqa: S311 - chance for tests, not for secrets
        self.world = self.make_world()
        self.report = Report(seed)
        self.arrivals = arrivals
        self.now_s = 0.0
        self.budget_bytes = self.world.budget_bytes
        self.ids = 0
        self.scheduler = Scheduler(self.budget_bytes, self.new_id, self.world.limits)
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.processes: dict[str, _Process] = {}
        self.waiting: dict[str, tuple[Submit, float]] = {}
        self.per_model: dict[str, int] = defaultdict(int)
        self.running: dict[str, str] = {}
        self.ended: set[str] = set()
        self.aliases: dict[str, str | None] = {}

    def make_world(self) -> World:
        return World.of(self.random)

    def new_id(self) -> str:
        self.ids += 1
        return f"w{self.ids}"

    def run(self) -> Report:
        at_s = 0.0
        for _ in range(self.arrivals):
            at_s += self.random.choice((0.0, 0.0, 0.05, 0.5, 4.0)) * self.random.random()
            self.at(at_s, self.happening)
        while self.report.steps < 100_000:
            wake_s = self.scheduler.next_wake_s()
            next_s = self.agenda[0][0] if self.agenda else math.inf
            if wake_s is not None and wake_s < next_s:
                if not self.agenda and not self.waiting and not self.running:
                    break  # only keep-alive timers are left
                self.now_s = max(self.now_s, wake_s)
                self.feed(Tick())
            elif self.agenda:
                self.now_s, _, act = heapq.heappop(self.agenda)
                act()
            else:
                break
        self.check_end()
        return self.report

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.agenda, (time_s, self.order, act))

    def later(self, mean_s: float, event: Event) -> None:
        self.at(self.now_s + mean_s * (0.5 + self.random.random()), lambda: self.feed(event))

    # --- what happens ---------------------------------------------------------------------------------------

    def happening(self) -> None:
        roll = self.random.random()
        if self.world.patient or roll < 0.70:
            self.submit()
        elif roll < 0.78 and self.waiting:
            self.cancel(self.random.choice(list(self.waiting)))
        elif roll < 0.82:
            self.crash()
        elif roll < 0.87:
            self.unload()
        elif roll < 0.91:
            self.budget_bytes = max(1, round(self.world.budget_bytes * self.random.choice((0.5, 0.8, 1.0))))
            self.feed(Memory(self.budget_bytes))
        elif roll < 0.94:
            self.feed(AliasChange("chat", self.random.choice((None, *self.world.models))))
        elif roll < 0.96:
            self.adopt()
        elif roll < 0.98 and self.processes:
            self.feed(Measured(self.random.choice(list(self.processes)), self.random.randint(1, 8)))
        else:
            self.feed(LeaseEnd(f"nobody-{self.ids}"))

    def submit(self) -> None:
        self.report.requests += 1
        event = Submit(
            f"r{self.report.requests}",
            self.random.choice(self.world.models),
            self.random.choice((None, None, None, 0.0, 5.0, -1.0)),
            self.random.choice((0, 0, 0, 10)),
            preload=self.random.random() < 0.1,
        )
        self.waiting[event.request_id] = (event, self.now_s)
        self.per_model[event.demand.key] += 1
        self.feed(event)

    def cancel(self, request_id: str) -> None:
        self.end_wait(request_id)
        self.report.cancelled += 1
        self.feed(Cancel(request_id))

    def crash(self) -> None:
        alive = [worker_id for worker_id in self.processes]
        if alive:
            self.exit(self.random.choice(alive), WorkerCrashed("the worker crashed"))

    def unload(self) -> None:
        force = self.random.random() < 0.4
        model = self.random.choice(self.world.models)
        for process in self.processes.values():
            if process.demand.key == model.key:
                process.forced = True
        self.feed(Unload(model.key, force))

    def adopt(self) -> None:
        model = self.random.choice(self.world.models)
        worker_id = self.new_id()
        self.processes[worker_id] = _Process(model, model.footprint_bytes, "ready")
        self.feed(Adopted(worker_id, model))

    def exit(self, worker_id: str, error: WorkerCrashed | None) -> None:
        process = self.processes.pop(worker_id, None)
        if process is not None:
            self.feed(WorkerExit(worker_id, error))

    # --- what the scheduler answers -------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        self.report.steps += 1
        if isinstance(event, Loaded):
            self.before_loaded(event)
        elif isinstance(event, LoadFailed) and event.worker_id in self.processes:
            self.processes[event.worker_id].state = "ending"
            self.at(self.now_s + self.world.exit_s, lambda: self.exit(event.worker_id, None))
        elif isinstance(event, LeaseEnd):
            worker_id = self.running.pop(event.request_id, "")
            if worker_id in self.processes:
                self.processes[worker_id].leases.discard(event.request_id)
        elif isinstance(event, Measured):
            process = self.processes[event.worker_id]
            if process.state != "loading":
                process.reserved_bytes = max(process.reserved_bytes, event.footprint_bytes)
        for effect in self.scheduler.step(event, self.now_s):
            self.effect(effect)
        self.check_state()

    def before_loaded(self, event: Loaded) -> None:
        process = self.processes.get(event.worker_id)
        if process is not None and process.state == "loading":
            process.state = "ready"
            process.reserved_bytes = event.footprint_bytes or process.reserved_bytes

    def effect(self, effect: Effect) -> None:
        match effect:
            case Start():
                self.start(effect)
            case Drain() | Kill():
                self.drain(effect)
            case Grant():
                self.grant(effect)
            case Refuse():
                self.report.refused += 1
                self.end_wait(effect.request_id)
            case Flip():
                self.flip(effect)

    def start(self, effect: Start) -> None:
        self.report.starts += 1
        demand, worker_id = effect.demand, effect.worker_id
        self.expect(self.per_model[demand.key] > 0, f"{worker_id} started for nobody")
        self.processes[worker_id] = _Process(demand, demand.footprint_bytes, "loading")
        view = next(w for w in self.scheduler.workers() if w.worker_id == worker_id)
        self.processes[worker_id].reserved_bytes = view.reserved_bytes
        total = sum(process.reserved_bytes for process in self.processes.values())
        self.expect(total <= self.budget_bytes, f"started into {total} of {self.budget_bytes}")
        if not self.world.patient and self.random.random() < 0.15:
            self.later(self.world.load_s, LoadFailed(worker_id, LoadError("broken")))
        else:
            self.later(self.world.load_s / 2, LoadProgress(worker_id, "loading", 0.5))
            measured = 0 if self.world.patient else self.random.choice((0, 0, max(1, demand.footprint_bytes - 1)))
            self.at(self.now_s + self.world.load_s * 1.6, lambda: self.feed(Loaded(worker_id, measured)))

    def drain(self, effect: Drain | Kill) -> None:
        process = self.processes.get(effect.worker_id)
        if process is None:
            self.violate(f"{effect} of a worker that is gone")
            return
        if isinstance(effect, Drain):
            self.expect(process.state != "ending", f"{effect} twice")
            self.expect(not process.leases, f"{effect} while requests run")
            self.report.evictions += effect.reason.startswith("evicted")
        else:
            self.expect(process.forced, f"{effect} without force")
        process.state = "ending"
        self.at(self.now_s + self.world.exit_s, lambda: self.exit(effect.worker_id, None))

    def grant(self, effect: Grant) -> None:
        self.report.granted += 1
        request = self.end_wait(effect.request_id)
        process = self.processes.get(effect.worker_id)
        if request is None or process is None:
            self.violate(f"{effect}: unknown request or worker")
            return
        self.expect(process.state == "ready", f"{effect} in state {process.state}")
        self.expect(process.demand.key == request.demand.key, f"{effect}: another model")
        if request.preload:
            return
        process.leases.add(effect.request_id)
        self.running[effect.request_id] = effect.worker_id
        self.expect(len(process.leases) <= process.demand.parallel, f"{effect}: more leases than slots")
        self.later(self.world.service_s, LeaseEnd(effect.request_id))

    def flip(self, effect: Flip) -> None:
        self.expect(self.aliases.get(effect.alias) != effect.worker_id, f"{effect} changes nothing")
        self.aliases[effect.alias] = effect.worker_id
        if effect.worker_id is not None:
            process = self.processes.get(effect.worker_id)
            self.expect(process is not None and process.state == "ready", f"{effect}: not ready")

    def end_wait(self, request_id: str) -> Submit | None:
        request, since_s = self.waiting.pop(request_id, (None, self.now_s))
        self.expect(request is not None and request_id not in self.ended, f"{request_id} ended twice")
        self.ended.add(request_id)
        if request is not None:
            self.per_model[request.demand.key] -= 1
            self.report.longest_wait_s = max(self.report.longest_wait_s, self.now_s - since_s)
        return request

    # --- what must hold -------------------------------------------------------------------------------------

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.violate(text)

    def violate(self, text: str) -> None:
        self.report.violations.append(f"seed {self.report.seed}, step {self.report.steps}, {self.now_s:.2f} s: {text}")

    def check_state(self) -> None:
        """After every step: nothing that could be granted or started now is left waiting."""
        scheduler = self.scheduler
        self.expect(scheduler.waiting == len(self.waiting), "requests were lost or invented")
        total = sum(process.reserved_bytes for process in self.processes.values())
        self.expect(scheduler.reserved_bytes == total, f"reserved {scheduler.reserved_bytes}, really {total}")
        queues = scheduler.queues()
        someone_overdue = any(self.now_s - queue.since_s >= self.world.limits.turn_s for queue in queues)
        staying = sum(process.reserved_bytes for process in self.processes.values() if process.state != "ending")
        for view in scheduler.workers():
            if view.state == "ready" and view.waiting and view.leases < view.demand.parallel:
                self.expect(someone_overdue, f"{view.worker_id} has a free slot and {view.waiting} wait")
            if view.state == "ready" and not view.leases:
                self.expect(staying <= self.budget_bytes, f"{view.worker_id} is idle while memory is short")
        if queues and not scheduler.workers():
            self.violate(f"{queues[0].demand.name} waits with all memory free")
        if queues and scheduler.next_wake_s() is None and not self.processes:
            self.violate("asleep while requests wait")

    def check_end(self) -> None:
        self.expect(not self.waiting, f"never ended: {sorted(self.waiting)}")
        self.expect(not self.running, f"leases never ended: {sorted(self.running)}")
        self.expect(len(self.ended) == self.report.requests, "a request ended not exactly once")
        if self.world.patient:
            bound_s = self.longest_fair_wait_s()
            self.expect(self.report.longest_wait_s <= bound_s, f"waited {self.report.longest_wait_s:.1f} s > {bound_s}")

    def longest_fair_wait_s(self) -> float:
        """A batch request lets the interactive ones of its aging time pass; then it has the smallest rank but for those
        that came before it. Each turn of a model answers at least one of these.
        """
        world, limits = self.world, self.world.limits
        load_s = 1.6 * world.load_s
        turn_s = max(limits.turn_s, load_s) + 1.5 * world.service_s + world.exit_s + load_s
        return 10 * limits.aging_s + limits.turn_s + (self.most_waiting() + 1) * turn_s

    def most_waiting(self) -> int:
        return self.report.requests
