"""Many models: the list is encoded once, a request finds its model as quickly among a thousand as alone."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model

Note = Callable[..., None]


@pytest.fixture
def stocked(full: bool) -> Iterator[tuple[Daemon, ModelStore, int]]:
    """A daemon, its store, and how many models are in it."""
    count = 1000 if full else 60
    with temporary_home() as home:
        store = ModelStore(home.store)
        store.import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("m0"))
        for number in range(1, count):
            store.copy(ModelRef.parse("m0"), ModelRef.parse(f"m{number}"))
        with Daemon(home, fake=True, environ={"XDG_RUNTIME_DIR": str(home.runtime.parent)}) as daemon:
            yield daemon, store, count


def _listed(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/v1/models")
    reply = connection.getresponse()
    content = reply.read()
    assert reply.status == 200, content
    return content


@pytest.mark.requirement("R-G1")
def test_the_list_of_a_thousand_models_is_complete_current_and_quick(
    stocked: tuple[Daemon, ModelStore, int], full: bool, figure: Note
) -> None:
    daemon, store, count = stocked
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    first = _listed(connection)
    assert {row["id"] for row in json.loads(first)["data"]} == {f"m{number}:latest" for number in range(count)}
    taken: list[float] = []
    for _ in range(500 if full else 5):
        started = time.perf_counter()
        assert _listed(connection) == first
        taken.append((time.perf_counter() - started) * 1000)
    figure("models.list_p50", statistics.median(taken), "ms", "<= 2", f"{count} models, {len(first)} bytes")
    store.copy(ModelRef.parse("m0"), ModelRef.parse("newcomer"))
    assert len(json.loads(_listed(connection))["data"]) == count + 1
    connection.close()
