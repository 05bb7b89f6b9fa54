"""The run loop on workers that live in memory: leases, cancelling, progress, time, and what is shown."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core import events
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    DaemonUnavailable,
    EngineUnavailable,
    HandedOver,
    HomelabError,
    QueueFull,
    WorkerCrashed,
)
from homelab_llm.core.errors import (
    LoadFailed as LoadError,
)
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.core.waits import Wait
from homelab_llm.gateway.seams import Fleet
from homelab_llm.inference.engines.base import Footprint, LaunchPlan
from homelab_llm.inference.fleet.run_loop import FleetLoop, Limits, Planned, Terms
from homelab_llm.inference.fleet.seams import Survivor
from homelab_llm.inference.fleet.vocabulary import Demand, Event, Loaded, LoadFailed, LoadProgress, WorkerExit
from homelab_llm.testing.clock import FakeClock
from homelab_llm.testing.events import eventually

TRAITS = WorkerTraits(pooled=True, notices_abort=True, progress=True, grammar=True, tools=True)
BOUND_S = 10.0


@dataclasses.dataclass
class Info:
    pid: int
    memory_bytes: int


class MemoryWorkers:
    """Workers that are only records. They load and die at once, or when the test says so."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self.report = report
        self.loads_by_itself = True
        self.dies_by_itself = True
        self.plans: dict[str, LaunchPlan] = {}
        self.notes: dict[str, Mapping[str, Any]] = {}
        self.left: list[Survivor] = []
        self.released = False
        self.memory_bytes = 0
        self.killed: list[str] = []
        self.started = 0

    def sockets(self, worker_id: str) -> Path:
        return Path(f"/run/{worker_id}.http")

    def start(self, worker_id: str, plan: LaunchPlan, note: Mapping[str, Any]) -> None:
        self.started += 1
        self.notes[worker_id] = note
        self.plans[worker_id] = plan
        if self.loads_by_itself:
            asyncio.get_running_loop().call_soon(self.report, Loaded(worker_id))

    def drain(self, worker_id: str) -> None:
        if self.dies_by_itself:
            asyncio.get_running_loop().call_soon(self.die, worker_id, None)

    def kill(self, worker_id: str) -> None:
        self.killed.append(worker_id)
        self.drain(worker_id)

    def die(self, worker_id: str, error: HomelabError | None) -> None:
        if self.plans.pop(worker_id, None) is not None:
            self.report(WorkerExit(worker_id, error))

    def info(self, worker_id: str) -> Info | None:
        return Info(4711, self.memory_bytes) if worker_id in self.plans else None

    async def failure(self, worker_id: str) -> HomelabError:
        return WorkerCrashed(f"{worker_id} was killed")

    async def survivors(self) -> list[Survivor]:
        for survivor in self.left:
            self.plans[survivor.worker_id] = LaunchPlan("memory", model(), (), 2, 4096, TRAITS)
        return self.left

    async def release(self) -> None:
        self.released = True

    async def close(self) -> None:
        for worker_id in list(self.plans):
            self.die(worker_id, None)

    @property
    def only(self) -> str:
        (worker_id,) = self.plans
        return worker_id


def model(name: str = "tiny:1b") -> StoredModel:
    return StoredModel(name, Digest.of(name.encode()), ModelFacts("gguf", "fake", 10))


class Rig:
    """A fleet on memory workers; ``plans`` counts how often a model was planned."""

    def __init__(self, **more: Any) -> None:
        self.footprints: dict[str, int] = {}
        self.plans = 0
        self.refusal: HomelabError | None = None
        self.broken: HomelabError | None = None
        self.footprint: Footprint | None = None
        self.context_tokens = 4096
        self.contexts: dict[str, int] = {}
        self.news: list[events.Event] = []
        self.clock = FakeClock()
        self.workers: MemoryWorkers
        arguments: dict[str, Any] = {"budget_bytes": 100, "limits": Limits(keep_alive_s=-1.0), "clock": self.clock}
        arguments |= {"publish": self.news.append}
        self.fleet = FleetLoop(plan=self.plan, workers=self.make_workers, **(arguments | more))

    def make_workers(self, report: Callable[[Event], None]) -> MemoryWorkers:
        self.workers = MemoryWorkers(report)
        return self.workers

    def plan(self, stored: StoredModel, context_tokens: int | None = None) -> Planned:
        self.plans += 1
        if self.refusal is not None:
            raise self.refusal
        footprint_bytes = self.footprints.get(stored.name, 10)
        tokens = context_tokens or self.contexts.get(stored.name, self.context_tokens)
        demand = Demand(f"{stored.digest.short}/{tokens}", stored.name, footprint_bytes, 2)

        def launch(socket: Path) -> LaunchPlan:
            if self.broken is not None:
                raise self.broken
            return LaunchPlan("memory", stored, ("serve", str(socket)), 2, 4096, TRAITS)

        return Planned(demand, launch, "memory", tokens, TRAITS, warning="slow here", footprint=self.footprint)

    @property
    def worker(self) -> dict[str, Any]:
        (worker,) = self.fleet.status()["workers"]
        assert isinstance(worker, dict)
        return worker


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.fleet.close()


