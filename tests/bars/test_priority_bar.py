"""Interactive before batch: who asks by hand hardly notices that a model is saturated; the batch goes on."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model

Note = Callable[..., None]
BATCH_CLIENTS = 12
PATH = "/v1/chat/completions"


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }


async def _first_token_s(client: httpx2.AsyncClient, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    async with client.stream("POST", PATH, json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        first = 0.0
        async for line in reply.aiter_lines():
            if not first and line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - started
    assert first
    return first


@asynccontextmanager
async def _batch(client: httpx2.AsyncClient, body: dict[str, Any]) -> AsyncIterator[list[int]]:
    """A key's batch that saturates the model during the block; yields the count of its finished requests."""
    done = [0]

    async def endless() -> None:
        while True:
            reply = await client.post(PATH, json=body, headers={"x-priority": "batch"})
            assert reply.status_code == 200, reply.text
            done[0] += 1

    tasks = [asyncio.create_task(endless()) for _ in range(BATCH_CLIENTS)]
    try:
        while not done[0]:
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0.01)
        yield done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _compare(url: str, asked: dict[str, Any], batch: dict[str, Any], rounds: int) -> tuple[float, float, int]:
    """p95 of the first token idle and beside the batch, in seconds, and how many batch requests ended meanwhile."""
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        idle = [await _first_token_s(client, asked) for _ in range(rounds)]
        async with _batch(client, batch) as done:
            before = done[0]
            busy = [await _first_token_s(client, asked) for _ in range(rounds)]
            progressed = done[0] - before
    return _p95(idle), _p95(busy), progressed


@pytest.fixture
def fake_house() -> Iterator[Daemon]:
    """A daemon with a loaded fake model of four slots; one of them is kept free of batch requests."""
    with temporary_home() as home:
        ModelStore(home.store).import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("fake"))
        environ = {"XDG_RUNTIME_DIR": str(home.runtime.parent), "HOMELAB_ENGINE__PARALLEL": "4"}
        with Daemon(home, fake=True, environ=environ) as daemon:
            yield daemon


@pytest.mark.requirement("B-10")
def test_interactive_requests_hardly_notice_a_batch(fake_house: Daemon, full: bool, figure: Note) -> None:
    rounds = 100 if full else 20
    asked = _body("fake", "fake: tokens=5 rate=100 prefill_s=0.05", 5)
    batch = {**_body("fake", "fake: tokens=30 rate=100 prefill_s=0.05", 30), "stream": False}
    idle_s, busy_s, progressed = asyncio.run(_compare(fake_house.url, asked, batch, rounds))
    figure("priority.first_token_p95_ratio", busy_s / idle_s, "x", "<= 2", f"idle {idle_s * 1000:.1f} ms")
    figure("priority.batch_progress", float(progressed), "requests", ">= 1")
    assert progressed >= 3
    workers = fake_house.call("GET", "/admin/status")[1]["workers"]
    assert [worker["model"] for worker in workers] == ["fake:latest"]


async def _ubatch_s(url: str) -> float:
    """What one batch of 128 prompt tokens takes: the difference between a long and a short prompt, both new."""
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        short = [await _first_token_s(client, _body("smollm2:135m", f"Day {n}.", 2)) for n in range(5)]
        words = " ".join(f"word{n}" for n in range(40))  # some 130 tokens more
        long = [await _first_token_s(client, _body("smollm2:135m", f"Week {n}. {words}", 2)) for n in range(5)]
    return max(0.0, statistics.median(long) - statistics.median(short))


@pytest.mark.requirement("B-10")
def test_a_real_model_stays_quick_beside_a_batch(daemon: Daemon, full: bool, figure: Note) -> None:
    ubatch_s = asyncio.run(_ubatch_s(daemon.url))
    asked = _body("smollm2:135m", "Say a colour.", 8)
    batch = {**_body("smollm2:135m", "Tell a long story about the sea. " * 20, 64), "stream": False}
    idle_s, busy_s, progressed = asyncio.run(_compare(daemon.url, asked, batch, 40 if full else 4))
    told = f"idle p95 {idle_s * 1000:.1f} ms, busy p95 {busy_s * 1000:.1f} ms, one ubatch {ubatch_s * 1000:.1f} ms"
    figure("priority.smollm2_p95_of_allowed", busy_s / (2 * idle_s + ubatch_s), "x", "<= 1", told)
    figure("priority.smollm2_batch_progress", float(progressed), "requests", ">= 1")
    assert progressed >= 1 or not full  # a few questions may all be answered within one batch request
