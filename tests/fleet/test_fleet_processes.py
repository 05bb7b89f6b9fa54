"""The run loop on the real supervisor: every worker is a process of the fake engine, asked over its socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import EngineOptions, Footprint, LaunchPlan
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.lease import FleetLease
from homelab_llm.inference.fleet.run_loop import FleetLoop, Limits, Planned
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Demand, Event
from homelab_llm.testing.engines import FakeEngine
from homelab_llm.testing.events import eventually
from homelab_llm.testing.models import stored_fake_model, write_fake_model

MB = 10**6
OPTIONS = EngineOptions(context_tokens=512, parallel=2)
FOOTPRINT = Footprint(weights_bytes=1 * MB, kv_bytes=800 * MB, overhead_bytes=99 * MB)


class Rig:
    """A fleet of real processes; its budget holds one model at a time."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home = home
        self.folder = folder
        self.supervisor: Supervisor
        self.engine = FakeEngine()
        limits = Limits(keep_alive_s=-1.0, turn_s=0.2)
        self.fleet = FleetLoop(plan=self.plan, workers=self.supervise, budget_bytes=1200 * MB, limits=limits)

    def supervise(self, report: Callable[[Event], None]) -> Supervisor:
        self.supervisor = Supervisor(self.home, report, load_timeout_s=30.0, drain_s=2.0)
        return self.supervisor

    def plan(self, model: StoredModel, context_tokens: int | None = None) -> Planned:  # noqa: ARG002
        engine = self.engine

        def launch(socket: Path) -> LaunchPlan:
            return engine.plan(model, OPTIONS, socket, self.home.derived)

        demand = Demand(str(model.digest), model.name, FOOTPRINT.total_bytes, OPTIONS.parallel)
        return Planned(demand, launch, engine.name, OPTIONS.context_tokens, engine.traits, footprint=FOOTPRINT)

    def model(self, name: str, **more: Any) -> StoredModel:
        return stored_fake_model(write_fake_model(self.folder / f"{name}.gguf", name=name, **more), name)

    async def answer(self, model: StoredModel, request_id: str) -> str:
        """The model that a worker granted for ``model`` says it serves."""
        lease = await self.fleet.acquire(model, request_id)
        try:
            return await served_by(lease)
        finally:
            lease.release()

    def engine_pids(self) -> list[int]:
        infos = [self.supervisor.info(worker["id"]) for worker in self.fleet.status()["workers"]]
        return [info.engine_pid for info in infos if info is not None and info.engine_pid is not None]


async def served_by(lease: FleetLease) -> str:
    connector = aiohttp.UnixConnector(str(lease.socket))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://worker/v1/models") as reply:
        models = await reply.json()
    name = models["data"][0]["id"]
    assert isinstance(name, str)
    return name


