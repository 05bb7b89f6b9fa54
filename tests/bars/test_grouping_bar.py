"""Two models, memory for one, clients that want both: requests are grouped, so that swaps are few and waits bounded."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Protocol

import httpx2
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.slotted import ONE_MODEL_BYTES

CLIENTS = 8
EVERY_S = 0.5
LONGEST_WAIT_S = 15.0


class Note(Protocol):
    """Takes one measured figure."""

    def __call__(self, id: str, value: float, unit: str, goal: str = "", spread: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was sent and answered, from the start."""

    model: str
    sent_s: float
    answered_s: float
    status: int


@pytest.fixture
def narrow() -> Iterator[Daemon]:
    """A daemon with two models that take a moment to load, and memory for one of them."""
    with temporary_home() as home:
        for name in ("a", "b"):
            file = write_fake_model(home.root / f"{name}.gguf", name=name, load_s=0.3)
            ModelStore(home.store).import_path(file, ModelRef.parse(name))
        environ = {
            "XDG_RUNTIME_DIR": str(home.runtime.parent),
            "HOMELAB_FLEET__MEMORY_BUDGET_BYTES": str(ONE_MODEL_BYTES),
            "HOMELAB_FLEET__TURN_S": "5",
            "HOMELAB_FLEET__MAX_WAIT_S": str(LONGEST_WAIT_S),
            "HOMELAB_ENGINE__PARALLEL": "4",
        }
        with Daemon(home, fake=True, environ=environ) as daemon:
            yield daemon


def swaps_in(models: Sequence[str]) -> int:
    """How often who serves in this order, with memory for one model, must swap."""
    return sum(1 for before, after in pairwise(models) if before != after)


async def _ask(client: httpx2.AsyncClient, model: str, start_s: float, at_s: float) -> Asked:
    await asyncio.sleep(max(0.0, start_s + at_s - time.perf_counter()))
    sent_s = time.perf_counter() - start_s
    body = {"model": model, "messages": [{"role": "user", "content": "fake: tokens=5 rate=100"}]}
    reply = await client.post("/v1/chat/completions", json=body)
    return Asked(model, sent_s, time.perf_counter() - start_s, reply.status_code)


async def _alternate(url: str, seconds: float) -> list[Asked]:
    """Each client asks for the two models in turn, whether the answer before has come or not."""
    chance = Random(7)  # noqa: S311 - chance for tests, not for secrets
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as client:
        start_s = time.perf_counter()
        asking = []
        for number in range(CLIENTS):
            at_s, turn = chance.random() * EVERY_S, number
            while at_s < seconds:
                asking.append(_ask(client, "ab"[turn % 2], start_s, at_s))
                at_s, turn = at_s + EVERY_S * (0.5 + chance.random()), turn + 1
        return await asyncio.gather(*asking)


@pytest.mark.requirement("B-2")
def test_alternating_requests_for_two_models_are_grouped_and_all_answered(
    narrow: Daemon, full: bool, figure: Note
) -> None:
    asked = asyncio.run(_alternate(narrow.url, 60.0 if full else 4.0))
    assert {request.status for request in asked} == {200}
    in_order = [request.model for request in sorted(asked, key=lambda request: request.sent_s)]
    answered = [request.model for request in sorted(asked, key=lambda request: request.answered_s)]
    first_come, ours = swaps_in(in_order), swaps_in(answered)
    waits = [request.answered_s - request.sent_s for request in asked]
    told = f"{len(asked)} requests: {ours} swaps, {first_come} in the order they came"
    figure("grouping.swaps", ours / first_come, "of first-come order", "<= 0.33", told)
    spread = f"p50 {statistics.median(waits):.2f} s"
    figure("grouping.longest_wait", max(waits), "s", f"<= {LONGEST_WAIT_S:g}", spread)
    assert ours <= first_come / 3
