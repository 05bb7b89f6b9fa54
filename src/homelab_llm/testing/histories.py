"""Histories: seeded random lives of a fleet, played against the real scheduler in simulated time, checked at each step.

``run_history(seed)`` is deterministic. It plays clients, workers, the operator and changes of daemons; it never looks
inside the scheduler, only at the effects and the public views. What must hold is in ``witness``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from homelab_llm.core.errors import LoadFailed as LoadError
from homelab_llm.core.errors import WorkerCrashed
from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import (
    Adopted,
    Cancel,
    Condemn,
    Demand,
    Drain,
    Effect,
    Event,
    Grant,
    HandOver,
    Kill,
    LeaseEnd,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    Memory,
    Refuse,
    Resume,
    SetTerms,
    Start,
    Submit,
    Terms,
    Tick,
    Unload,
    Unquarantine,
    WorkerExit,
)
from homelab_llm.testing.witness import Process, Report, Witness


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
            min_stay_s=random.choice((0.0, 0.5, 4.0)),
            max_running=random.choice((0, 0, 1, 3, 6)),
            reserved_slots=random.choice((0, 1, 2)),
            quarantine_after=random.choice((1, 2, 1000)),
            backoff_s=random.choice((0.0, 1.0)),
            aging_s=random.choice((0.5, 3.0)),
        )
        return cls(models, budget, limits, patient, random.choice((0.1, 3.0)), random.choice((0.1, 2.0)), 0.2)


def run_history(seed: int, *, arrivals: int = 30) -> Report:
    """Play one history to its end: ``arrivals`` happenings, then quiet until everything has ended."""
    return History(seed, arrivals).run()


class History:
    """One history: the world around a scheduler."""

    def __init__(self, seed: int, arrivals: int) -> None:
        self.random = Random(seed)  # noqa: S311 - chance for tests, not for secrets
        self.world = self.make_world()
        self.seen = Witness(seed, self.world.limits, self.world.budget_bytes)
        self.report = self.seen.report
        self.arrivals = arrivals
        self.ids = 0
        self.scheduler = Scheduler(self.world.budget_bytes, self.new_id, self.world.limits)
        self.before: list[Scheduler] = []
        self.held: dict[str, str] = {}  # request → its placeholder in a later daemon
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0

    def make_world(self) -> World:
        return World.of(self.random)

    def new_id(self) -> str:
        self.ids += 1
        return f"w{self.ids}"

    @property
    def now_s(self) -> float:
        return self.seen.now_s

    def run(self) -> Report:
        at_s = 0.0
        for _ in range(self.arrivals):
            at_s += self.random.choice((0.0, 0.0, 0.05, 0.5, 4.0)) * self.random.random()
            self.at(at_s, self.happening)
        seen = self.seen
        while self.report.steps < 100_000:
            wake_s = self.scheduler.next_wake_s()
            next_s = self.agenda[0][0] if self.agenda else math.inf
            if wake_s is not None and wake_s < next_s:
                if not self.agenda and not seen.waiting and not seen.running:
                    break  # only keep-alive timers are left
                seen.now_s = max(seen.now_s, wake_s)
                self.feed(Tick())
            elif self.agenda:
                seen.now_s, _, act = heapq.heappop(self.agenda)
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
        if self.world.patient or roll < 0.66:
            self.submit()
        elif roll < 0.73 and self.seen.waiting:
            self.cancel(self.random.choice(list(self.seen.waiting)))
        elif roll < 0.77:
            self.crash()
        elif roll < 0.81:
            self.unload()
        elif roll < 0.84:
            self.seen.budget_bytes = max(1, round(self.world.budget_bytes * self.random.choice((0.5, 0.8, 1.0))))
            self.feed(Memory(self.seen.budget_bytes))
        elif roll < 0.90:
            self.set_terms()
        elif roll < 0.92:
            self.adopt()
        elif roll < 0.95:
            self.change_daemon()
        elif roll < 0.97:
            self.unquarantine()
        elif roll < 0.98 and self.seen.processes:
            self.feed(Measured(self.random.choice(list(self.seen.processes)), self.random.randint(1, 8)))
        else:
            self.feed(LeaseEnd(f"nobody-{self.ids}"))

    def submit(self) -> None:
        self.ask(
            Submit(
                "",
                self.random.choice(self.world.models),
                self.random.choice((None, None, None, 0.0, 5.0, -1.0)),
                self.random.choice((0, 0, 0, 10)),
                preload=self.random.random() < 0.1,
            )
        )

    def ask(self, wish: Submit) -> None:
        """Submit it as a new request."""
        self.report.requests += 1
        name = f"r{self.report.requests}"
        event = Submit(name, wish.demand, wish.keep_alive_s, wish.priority, wish.preload)
        self.seen.submitted(event)
        self.feed(event)
        self.seen.answered(event)

    def cancel(self, request_id: str) -> None:
        self.seen.end_wait(request_id)
        self.report.cancelled += 1
        self.feed(Cancel(request_id))

    def crash(self) -> None:
        """A worker dies, or falls silent."""
        if not self.seen.processes:
            return
        worker_id = self.random.choice(list(self.seen.processes))
        process = self.seen.processes[worker_id]
        if self.random.random() < 0.3 and process.state == "ready":
            process.forced = True
            self.seen.failed(process.demand.key)
            self.feed(Condemn(worker_id))
        else:
            self.exit(worker_id, WorkerCrashed("the worker crashed"))

    def unload(self) -> None:
        force = self.random.random() < 0.4
        model = self.random.choice(self.world.models)
        for process in self.seen.processes.values():
            if process.demand.key == model.key:
                process.forced = True
                process.retiring |= bool(process.leases)
        self.feed(Unload(model.key, force))

    def set_terms(self) -> None:
        model = self.random.choice(self.world.models)
        terms = Terms(self.random.random() < 0.4, self.random.choice((None, 0.0, 3.0, -1.0)))
        self.seen.terms[model.key] = terms
        self.feed(SetTerms(model, terms))

    def unquarantine(self) -> None:
        key = self.random.choice(self.world.models).key
        self.seen.failures[key], self.seen.paused_until_s[key] = 0, 0.0
        self.feed(Unquarantine(key))

    def adopt(self) -> None:
        """A worker from nowhere: it serves, loads, or must go."""
        model, worker_id = self.random.choice(self.world.models), self.new_id()
        roll = self.random.random()
        state = "loading" if roll < 0.3 else "ready"
        self.seen.processes[worker_id] = Process(model, model.footprint_bytes, state, self.now_s, self.now_s)
        if state == "loading":
            self.at(self.now_s + self.world.load_s, lambda: self.feed(Loaded(worker_id)))
        unwanted = "its model is gone" if roll > 0.8 else ""
        self.feed(Adopted(worker_id, model, ready=state == "ready", unwanted=unwanted))

    def change_daemon(self) -> None:
        """Another daemon takes over, or fails to; who waited is passed on to the one that goes on."""
        passed = [request for request, _ in self.seen.waiting.values()]
        for effect in self.scheduler.step(HandOver(), self.now_s):
            self.seen.expect(isinstance(effect, Refuse), f"{effect} while handing over")
        self.seen.expect(not self.scheduler.waiting, "requests wait in a daemon that handed over")
        self.seen.waiting.clear()
        self.seen.per_model.clear()
        if self.random.random() < 0.5:
            self.step(Resume())
        else:
            self.succeed()
        for request in passed:  # they keep their order, not their age
            self.seen.submitted(request)
            self.step(request)
        self.seen.check(self.scheduler)

    def succeed(self) -> None:
        """The next daemon: adopts all workers and holds the slots of what the old one still answers."""
        self.report.handovers += 1
        self.before.append(self.scheduler)
        self.scheduler = Scheduler(self.seen.budget_bytes, self.new_id, self.world.limits)
        self.seen.failures.clear()
        self.seen.paused_until_s.clear()
        for model in self.world.models:
            self.step(SetTerms(model, self.seen.terms.get(model.key, Terms())))
        for worker_id, process in list(self.seen.processes.items()):
            unwanted = "it was ending" if process.state == "ending" or self.random.random() < 0.1 else ""
            process.state = "ready" if process.state == "ending" else process.state
            process.started_s = process.ready_s = self.now_s
            held = {request_id: f"held-{request_id}-{len(self.before)}" for request_id in process.leases}
            process.leases = dict.fromkeys(held.values(), False)
            process.retiring = bool(unwanted)
            for request_id, placeholder in held.items():
                self.held[request_id] = placeholder
                del self.seen.running[request_id]
                self.seen.running[placeholder] = worker_id
            ready, names = process.state == "ready", tuple(held.values())
            self.step(Adopted(worker_id, process.demand, process.reserved_bytes, ready, unwanted, names))

    def exit(self, worker_id: str, error: WorkerCrashed | None) -> None:
        process = self.seen.processes.pop(worker_id, None)
        if process is not None:
            self.seen.exited(process, crashed=error is not None)
            self.feed(WorkerExit(worker_id, error))

    # --- what the scheduler answers -------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        self.report.steps += 1
        if isinstance(event, LeaseEnd):
            for before in self.before:
                self.seen.expect(not before.step(event, self.now_s), f"{event} moves a daemon that handed over")
            while event.request_id in self.held:
                event = LeaseEnd(self.held.pop(event.request_id), well=False)
        self.step(event)
        self.seen.check(self.scheduler)

    def step(self, event: Event) -> None:
        self.expectations(event)
        for effect in self.scheduler.step(event, self.now_s):
            self.effect(effect)

    def expectations(self, event: Event) -> None:
        """What the world knows before the scheduler hears of it."""
        processes = self.seen.processes
        if isinstance(event, Loaded):
            process = processes.get(event.worker_id)
            if process is not None and process.state == "loading":
                process.state, process.ready_s = "ready", self.now_s
                process.reserved_bytes = event.footprint_bytes or process.reserved_bytes
        elif isinstance(event, LoadFailed) and event.worker_id in processes:
            if processes[event.worker_id].state == "loading":
                self.seen.failed(processes[event.worker_id].demand.key)
            processes[event.worker_id].state = "ending"
            self.at(self.now_s + self.world.exit_s, lambda: self.exit(event.worker_id, None))
        elif isinstance(event, LeaseEnd):
            self.seen.lease_ended(event.request_id, well=event.well)
        elif isinstance(event, Measured) and processes[event.worker_id].state != "loading":
            process = processes[event.worker_id]
            process.reserved_bytes = max(process.reserved_bytes, event.footprint_bytes)

    def effect(self, effect: Effect) -> None:
        match effect:
            case Start():
                self.start(effect)
            case Drain() | Kill():
                self.seen.end(effect)
                self.at(self.now_s + self.world.exit_s, lambda: self.exit(effect.worker_id, None))
            case Grant():
                self.grant(effect)
            case Refuse():
                self.refuse(effect)

    def start(self, effect: Start) -> None:
        demand, worker_id = effect.demand, effect.worker_id
        view = next(w for w in self.scheduler.workers() if w.worker_id == worker_id)
        self.seen.start(effect, view.reserved_bytes)
        if not self.world.patient and self.random.random() < 0.15:
            self.later(self.world.load_s, LoadFailed(worker_id, LoadError("broken")))
        else:
            self.later(self.world.load_s / 2, LoadProgress(worker_id, "loading", 0.5))
            measured = 0 if self.world.patient else self.random.choice((0, 0, max(1, demand.footprint_bytes - 1)))
            self.at(self.now_s + self.world.load_s * 1.6, lambda: self.feed(Loaded(worker_id, measured)))

    def grant(self, effect: Grant) -> None:
        if self.seen.grant(effect) is not None:
            well = self.world.patient or self.random.random() < 0.8
            self.later(self.world.service_s, LeaseEnd(effect.request_id, well))

    def refuse(self, effect: Refuse) -> None:
        request = self.seen.refuse(effect)
        if request is None or effect.error.code != "queue_full" or self.random.random() < 0.5:
            return
        seconds = effect.error.facts["retry_after_s"]
        if isinstance(seconds, int) and seconds < 60:
            self.at(self.now_s + seconds, lambda: self.ask(request))

    # --- what must hold in the end --------------------------------------------------------------------------

    def check_end(self) -> None:
        self.seen.check_end(self.report.requests)
        if self.world.patient:
            bound_s, waited_s = self.longest_fair_wait_s(), self.report.longest_wait_s
            self.seen.expect(waited_s <= bound_s, f"waited {waited_s:.1f} s > {bound_s}")

    def longest_fair_wait_s(self) -> float:
        """A batch request lets the interactive ones of its aging time pass; then it has the smallest rank but for those
        that came before it. Each turn of a model answers at least one of these; under ``max_running`` a turn may have
        to wait for those that run elsewhere.
        """
        world, limits = self.world, self.world.limits
        load_s = 1.6 * world.load_s
        stay_s = min(limits.min_stay_s, load_s)
        turn_s = max(limits.turn_s, load_s) + stay_s + 1.5 * world.service_s + world.exit_s + load_s
        if limits.max_running:
            turn_s += 1.5 * world.service_s * self.most_waiting()
        return 10 * limits.aging_s + limits.turn_s + (self.most_waiting() + 1) * turn_s

    def most_waiting(self) -> int:
        return self.report.requests