@pytest.fixture
async def rig(home: Home, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(home, tmp_path)
    yield rig
    await rig.fleet.close()


@pytest.mark.requirement("B-2", "R-F6")
async def test_two_real_models_that_do_not_fit_together_are_both_answered(rig: Rig) -> None:
    models = [rig.model("one"), rig.model("two")]
    asked = [models[n % 2] for n in range(20)]
    answers = await asyncio.gather(*(rig.answer(model, f"r{n}") for n, model in enumerate(asked)))
    assert answers == [model.name for model in asked]
    assert len(rig.engine_pids()) == 1


@pytest.mark.requirement("R-F6", "R-F5")
async def test_unloading_frees_memory_for_real(rig: Rig) -> None:
    model = rig.model("one")
    await rig.answer(model, "r1")
    (pid,) = rig.engine_pids()
    assert await rig.fleet.unload(model)
    assert processes.look(pid) is None
    assert rig.fleet.status()["used_bytes"] == 0


@pytest.mark.requirement("R-F6")
async def test_a_worker_killed_while_it_serves_is_told_and_the_next_request_works(rig: Rig) -> None:
    model = rig.model("one")
    lease = await rig.fleet.acquire(model, "r1")
    (pid,) = rig.engine_pids()
    os.kill(pid, signal.SIGKILL)
    assert (await lease.failure()).code == "worker_crashed"
    lease.release()
    assert await asyncio.wait_for(rig.answer(model, "r2"), 30) == "one"
    assert rig.engine_pids() != [pid]


@pytest.mark.requirement("R-F6")
async def test_a_model_that_cannot_be_loaded_is_a_typed_error_with_its_log(rig: Rig) -> None:
    with pytest.raises(HomelabError) as failed:
        await rig.answer(rig.model("broken", load="crash"), "r1")
    assert failed.value.code == "load_failed"
    assert failed.value.facts["log"]
    await eventually(lambda: rig.fleet.status()["used_bytes"] == 0)
    assert await rig.answer(rig.model("good"), "r2") == "good"


@pytest.mark.requirement("R-F6")
async def test_a_worker_that_answers_as_another_model_gets_no_request(rig: Rig) -> None:
    with pytest.raises(HomelabError, match="answers as another model") as failed:
        await rig.answer(rig.model("swapped", canary="other"), "r1")
    assert failed.value.code == "load_failed"
    await eventually(lambda: rig.fleet.status()["used_bytes"] == 0)


@pytest.mark.requirement("B-5")
async def test_workers_adopted_after_a_release_serve_under_the_plan_they_were_started_for(rig: Rig) -> None:
    models = {str(model.digest): model for model in (rig.model("one"),)}
    (model,) = models.values()
    await rig.answer(model, "r1")
    pids = rig.engine_pids()
    await rig.fleet.close(leave_workers=True)
    later = Rig(rig.home, rig.folder)
    assert len(await later.fleet.adopt(models.get)) == 1
    assert await later.answer(model, "r2") == "one"
    assert later.engine_pids() == pids
    await later.fleet.close()
    assert not [pid for pid in pids if processes.look(pid) is not None]


@pytest.mark.requirement("B-5")
async def test_an_adopted_worker_whose_model_is_gone_is_ended_in_order(rig: Rig) -> None:
    await rig.answer(rig.model("one"), "r1")
    (pid,) = rig.engine_pids()
    await rig.fleet.close(leave_workers=True)
    later = Rig(rig.home, rig.folder)
    assert await later.fleet.adopt(lambda _: None) == []
    await eventually(lambda: later.fleet.status()["workers"] == [])
    assert processes.look(pid) is None
    await later.fleet.close()


@pytest.mark.requirement("B-3")
async def test_a_real_worker_is_measured(rig: Rig) -> None:
    await rig.answer(rig.model("one", memory_mb=64), "r1")
    (worker,) = rig.fleet.status()["workers"]
    assert worker["memory_bytes"] > 64 * 2**20
    assert worker["footprint_bytes"] == max(worker["memory_bytes"], min(900 * MB, worker["memory_bytes"] + 800 * MB))


async def leave_in_prefill(lease: FleetLease, text: str, busy: int) -> None:
    """A request that makes ``busy`` slots of the worker busy, and whose client then leaves."""
    _, writer = await asyncio.open_unix_connection(lease.socket)
    body = json.dumps({"messages": [{"role": "user", "content": text}], "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: worker\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(f"{head}{body}".encode())
    async with asyncio.timeout(30):
        while (await stats_of(lease))["busy"] < busy:
            pass  # each question is a round trip
    writer.close()
    lease.release(abandoned=True)


async def stats_of(lease: FleetLease) -> dict[str, Any]:
    connector = aiohttp.UnixConnector(str(lease.socket))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://worker/stats") as reply:
        stats = await reply.json()
    assert isinstance(stats, dict)
    return stats


@pytest.mark.requirement("R-F6", "R-I3")
async def test_a_slot_whose_client_left_is_granted_only_when_the_worker_has_freed_it(rig: Rig) -> None:
    rig.engine = FakeEngine(pooled=False)  # as llama.cpp: a client lost in prefill is noticed at the next write only
    model = rig.model("deaf")
    for turn in range(3):
        leases = [await rig.fleet.acquire(model, f"t{turn}-{n}") for n in range(OPTIONS.parallel)]
        for busy, lease in enumerate(leases, start=1):
            await leave_in_prefill(lease, "fake: tokens=2 prefill_s=0.6", busy)
        assert rig.fleet.status()["workers"][0]["leases"] == OPTIONS.parallel
    lease = await asyncio.wait_for(rig.fleet.acquire(model, "last"), 30)
    assert (await stats_of(lease))["overcommitted"] == 0
    lease.release()
    await eventually(lambda: rig.fleet.status()["workers"][0]["leases"] == 0)


@pytest.mark.requirement("R-F6")
async def test_leases_of_lost_clients_end_with_their_worker(rig: Rig) -> None:
    rig.engine = FakeEngine(pooled=False)
    model = rig.model("deaf")
    lease = await rig.fleet.acquire(model, "r1")
    await leave_in_prefill(lease, "fake: tokens=2 prefill_s=600", 1)
    assert await asyncio.wait_for(rig.fleet.unload(model, force=True), 30)
    assert rig.fleet.status()["workers"] == []
