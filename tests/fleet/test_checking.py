"""A model is hashed before its load when nobody knows that it is good; once for all who wait."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    Cancelled,
    HomelabError,
    LoadFailed,
    ModelDamaged,
    WorkerCrashed,
    WorkerOutOfMemory,
)
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet.checking import Checking
from homelab_llm.testing.events import eventually

MODEL = StoredModel("tiny:1", Digest.of(b"tiny"), ModelFacts("gguf", "fake", 10))
BOUND_S = 10.0


@dataclass
class HeldTrust:
    """Hashes when the test lets it: every permit is one report, the last one ends the work."""

    damaged: bool = False
    checks: int = 0
    doubts: list[str] = field(default_factory=list)
    good: bool = False
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    broken_off: threading.Event = field(default_factory=threading.Event)

    def known(self, model: StoredModel) -> bool:  # noqa: ARG002
        return self.good

    def check(self, model: StoredModel, told: Callable[[float], None]) -> None:
        self.checks += 1
        try:
            for step in range(1, 5):
                while not self.permits.acquire(timeout=0.02):
                    told((step - 1) / 4)
                told(step / 4)
        except HomelabError:
            self.broken_off.set()
            raise
        if self.damaged:
            raise ModelDamaged(f"{model.name} is damaged", hint=f"mlxctl repair {model.name}")
        self.good = True

    def doubt(self, digest: str) -> None:
        self.doubts.append(digest)
        self.good = False


@pytest.fixture
def trust() -> HeldTrust:
    return HeldTrust()


@pytest.fixture
def checking(trust: HeldTrust) -> Checking:
    return Checking(trust)


async def waits(checking: Checking, request_id: str = "r1") -> list[Wait]:
    return [wait async for wait in checking.until_known(MODEL, request_id)]


async def begun(checking: Checking, *requests: str) -> list[asyncio.Task[list[Wait]]]:
    """Requests that wait for the check."""
    tasks = [asyncio.create_task(waits(checking, request)) for request in requests]
    await eventually(lambda: all(checking.standing(request) for request in requests))
    return tasks


async def test_progress_is_told_under_the_stage_verify(checking: Checking, trust: HeldTrust) -> None:
    (task,) = await begun(checking, "r1")
    assert checking.standing("r1") == Wait("verify", 0.0)
    trust.permits.release(4)
    seen = await asyncio.wait_for(task, BOUND_S)
    assert {wait.stage for wait in seen} == {"verify"}
    assert checking.standing("r1") is None
    assert not checking.needed(MODEL)


async def test_requests_for_one_model_share_one_check(checking: Checking, trust: HeldTrust) -> None:
    tasks = await begun(checking, "r1", "r2", "r3")
    trust.permits.release(4)
    await asyncio.wait_for(asyncio.gather(*tasks), BOUND_S)
    assert trust.checks == 1


@pytest.mark.requirement("R-M4")
async def test_a_damaged_model_is_refused_to_all_who_wait(checking: Checking, trust: HeldTrust) -> None:
    trust.damaged = True
    tasks = await begun(checking, "r1", "r2")
    trust.permits.release(4)
    for error in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), BOUND_S):
        assert isinstance(error, ModelDamaged)


async def test_hashing_ends_when_the_last_one_leaves_and_begins_anew_for_the_next(
    checking: Checking, trust: HeldTrust
) -> None:
    first, second = await begun(checking, "r1", "r2")
    first.cancel()
    await asyncio.wait({first})
    assert not trust.broken_off.is_set()
    second.cancel()
    await asyncio.wait({second})
    assert await asyncio.to_thread(trust.broken_off.wait, BOUND_S)
    (third,) = await begun(checking, "r3")
    trust.permits.release(4)
    await asyncio.wait_for(third, BOUND_S)
    assert trust.checks == 2


async def test_an_unload_calls_the_check_off(checking: Checking, trust: HeldTrust) -> None:
    assert not checking.call_off(str(MODEL.digest))
    (task,) = await begun(checking, "r1")
    assert checking.call_off(str(MODEL.digest))
    with pytest.raises(Cancelled):
        await asyncio.wait_for(task, BOUND_S)


async def test_a_daemon_that_stops_waits_for_no_hash(checking: Checking, trust: HeldTrust) -> None:
    (task,) = await begun(checking, "r1")
    checking.close()
    await asyncio.wait_for(task, BOUND_S)  # the fleet then refuses it
    assert not trust.good


async def test_without_trust_every_model_is_believed() -> None:
    assert not Checking(None).needed(MODEL)


DIGEST = str(MODEL.digest)
SIGSEGV, SIGBUS, SIGKILL = map(int, (signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL))


async def doubted(checking: Checking, error: HomelabError | None, *, loading: bool, trust: HeldTrust) -> bool:
    before = len(trust.doubts)
    checking.failed(DIGEST, error, loading=loading)
    await eventually(lambda: not checking.doubting)
    return len(trust.doubts) > before


@pytest.mark.requirement("R-M4")
@pytest.mark.parametrize(
    ("error", "loading", "expected"),
    [
        (LoadFailed("x", signal=SIGSEGV), True, True),
        (LoadFailed("x", exit_code=1), True, True),
        (WorkerCrashed("x", signal=SIGBUS), False, True),
        (WorkerCrashed("read: Input/output error", exit_code=1), False, True),
        (WorkerCrashed("x", signal=SIGSEGV), False, False),
        (LoadFailed("not ready in time"), True, False),
        (LoadFailed("x", signal=SIGKILL), True, False),
        (WorkerOutOfMemory("x", exit_code=1), True, False),
        (None, True, False),
    ],
)
async def test_the_files_are_doubted_when_they_may_have_ended_the_worker(
    checking: Checking, trust: HeldTrust, error: HomelabError | None, loading: bool, expected: bool
) -> None:
    assert await doubted(checking, error, loading=loading, trust=trust) is expected


async def test_a_model_that_cannot_be_loaded_is_not_hashed_for_ever(checking: Checking, trust: HeldTrust) -> None:
    crash = LoadFailed("x", exit_code=1)
    assert await doubted(checking, crash, loading=True, trust=trust)
    assert not await doubted(checking, crash, loading=True, trust=trust)
    checking.loaded(DIGEST)
    assert await doubted(checking, crash, loading=True, trust=trust)