def test_the_run_loop_is_the_fleet_the_gateway_asks_for() -> None:
    fleet: Fleet = Rig().fleet
    assert fleet.status()["workers"] == []


@pytest.mark.requirement("R-F6")
async def test_a_lease_tells_where_and_how_to_talk_to_the_worker(rig: Rig) -> None:
    lease = await rig.fleet.acquire(model(), "r1")
    assert len(lease.worker_id) == 5
    assert lease.socket == Path(f"/run/{lease.worker_id}.http")
    assert (lease.traits, lease.context_tokens) == (TRAITS, 4096)
    assert rig.workers.plans[lease.worker_id].argv == ("serve", str(lease.socket))
    lease.release()


async def test_a_loaded_model_with_a_free_slot_is_granted_without_waiting(rig: Rig) -> None:
    (await rig.fleet.acquire(model(), "r1")).release()
    granting = rig.fleet.acquire(model(), "r2")
    with pytest.raises(StopIteration) as granted:
        granting.send(None)  # runs to its end without suspending once
    granted.value.value.release()
    assert rig.plans == 1


async def test_it_tells_when_requests_run_or_wait_and_when_none_does() -> None:
    told: list[bool] = []
    rig = Rig(busy=told.append)
    first = await rig.fleet.acquire(model(), "r1")
    second = await rig.fleet.acquire(model(), "r2")
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await asyncio.sleep(0)
    first.release()
    (await waiting).release()
    assert told == [True]
    second.release()
    assert told == [True, False]
    (await rig.fleet.acquire(model(), "r4")).release()
    assert told == [True, False, True, False]
    await rig.fleet.close()


async def test_releasing_twice_gives_back_one_slot_only(rig: Rig) -> None:
    first = await rig.fleet.acquire(model(), "r1")
    second = await rig.fleet.acquire(model(), "r2")
    first.release()
    first.release()
    assert rig.worker["leases"] == 1
    second.release()
    assert rig.worker["leases"] == 0


async def test_a_request_id_that_repeats_is_another_request(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), "same") for _ in range(2)]
    assert rig.worker["leases"] == 2
    for lease in leases:
        lease.release()
    assert rig.worker["leases"] == 0


