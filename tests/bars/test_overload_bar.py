"""Overload is a contract: a full queue says when to come back, and whoever obeys is served then."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx2
import psutil
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model

Note = Callable[..., None]
MODEL = "fake:latest"
MOST_TRIES = 12
MB = 1e6


@dataclass(slots=True)
class Seen:
    """What the clients were answered: statuses, and how many tries each needed (0 = never served)."""

    statuses: Counter[int] = field(default_factory=Counter)
    tries: list[int] = field(default_factory=list)


@pytest.fixture
def crowded(full: bool) -> Iterator[Daemon]:
    """A daemon whose queue is far smaller than the crowd before it; four requests run at once."""
    with temporary_home() as home:
        ModelStore(home.store).import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("fake"))
        environ = {
            "XDG_RUNTIME_DIR": str(home.runtime.parent),
            "HOMELAB_FLEET__QUEUE_LIMIT": "32" if full else "8",
            "HOMELAB_ENGINE__PARALLEL": "4",
        }
        with Daemon(home, fake=True, environ=environ) as daemon:
            status, text = daemon.call("POST", "/admin/models/load", {"model": MODEL, "keep_alive": -1})
            assert (status, '"ready"' in str(text)) == (200, True), text
            yield daemon


def _body() -> bytes:
    prompt = {"role": "user", "content": "fake: tokens=20 rate=100"}  # a fifth of a second
    return json.dumps({"model": MODEL, "messages": [prompt]}).encode()


async def _obedient(client: httpx2.AsyncClient, seen: Seen) -> None:
    """Ask until served; come back when told, neither sooner nor later."""
    for number in range(1, MOST_TRIES + 1):
        headers = {"content-type": "application/json"}
        reply = await client.post("/v1/chat/completions", content=_body(), headers=headers)
        seen.statuses[reply.status_code] += 1
        if reply.status_code == 200:
            seen.tries.append(number)
            return
        error = reply.json()["error"]
        assert error["code"] == "queue_full", error
        assert error["facts"]["place"] >= 1
        await asyncio.sleep(int(reply.headers["retry-after"]))
    seen.tries.append(0)


async def _crowd(url: str, clients: int) -> Seen:
    seen = Seen()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
        await asyncio.gather(*(_obedient(client, seen) for _ in range(clients)))
    return seen


@pytest.mark.requirement("B-6")
def test_a_client_that_comes_back_when_told_is_served(crowded: Daemon, full: bool, figure: Note) -> None:
    clients = 300 if full else 60
    asyncio.run(_crowd(crowded.url, 8))  # all have room: how long a request takes is known from now on
    if full:
        asyncio.run(_crowd(crowded.url, clients))  # what is allocated once is no growth
    process = psutil.Process(crowded.pid)
    before_bytes = process.memory_info().rss
    seen = asyncio.run(_crowd(crowded.url, clients))
    grown = (process.memory_info().rss - before_bytes) / MB
    assert set(seen.statuses) == {200, 503}, seen.statuses
    assert len(seen.tries) == clients
    soon = sum(1 for tries in seen.tries if tries in (1, 2)) / clients
    figure(
        "overload.served_by_second_try", soon, "of clients", ">= 0.95", f"tries {sorted(Counter(seen.tries).items())}"
    )
    figure("overload.memory_growth", grown, "MB", "<= 5")
    assert soon >= 0.95, sorted(Counter(seen.tries).items())
    assert crowded.call("GET", "/admin/status")[1]["waiting"] == 0
