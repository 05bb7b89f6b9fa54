"""A witness: keeps its own records of a fleet from events and effects alone, and says what must not have happened."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

from homelab_llm.inference.fleet.scheduler import Scheduler
from homelab_llm.inference.fleet.state import Limits
from homelab_llm.inference.fleet.vocabulary import (
    BATCH_PRIORITY,
    NO_TERMS,
    Demand,
    Drain,
    Grant,
    Kill,
    Refuse,
    Start,
    Submit,
    Terms,
)


@dataclass(slots=True)
class Report:
    """What a history showed; ``violations`` must be empty."""

    seed: int
    steps: int = 0
    requests: int = 0
    granted: int = 0
    batch: int = 0
    refused: int = 0
    cancelled: int = 0
    starts: int = 0
    evictions: int = 0
    quarantines: int = 0
    handovers: int = 0
    longest_wait_s: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Process:
    """A worker as the world sees it.

    ``forced``: the operator, or its silence, allows its end while requests run. ``retiring``: it ends after them.
    """

    demand: Demand
    reserved_bytes: int
    state: str  # loading ready ending
    started_s: float
    ready_s: float = math.inf
    leases: dict[str, bool] = field(default_factory=dict)  # request → whether batch
    forced: bool = False
    retiring: bool = False

    @property
    def batch(self) -> int:
        return sum(self.leases.values())


def is_batch(request: Submit) -> bool:
    """Whether it must leave the reserved slots free."""
    return request.priority >= BATCH_PRIORITY


class Witness:
    """The records of one history. ``now_s`` is set by who plays it."""

    def __init__(self, seed: int, limits: Limits, budget_bytes: int) -> None:
        self.limits = limits
        self.budget_bytes = budget_bytes
        self.report = Report(seed)
        self.now_s = 0.0
        self.processes: dict[str, Process] = {}
        self.waiting: dict[str, tuple[Submit, float]] = {}
        self.per_model: dict[tuple[str, bool], int] = defaultdict(int)
        self.running: dict[str, str] = {}
        self.ended: set[str] = set()
        self.terms: dict[str, Terms] = {}
        self.failures: dict[str, int] = defaultdict(int)
        self.paused_until_s: dict[str, float] = {}
        self.overdue_from_s = math.inf  # when a model has waited for its turn: workers may be held for it

    # --- what the world did ---------------------------------------------------------------------------------

    def submitted(self, event: Submit) -> None:
        self.waiting[event.request_id] = (event, self.now_s)
        if not event.preload:
            self.per_model[event.demand.key, is_batch(event)] += 1

    def waits_for(self, key: str) -> int:
        """How many wait for a model."""
        return sum(1 for request, _ in self.waiting.values() if request.demand.key == key)

    def answered(self, event: Submit) -> None:
        """It was granted or refused, or it waits: then its share of the queue had room."""
        if event.request_id in self.waiting and is_batch(event):
            length, most = self.waits_for(event.demand.key), self.limits.queue_limit
            self.expect(length <= most - most // 4, f"{event.request_id} is batch and waits at {length} of {most}")

    def failed(self, key: str) -> None:
        """A load failed, or a worker ended by itself."""
        self.failures[key] += 1
        self.report.quarantines += self.failures[key] == self.limits.quarantine_after
        self.paused_until_s[key] = self.now_s + self.limits.backoff_s * (self.failures[key] - 1)

    def lease_ended(self, request_id: str, *, well: bool) -> None:
        process = self.processes.get(self.running.pop(request_id, ""))
        if process is not None:
            process.leases.pop(request_id, None)
            if well and process.state != "ending":
                self.failures[process.demand.key] = 0

    def exited(self, process: Process, *, crashed: bool) -> None:
        if process.state == "loading" or (process.state == "ready" and crashed):
            self.failed(process.demand.key)

    def pinned_bytes(self, key: str) -> int:
        """What pinned workers of other models hold."""
        return sum(
            process.reserved_bytes
            for process in self.processes.values()
            if process.demand.key != key and self.pinned(process.demand.key)
            if process.state != "ending" and not process.retiring
        )

    def pinned(self, key: str) -> bool:
        return self.terms.get(key, NO_TERMS).pinned

    # --- what the scheduler answered ------------------------------------------------------------------------

    def start(self, effect: Start, reserved_bytes: int) -> None:
        self.report.starts += 1
        demand, worker_id = effect.demand, effect.worker_id
        self.expect(bool(self.waits_for(demand.key)), f"{worker_id} started for nobody")
        tired = self.failures[demand.key] >= self.limits.quarantine_after
        self.expect(not tired, f"{worker_id} started for a model that is quarantined")
        paused = self.now_s < self.paused_until_s.get(demand.key, 0.0)
        self.expect(not paused, f"{worker_id} started before its pause was over")
        twins = [p for p in self.processes.values() if p.demand.key == demand.key and p.state == "loading"]
        self.expect(not twins, f"{worker_id} started while another one loads")
        self.processes[worker_id] = Process(demand, reserved_bytes, "loading", self.now_s)
        total = sum(process.reserved_bytes for process in self.processes.values())
        self.expect(total <= self.budget_bytes, f"started into {total} of {self.budget_bytes}")

    def end(self, effect: Drain | Kill) -> None:
        process = self.processes.get(effect.worker_id)
        if process is None:
            self.violate(f"{effect} of a worker that is gone")
            return
        if isinstance(effect, Kill):
            self.expect(process.forced, f"{effect} without force")
        else:
            self.expect(process.state != "ending", f"{effect} twice")
            self.expect(not process.leases, f"{effect} while requests run")
            self._check_reason(effect, process)
        process.state = "ending"

    def _check_reason(self, effect: Drain, process: Process) -> None:
        self.report.evictions += effect.reason.startswith("evicted")
        if effect.reason in ("idle", "keep-alive is 0"):
            self.expect(not self.waits_for(process.demand.key), f"{effect} though somebody waits for it")
        own_will = effect.reason.startswith("evicted") or effect.reason in ("idle", "keep-alive is 0")
        self.expect(not (own_will and self.pinned(process.demand.key)), f"{effect} though it is pinned")
        if effect.reason.startswith("evicted for") and process.state == "ready":
            stay_s = min(self.limits.min_stay_s, process.ready_s - process.started_s)
            self.expect(self.now_s >= process.ready_s + stay_s, f"{effect} before its stay was over")

    def grant(self, effect: Grant) -> Submit | None:
        """The request, when it takes a slot."""
        self.report.granted += 1
        request, since_s = self.waiting.get(effect.request_id, (None, 0.0))
        process = self.processes.get(effect.worker_id)
        if request is None or process is None:
            self.violate(f"{effect}: unknown request or worker")
            return None
        self.expect(process.state == "ready", f"{effect} in state {process.state}")
        self.expect(process.demand.key == request.demand.key, f"{effect}: another model")
        self.end_wait(effect.request_id)
        if request.preload:
            return None
        process.leases[effect.request_id] = is_batch(request)
        self.running[effect.request_id] = effect.worker_id
        self.expect(len(process.leases) <= process.demand.parallel, f"{effect}: more leases than slots")
        self._check_limits(effect, request, process)
        self._check_order(effect, request, since_s, process)
        return request

    def _check_limits(self, effect: Grant, request: Submit, process: Process) -> None:
        running = sum(len(other.leases) for other in self.processes.values())
        most = self.limits.max_running or math.inf
        self.expect(running <= most, f"{effect}: {running} run, {most} may")
        if is_batch(request):
            self.report.batch += 1
            slots = max(1, process.demand.parallel - self.limits.reserved_slots)
            self.expect(process.batch <= slots, f"{effect}: batch in a reserved slot")
            everywhere = sum(other.batch for other in self.processes.values())
            most = max(1, most - self.limits.reserved_slots)
            self.expect(everywhere <= most, f"{effect}: {everywhere} batch requests run, {most} may")

    def _check_order(self, effect: Grant, request: Submit, since_s: float, process: Process) -> None:
        """Of those that could have had the slot, or under ``max_running`` the place, the smallest rank goes first."""
        everywhere = sum(other.batch for other in self.processes.values()) - is_batch(request)
        batch_most = (
            max(1, self.limits.max_running - self.limits.reserved_slots) if self.limits.max_running else math.inf
        )
        rank_s = since_s + request.priority * self.limits.aging_s
        for other, other_s in self.waiting.values():
            if other.preload or other_s + other.priority * self.limits.aging_s >= rank_s:
                continue
            if other.demand.key == request.demand.key:
                chances = [process]
            elif self.limits.max_running and self.limits.turn_s and self.now_s < self.overdue_from_s:
                chances = [p for p in self.processes.values() if p.demand.key == other.demand.key]
            else:
                continue
            able = any(self._had_room(other, p, 1 if p is process else 0) for p in chances)
            if able and (not is_batch(other) or everywhere < batch_most):
                self.violate(f"{effect}: {other.request_id} was before it")

    def _had_room(self, request: Submit, process: Process, granted: int) -> bool:
        """Whether the request could have been granted; ``granted`` leases came only now."""
        if process.state != "ready" or process.retiring or len(process.leases) - granted >= process.demand.parallel:
            return False
        batch = process.batch - (granted if list(process.leases.values())[-1:] == [True] else 0)
        return not is_batch(request) or batch < max(1, process.demand.parallel - self.limits.reserved_slots)

    def refuse(self, effect: Refuse) -> Submit | None:
        self.report.refused += 1
        request, _ = self.waiting.get(effect.request_id, (None, 0.0))
        self.end_wait(effect.request_id)
        facts, code = effect.error.facts, effect.error.code
        if request is None:
            return None
        key = request.demand.key
        if code == "insufficient_memory":
            pinned_bytes = self.pinned_bytes(key)
            self.expect(facts["pinned_bytes"] == pinned_bytes, f"{effect}: pinned are {pinned_bytes}")
            self.expect(_number(facts["needed_bytes"]) > self.budget_bytes - pinned_bytes, f"{effect}: it would fit")
        elif code == "model_quarantined":
            self.expect(self.failures[key] >= self.limits.quarantine_after, f"{effect}: {self.failures[key]} failures")
        elif code == "queue_full":
            length = self.waits_for(key)
            share = self.limits.queue_limit // 4 if is_batch(request) else 0
            self.expect(length >= self.limits.queue_limit - share, f"{effect}: only {length} wait")
            self.expect(_number(facts["place"]) > length, f"{effect}: a place among those that wait")
            self.expect(1 <= _number(facts["retry_after_s"]) <= 3600, f"{effect}: no appointment")
        return request

    def end_wait(self, request_id: str) -> None:
        request, since_s = self.waiting.pop(request_id, (None, self.now_s))
        self.expect(request is not None and request_id not in self.ended, f"{request_id} ended twice")
        self.ended.add(request_id)
        if request is not None:
            if not request.preload:
                self.per_model[request.demand.key, is_batch(request)] -= 1
            self.report.longest_wait_s = max(self.report.longest_wait_s, self.now_s - since_s)

    # --- what must hold -------------------------------------------------------------------------------------

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.violate(text)

    def violate(self, text: str) -> None:
        self.report.violations.append(f"seed {self.report.seed}, step {self.report.steps}, {self.now_s:.2f} s: {text}")

    def check(self, scheduler: Scheduler) -> None:
        """After every step: nothing that could be granted or started now is left waiting."""
        self.expect(scheduler.waiting == len(self.waiting), "requests were lost or invented")
        total = sum(process.reserved_bytes for process in self.processes.values())
        self.expect(scheduler.reserved_bytes == total, f"reserved {scheduler.reserved_bytes}, really {total}")
        queues = scheduler.queues()
        views = scheduler.workers()
        longest = max([0, *(queue.waiting for queue in queues), *(view.waiting for view in views)])
        self.expect(longest <= self.limits.queue_limit, f"{longest} wait, {self.limits.queue_limit} may")
        self.overdue_from_s = min((queue.since_s for queue in queues), default=math.inf) + self.limits.turn_s
        staying = sum(process.reserved_bytes for process in self.processes.values() if process.state != "ending")
        for view in views:
            if view.state != "ready":
                continue
            if view.waiting and self.now_s < self.overdue_from_s:
                self._check_free_slots(self.processes[view.worker_id], view.worker_id)
            if not view.leases and not view.waiting and staying > self.budget_bytes:
                self.expect(self.pinned(view.demand.key), f"{view.worker_id} is idle while memory is short")
        if queues and not views:
            self._check_alone(queues[0].demand)
        if queues and scheduler.next_wake_s() is None and not self.processes:
            self.violate("asleep while requests wait")
        serving = [view.demand.key for view in views if view.state != "draining"]
        self.expect(len(serving) == len(set(serving)), "two workers serve one model")

    def _check_free_slots(self, process: Process, worker_id: str) -> None:
        limits, running = self.limits, sum(len(other.leases) for other in self.processes.values())
        if len(process.leases) >= process.demand.parallel or (limits.max_running and running >= limits.max_running):
            return
        key = process.demand.key
        self.expect(not self.per_model[key, False], f"{worker_id} has a free slot and somebody waits")
        batch_free = process.batch < max(1, process.demand.parallel - limits.reserved_slots)
        everywhere = sum(other.batch for other in self.processes.values())
        if limits.max_running and everywhere >= max(1, limits.max_running - limits.reserved_slots):
            batch_free = False
        self.expect(not (batch_free and self.per_model[key, True]), f"{worker_id} has a free slot and batch waits")

    def _check_alone(self, demand: Demand) -> None:
        if self.now_s >= self.paused_until_s.get(demand.key, 0.0):
            self.violate(f"{demand.name} waits with all memory free")

    def check_end(self, requests: int) -> None:
        """When all is over."""
        self.expect(not self.waiting, f"never ended: {sorted(self.waiting)}")
        self.expect(not self.running, f"leases never ended: {sorted(self.running)}")
        self.expect(len(self.ended) == requests, "a request ended not exactly once")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