async def test_a_waiting_request_gets_the_slot_that_is_released(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    leases[0].release()
    third = await asyncio.wait_for(waiting, BOUND_S)
    assert rig.worker["leases"] == 2
    third.release()
    leases[1].release()


async def test_cancelling_a_waiting_request_withdraws_it(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rig.worker["waiting"] == 0
    for lease in leases:
        lease.release()
    assert rig.worker["leases"] == 0


async def test_a_request_granted_and_cancelled_in_the_same_turn_gives_its_slot_back(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    leases[0].release()  # grants to the waiting task, which has not run yet
    assert rig.worker["leases"] == 2
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert rig.worker["leases"] == 1
    leases[1].release()


async def test_a_cancelled_request_hands_its_grant_to_the_next_one(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    cancelled = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    served = asyncio.create_task(rig.fleet.acquire(model(), "r4"))
    await eventually(lambda: rig.worker["waiting"] == 2)
    leases[0].release()
    cancelled.cancel()
    (await asyncio.wait_for(served, BOUND_S)).release()
    leases[1].release()
    assert rig.worker["leases"] == 0


@pytest.mark.requirement("R-F6")
async def test_a_failed_load_is_told_to_all_that_wait_and_the_next_request_tries_again(rig: Rig) -> None:
    rig.workers.loads_by_itself = False
    waiting = [asyncio.create_task(rig.fleet.acquire(model(), f"r{n}")) for n in range(3)]
    await eventually(lambda: rig.workers.plans)
    worker_id = rig.workers.only
    rig.workers.report(LoadFailed(worker_id, LoadError("bad file")))
    rig.workers.die(worker_id, None)
    errors = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), BOUND_S)
    assert [error.code for error in errors if isinstance(error, HomelabError)] == ["load_failed"] * 3
    assert len({id(error) for error in errors}) == 3
    rig.workers.loads_by_itself = True
    (await rig.fleet.acquire(model(), "r4")).release()


async def test_a_plan_that_cannot_be_made_for_a_socket_is_a_failed_load(rig: Rig) -> None:
    rig.broken = EngineUnavailable("the engine was removed", hint="install it")
    with pytest.raises(EngineUnavailable):
        await rig.fleet.acquire(model(), "r1")
    assert rig.fleet.status()["used_bytes"] == 0


async def test_a_model_no_engine_runs_is_refused_and_asked_for_again_next_time(rig: Rig) -> None:
    rig.refusal = EngineUnavailable("no engine runs this")
    with pytest.raises(EngineUnavailable):
        await rig.fleet.acquire(model(), "r1")
    rig.refusal = None
    (await rig.fleet.acquire(model(), "r1")).release()


@pytest.mark.requirement("B-6")
async def test_a_full_queue_is_told_to_the_caller_with_its_numbers() -> None:
    rig = Rig(limits=Limits(queue_limit=1))
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    with pytest.raises(QueueFull) as refused:
        await rig.fleet.acquire(model(), "r4")
    assert refused.value.facts["queue_length"] == 1
    assert isinstance(refused.value.facts["retry_after_s"], int)
    told = rig.news[-1]
    assert (told.kind, told.level, told.facts["code"], told.facts["place"]) == ("refused", "debug", "queue_full", 2)
    for lease in leases:
        lease.release()
    (await waiting).release()
    await rig.fleet.close()


async def test_loading_tells_its_progress_and_ends_with_ready(rig: Rig) -> None:
    rig.workers.loads_by_itself = False
    progress = rig.fleet.load(model(), "r1", keep_alive_s=-1.0)
    assert await anext(progress) == Wait("loading", 0.0, 1)
    rig.workers.report(LoadProgress(rig.workers.only, "convert", 0.5))
    assert await anext(progress) == Wait("convert", 0.5, 1)
    rig.workers.report(Loaded(rig.workers.only))
    assert await anext(progress) == Wait("ready", 1.0, 0)
    assert [wait async for wait in progress] == []
    assert (rig.worker["state"], rig.worker["leases"]) == ("ready", 0)


async def test_loading_a_loaded_model_is_ready_at_once(rig: Rig) -> None:
    (await rig.fleet.acquire(model(), "r1")).release()
    assert [wait async for wait in rig.fleet.load(model(), "r2")] == [Wait("ready", 1.0)]
    assert rig.workers.started == 1


async def test_a_load_that_fails_raises_for_who_watches_it(rig: Rig) -> None:
    rig.workers.loads_by_itself = False
    progress = rig.fleet.load(model(), "r1")
    await anext(progress)
    rig.workers.report(LoadFailed(rig.workers.only, LoadError("bad file")))
    with pytest.raises(LoadError):
        await anext(progress)


async def test_who_stops_watching_a_load_waits_no_more(rig: Rig) -> None:
    rig.workers.loads_by_itself = False
    progress = rig.fleet.load(model(), "r1")
    await anext(progress)
    assert rig.fleet.status()["waiting"] == 1
    await progress.aclose()  # type: ignore[attr-defined]
    assert rig.fleet.status()["waiting"] == 0


@pytest.mark.requirement("R-F6")
async def test_unload_returns_when_the_worker_is_gone(rig: Rig) -> None:
    (await rig.fleet.acquire(model(), "r1")).release()
    worker_id = rig.workers.only
    rig.workers.dies_by_itself = False
    unloading = asyncio.create_task(rig.fleet.unload(model()))
    await eventually(lambda: rig.worker["state"] == "draining")
    assert not unloading.done()
    rig.workers.die(worker_id, None)
    assert await asyncio.wait_for(unloading, BOUND_S)
    assert rig.fleet.status()["workers"] == []
    assert not await rig.fleet.unload(model())
    assert not await rig.fleet.unload(model("never:seen"))


async def test_unload_waits_for_running_requests_and_by_force_does_not(rig: Rig) -> None:
    lease = await rig.fleet.acquire(model(), "r1")
    unloading = asyncio.create_task(rig.fleet.unload(model()))
    await eventually(lambda: rig.worker["state"] == "draining")
    assert not unloading.done()
    assert await asyncio.wait_for(rig.fleet.unload(model(), force=True), BOUND_S)
    assert await asyncio.wait_for(unloading, BOUND_S)
    assert rig.workers.killed == [lease.worker_id]
    lease.release()


async def test_unload_finds_a_worker_whose_plan_was_forgotten(rig: Rig) -> None:
    (await rig.fleet.acquire(model(), "r1")).release()
    rig.fleet.forget_plans()
    assert await asyncio.wait_for(rig.fleet.unload(model()), BOUND_S)


@pytest.mark.requirement("R-F6")
async def test_when_a_worker_dies_its_lease_tells_why_and_waiting_requests_get_a_new_one(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    rig.workers.die(leases[0].worker_id, WorkerCrashed("killed"))
    assert (await leases[0].failure()).code == "worker_crashed"
    third = await asyncio.wait_for(waiting, BOUND_S)
    assert third.worker_id != leases[0].worker_id
    for lease in leases:
        lease.release()
    assert rig.worker["leases"] == 1
    third.release()


async def test_a_worker_known_to_be_dead_gets_no_request_before_the_proof_of_its_death(rig: Rig) -> None:
    lease = await rig.fleet.acquire(model(), "r1")
    rig.workers.dies_by_itself = False  # dead, but its processes are not yet seen to be gone
    assert (await lease.failure()).code == "worker_crashed"
    lease.release()
    other = await asyncio.wait_for(rig.fleet.acquire(model(), "r2"), BOUND_S)
    assert other.worker_id != lease.worker_id
    assert rig.fleet.status()["used_bytes"] == 20
    other.release()


async def test_a_condemned_worker_is_killed_and_who_waits_gets_another(rig: Rig) -> None:
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    leases[0].condemn()
    third = await asyncio.wait_for(waiting, BOUND_S)
    assert rig.workers.killed == [leases[0].worker_id]
    assert third.worker_id != leases[0].worker_id
    third.release()


@pytest.mark.requirement("R-F5")
async def test_an_idle_worker_ends_when_the_clock_says_so() -> None:
    rig = Rig(limits=Limits(keep_alive_s=300.0))
    (await rig.fleet.acquire(model(), "r1")).release()
    assert rig.worker["expires_in_s"] == 300.0
    rig.clock.advance(200.0)
    rig.fleet.tick()
    assert rig.worker["expires_in_s"] == 100.0
    rig.clock.advance(101.0)
    rig.fleet.tick()
    await eventually(lambda: not rig.fleet.status()["workers"])
    await rig.fleet.close()


async def test_a_jump_of_the_wall_clock_ends_nobody_early() -> None:
    rig = Rig(limits=Limits(keep_alive_s=300.0))
    (await rig.fleet.acquire(model(), "r1")).release()
    rig.clock.jump_unix(86_400.0)
    rig.fleet.tick()
    assert rig.worker["expires_in_s"] == 300.0
    with pytest.raises(ValueError, match="backwards"):
        rig.clock.advance(-1.0)
    await rig.fleet.close()


@pytest.mark.requirement("R-F5")
async def test_with_the_real_clock_an_idle_worker_ends_by_itself() -> None:
    rig = Rig(limits=Limits(keep_alive_s=0.05), clock=None)
    (await rig.fleet.acquire(model(), "r1")).release()
    assert rig.worker["state"] == "ready"
    await eventually(lambda: not rig.fleet.status()["workers"])
    await rig.fleet.close()


async def test_with_the_real_clock_a_request_is_refused_when_it_waited_too_long() -> None:
    rig = Rig(limits=Limits(max_wait_s=0.05), clock=None)
    rig.workers.loads_by_itself = False
    with pytest.raises(HomelabError) as refused:
        await asyncio.wait_for(rig.fleet.acquire(model(), "r1"), BOUND_S)
    assert refused.value.code == "deadline_exceeded"
    await rig.fleet.close()


@pytest.mark.requirement("B-2")
async def test_two_models_that_do_not_fit_together_are_both_answered_many_times(rig: Rig) -> None:
    rig.footprints = {"a": 60, "b": 60}
    answers = 0

    async def ask(n: int) -> None:
        nonlocal answers
        lease = await rig.fleet.acquire(model("ab"[n % 2]), f"r{n}")
        await asyncio.sleep(0)
        answers += 1
        lease.release()

    await asyncio.wait_for(asyncio.gather(*(ask(n) for n in range(60))), BOUND_S)
    assert answers == 60
    assert rig.workers.started < 10  # grouped, not one swap per request


@pytest.mark.requirement("B-3")
async def test_the_measured_footprint_replaces_the_estimate_and_keeps_the_cache_that_is_still_to_come(rig: Rig) -> None:
    rig.footprints = {"tiny:1b": 60}
    rig.footprint = Footprint(weights_bytes=20, kv_bytes=15, overhead_bytes=25)
    rig.workers.memory_bytes = 25
    (await rig.fleet.acquire(model(), "r1")).release()
    assert rig.worker["footprint_bytes"] == 40
    assert rig.worker["memory_bytes"] == 25


def test_a_measurement_below_the_weights_is_not_believed_and_one_above_the_estimate_is() -> None:
    rig = Rig()
    rig.footprints = {"tiny:1b": 60}
    rig.footprint = Footprint(weights_bytes=20, kv_bytes=15, overhead_bytes=25)
    planned = rig.plan(model())
    assert [planned.reserve_bytes(measured) for measured in (0, 10, 20, 50, 90)] == [0, 0, 35, 60, 90]


@pytest.mark.requirement("B-3")
async def test_a_worker_that_grows_is_measured_again() -> None:
    rig = Rig(remeasure_s=0.01)
    rig.workers.memory_bytes = 12
    (await rig.fleet.acquire(model(), "r1")).release()
    assert rig.worker["footprint_bytes"] == 12
    rig.workers.memory_bytes = 44
    await eventually(lambda: rig.worker["footprint_bytes"] == 44)
    await rig.fleet.close()


@pytest.mark.requirement("R-F5")
async def test_before_a_load_the_budget_is_measured_with_what_our_workers_use() -> None:
    asked: list[int] = []

    def measure(ours_bytes: int) -> int:
        asked.append(ours_bytes)
        return 50

    rig = Rig(measure=measure)
    rig.footprints = {"big": 60}
    (await rig.fleet.acquire(model("small"), "r1")).release()
    rig.workers.memory_bytes = 17
    (await rig.fleet.acquire(model("small"), "r2")).release()
    rig.footprint = Footprint(weights_bytes=40, kv_bytes=15, overhead_bytes=5)
    with pytest.raises(HomelabError) as refused:
        await rig.fleet.acquire(model("big"), "r3")
    assert refused.value.facts == {
        "model": "big",
        "needed_bytes": 60,
        "free_bytes": 40,
        "evictable_bytes": 10,
        "pinned_bytes": 0,
        "budget_bytes": 50,
        "weights_bytes": 40,
        "kv_bytes": 15,
        "overhead_bytes": 5,
        "others_bytes": 50,
    }
    assert asked == [0, 17]
    await rig.fleet.close()


async def test_status_is_plain_and_complete(rig: Rig) -> None:
    lease = await rig.fleet.acquire(model(), "r1")
    assert rig.fleet.status() == {
        "budget_bytes": 100,
        "used_bytes": 10,
        "waiting": 0,
        "workers": [
            {
                "id": lease.worker_id,
                "model": "tiny:1b",
                "digest": str(model().digest),
                "engine": "memory",
                "state": "ready",
                "pid": 4711,
                "memory_bytes": 0,
                "footprint_bytes": 10,
                "leases": 1,
                "waiting": 0,
                "parallel": 2,
                "context_tokens": 4096,
                "loaded_unix_s": rig.clock.unix_s(),
                "expires_in_s": None,
                "pinned": False,
                "progress": {"stage": "ready", "done": 1.0},
                "warning": "slow here",
            }
        ],
        "queues": [],
        "quarantined": [],
    }
    lease.release()


async def test_what_happens_is_published_with_the_worker_it_concerns(rig: Rig) -> None:
    lease = await rig.fleet.acquire(model(), "r1")
    lease.release()
    await rig.fleet.unload(model())
    assert [(event.kind, event.level) for event in rig.news] == [
        ("queued", "debug"),
        ("loading", "info"),
        ("loaded", "info"),
        ("unloaded", "info"),
    ]
    assert rig.news[0].facts == {"request_id": "r1"}
    assert {event.service for event in rig.news[1:]} == {f"worker:{lease.worker_id}"}
    assert {event.model for event in rig.news} == {"tiny:1b"}


async def test_closing_refuses_who_waits_and_ends_the_workers() -> None:
    rig = Rig()
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    await rig.fleet.close()
    with pytest.raises(DaemonUnavailable):
        await waiting
    assert rig.fleet.status()["workers"] == []
    assert rig.news[-1].kind == "unloaded"
    with pytest.raises(DaemonUnavailable):
        await rig.fleet.acquire(model(), "r4")
    for lease in leases:
        lease.release()


# --- the operator's terms, numbers, quarantine --------------------------------------------------------------


@pytest.mark.requirement("R-F5")
async def test_terms_hold_for_a_model_before_and_after_it_is_loaded() -> None:
    rig = Rig(limits=Limits(keep_alive_s=300.0))
    digest = str(model().digest)
    rig.fleet.set_terms(digest, Terms(keep_alive_s=20.0))
    (await rig.fleet.acquire(model(), "r1")).release()
    assert rig.worker["expires_in_s"] == 20.0
    rig.fleet.set_terms(digest, Terms(pinned=True))
    assert (rig.worker["expires_in_s"], rig.worker["pinned"]) == (None, True)
    rig.fleet.set_terms(digest, Terms())
    assert (rig.worker["expires_in_s"], rig.worker["pinned"]) == (300.0, False)
    await rig.fleet.close()


async def test_the_row_of_a_loaded_model_is_found_by_its_digest(rig: Rig) -> None:
    digest = str(model().digest)
    assert rig.fleet.loaded(digest) is None
    lease = await rig.fleet.acquire(model(), "r1")
    row = rig.fleet.loaded(digest)
    assert row is not None
    assert (row["id"], row["leases"]) == (lease.worker_id, 1)
    lease.release()


@pytest.mark.requirement("B-3")
async def test_fit_tells_what_a_model_needs_who_would_go_and_the_largest_context(rig: Rig) -> None:
    rig.footprints = {"big": 60, "small": 50}
    rig.footprint = Footprint(weights_bytes=20, kv_bytes=30, overhead_bytes=10)
    (await rig.fleet.acquire(model("small"), "r1")).release()
    numbers = rig.fleet.fit(model("big"))
    assert (numbers["fits"], numbers["needed_bytes"], numbers["free_bytes"]) == (True, 60, 50)
    assert (numbers["evicts"], numbers["waits_for"]) == (["small"], [])
    assert numbers["largest_context_tokens"] == 70 * 4096 // 30
    lease = await rig.fleet.acquire(model("small"), "r2")
    assert rig.fleet.fit(model("big"))["waits_for"] == ["small"]
    lease.release()
    rig.fleet.set_terms(str(model("small").digest), Terms(pinned=True))
    numbers = rig.fleet.fit(model("big"))
    assert (numbers["fits"], numbers["pinned_bytes"]) == (False, 50)
    assert numbers["largest_context_tokens"] == 20 * 4096 // 30
    with pytest.raises(HomelabError) as refused:
        await rig.fleet.acquire(model("big"), "r3")
    assert (refused.value.code, refused.value.facts["pinned_bytes"]) == ("insufficient_memory", 50)
    assert rig.fleet.fit(model("big"), 8192)["context_tokens"] == 8192
    assert rig.workers.started == 1


@pytest.mark.requirement("R-F5")
async def test_a_quarantined_model_is_shown_told_and_tried_again_when_the_operator_says_so() -> None:
    rig = Rig(limits=Limits(quarantine_after=2, keep_alive_s=-1.0))
    rig.broken = LoadError("bad file")
    for n in range(2):
        with pytest.raises(LoadError):
            await rig.fleet.acquire(model(), f"r{n}")
    with pytest.raises(HomelabError) as refused:
        await rig.fleet.acquire(model(), "r2")
    assert refused.value.code == "model_quarantined"
    assert rig.fleet.status()["quarantined"] == [{"model": "tiny:1b", "failures": 2, "reason": "bad file"}]
    assert [event.kind for event in rig.news if event.level == "error"] == ["failed", "failed", "quarantined"]
    rig.broken = None
    assert rig.fleet.unquarantine(model())
    assert not rig.fleet.unquarantine(model())
    (await rig.fleet.acquire(model(), "r3")).release()
    await rig.fleet.close()


async def test_a_lease_that_broke_or_was_abandoned_does_not_show_that_the_model_works() -> None:
    rig = Rig(limits=Limits(quarantine_after=2, keep_alive_s=-1.0))
    for n in range(2):
        lease = await rig.fleet.acquire(model(), f"r{n}")
        rig.workers.die(lease.worker_id, WorkerCrashed("killed"))
        await lease.failure()
        lease.release()
    with pytest.raises(HomelabError) as refused:
        await rig.fleet.acquire(model(), "r2")
    assert refused.value.code == "model_quarantined"
    await rig.fleet.close()


@pytest.mark.requirement("B-3")
async def test_what_was_measured_is_remembered_across_restarts() -> None:
    learned: list[tuple[str, str, int]] = []
    rig = Rig(learned=lambda *row: learned.append(row))
    rig.workers.memory_bytes = 33
    (await rig.fleet.acquire(model(), "r1")).release()
    assert [(digest, footprint) for _, digest, footprint in learned] == [(str(model().digest), 33)]
    await rig.fleet.close()
    later = Rig(known_bytes=dict((key, footprint) for key, _, footprint in learned).get)
    later.workers.loads_by_itself = False
    asking = asyncio.create_task(later.fleet.acquire(model(), "r1"))
    await eventually(lambda: later.workers.plans)
    assert later.worker["footprint_bytes"] == 33
    asking.cancel()
    await later.fleet.close()


async def test_two_names_of_one_digest_with_other_options_have_workers_of_their_own(rig: Rig) -> None:
    long = dataclasses.replace(model(), name="tiny:long")
    short_lease = await rig.fleet.acquire(model(), "r1")
    rig.context_tokens = 32768
    long_lease = await rig.fleet.acquire(long, "r2")
    assert short_lease.worker_id != long_lease.worker_id
    assert (short_lease.context_tokens, long_lease.context_tokens) == (4096, 32768)
    short_lease.release()
    long_lease.release()
    assert await rig.fleet.unload(model())
    assert rig.worker["model"] == "tiny:long"


# --- a change of daemons ------------------------------------------------------------------------------------


def survivor(rig: Rig, worker_id: str = "old01", **more: Any) -> Survivor:
    """A worker as the daemon before left it; ``more`` replaces fields of its note."""
    note = {"key": f"{model().digest.short}/4096", "digest": str(model().digest), "model": "tiny:1b", "parallel": 2}
    ready = bool(more.pop("ready", True))
    found = Survivor(worker_id, note | {"footprint_bytes": 10} | more, ready, 4711, 30, 1_600_000_000.0)
    rig.workers.left.append(found)
    return found


@pytest.mark.requirement("B-5")
async def test_workers_of_the_daemon_before_are_adopted_and_serve(rig: Rig) -> None:
    survivor(rig)
    assert await rig.fleet.adopt(lambda digest: model() if digest == str(model().digest) else None) == ["old01"]
    lease = await rig.fleet.acquire(model(), "r1")
    assert (lease.worker_id, rig.workers.started) == ("old01", 0)
    assert (rig.worker["footprint_bytes"], rig.worker["loaded_unix_s"]) == (30, 1_600_000_000.0)
    assert [event.kind for event in rig.news] == ["adopted"]
    lease.release()


@pytest.mark.requirement("B-5")
async def test_a_worker_is_adopted_for_the_name_it_was_started_under(rig: Rig) -> None:
    rig.contexts["tiny:long"] = 8192
    survivor(rig, model="tiny:long", key=f"{model().digest.short}/8192")
    assert await rig.fleet.adopt(lambda _: model()) == ["old01"]
    assert rig.worker["state"] == "ready"


@pytest.mark.requirement("B-5")
async def test_a_worker_that_still_loads_is_adopted_and_requests_join_its_load(rig: Rig) -> None:
    survivor(rig, ready=False)
    await rig.fleet.adopt(lambda _: model())
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r1"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    rig.workers.report(Loaded("old01"))
    (await asyncio.wait_for(waiting, BOUND_S)).release()
    assert rig.workers.started == 0


@pytest.mark.requirement("B-5")
@pytest.mark.parametrize("note", [{"digest": "sha256:gone"}, {"key": "other/options"}, {"key": None, "parallel": "x"}])
async def test_a_worker_whose_model_is_gone_or_would_be_run_in_another_way_is_drained(
    rig: Rig, note: dict[str, Any]
) -> None:
    survivor(rig, **note)
    rig.workers.dies_by_itself = False
    assert await rig.fleet.adopt(lambda digest: model() if digest == str(model().digest) else None) == []
    assert (rig.worker["state"], rig.fleet.status()["used_bytes"]) == ("draining", 30)
    lease = await rig.fleet.acquire(model(), "r1")
    assert lease.worker_id != "old01"
    lease.release()
    rig.workers.dies_by_itself = True


@pytest.mark.requirement("B-5")
async def test_what_is_noted_at_a_start_is_enough_to_adopt_the_worker_later(rig: Rig) -> None:
    lease = await rig.fleet.acquire(model(), "r1")
    later = Rig()
    note = rig.workers.notes[lease.worker_id]
    later.workers.left.append(Survivor(lease.worker_id, note, True, 1, 0, 0.0))
    assert await later.fleet.adopt(lambda _: model()) == [lease.worker_id]
    lease.release()
    await later.fleet.close()


@pytest.mark.requirement("B-5")
async def test_handing_over_refuses_who_waits_and_who_comes_and_ends_nobody() -> None:
    rig = Rig(limits=Limits(keep_alive_s=0.0))
    leases = [await rig.fleet.acquire(model(), f"r{n}") for n in range(2)]
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r3"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    ended: list[str] = []
    assert rig.fleet.hand_over(ended.append) == {leases[0].worker_id: 2}
    with pytest.raises(HandedOver):
        await waiting
    with pytest.raises(HandedOver):
        await rig.fleet.acquire(model(), "r4")
    with pytest.raises(HandedOver):
        await rig.fleet.unload(model())
    for lease in leases:
        lease.release()
    assert ended == [leases[0].worker_id] * 2
    assert (rig.worker["state"], rig.worker["leases"]) == ("ready", 0)  # idle, and its keep-alive is 0
    await rig.fleet.close(leave_workers=True)
    assert rig.workers.released
    assert list(rig.workers.plans) == [leases[0].worker_id]


@pytest.mark.requirement("B-5")
async def test_when_the_new_daemon_does_not_come_up_the_old_one_goes_on() -> None:
    rig = Rig(limits=Limits(keep_alive_s=0.0))
    lease = await rig.fleet.acquire(model(), "r1")
    rig.fleet.hand_over()
    lease.release()
    rig.fleet.resume()
    await eventually(lambda: not rig.fleet.status()["workers"])  # what the keep-alive asked for is caught up on
    (await rig.fleet.acquire(model(), "r2")).release()
    await rig.fleet.close()


@pytest.mark.requirement("B-5")
async def test_slots_that_the_old_daemon_still_uses_are_not_given_away_before_they_are_let_go(rig: Rig) -> None:
    survivor(rig)
    await rig.fleet.adopt(lambda _: model(), {"old01": 2, "never": 1})
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "r1"))
    await eventually(lambda: rig.worker["waiting"] == 1)
    rig.fleet.let_go("old01")
    lease = await asyncio.wait_for(waiting, BOUND_S)
    assert rig.worker["leases"] == 2
    for _ in range(2):  # one more than are left
        rig.fleet.let_go("old01")
    assert rig.worker["leases"] == 1
    lease.release()


@pytest.mark.requirement("B-10")
async def test_batch_requests_leave_a_slot_for_interactive_ones(rig: Rig) -> None:
    batch = await rig.fleet.acquire(model(), "b1", priority=10)
    waiting = asyncio.create_task(rig.fleet.acquire(model(), "b2", priority=10))
    await eventually(lambda: rig.worker["waiting"] == 1)
    (await rig.fleet.acquire(model(), "r1")).release()
    assert not waiting.done()
    batch.release()
    (await asyncio.wait_for(waiting, BOUND_S)).release()
