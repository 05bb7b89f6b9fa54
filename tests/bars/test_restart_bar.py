"""Restarts that unload nothing: a planned one loses no request, a killed daemon's workers are adopted."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon, UnixConnection
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.slotted import free_ports, rows, steps

Note = Callable[..., None]

PATIENCE_S = 60.0
MODELS = ("one", "two")
PROMPTS = ("fake: tokens=3", "fake: tokens=30 rate=100", "fake: tokens=60 rate=40", "fake: tokens=20 prefill_s=0.2")


@pytest.fixture
def two_models() -> Iterator[Daemon]:
    """A daemon with two models of the fake engine, each in a slot; its workers outlive it."""
    with temporary_home() as home:
        environ = {"XDG_RUNTIME_DIR": str(home.runtime.parent), "HOMELAB_FLEET__ORPHAN_GRACE_S": "60"}
        for number, name in enumerate(MODELS):
            model = write_fake_model(home.root / f"{name}.gguf", weights_bytes=128 * (number + 1), memory_mb=20)
            ModelStore(home.store).import_path(model, ModelRef.parse(name))
        ports = free_ports(2)
        with Daemon(home, fake=True, environ=environ, slots=",".join(map(str, ports))) as daemon:
            for name, port in zip(MODELS, ports, strict=True):
                steps(daemon.call("POST", "/admin/slots/load", {"model": name, "slot": str(port)}))
            yield daemon


def workers(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """What tells a worker from any other, by model."""
    rows = daemon.call("GET", "/admin/models")[1]["models"]
    return {row["model"]: {"id": row["id"], "pid": row["pid"], "state": row["state"]} for row in rows}


def engine_memory_bytes(worker: dict[str, Any]) -> int:
    host = psutil.Process(worker["pid"])
    return sum(process.memory_info().rss for process in [host, *host.children(recursive=True)])


class Client(threading.Thread):
    """Asks one question after another and wants a whole answer each time; it gives up at the first failure.

    Its number says how: streams or whole answers, on one connection as long as the server keeps it open or on fresh
    ones, at the front address or at a slot.
    """

    def __init__(self, front: int, slots: list[int], number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        which = number // 4 % 2
        self._port, self._model = (slots[which], "any") if number % 3 else (front, MODELS[which])
        self._stream, self._keep = bool(number % 2), number % 4 < 2
        self._prompts = itertools.cycle(PROMPTS[number % 4 :] + PROMPTS[: number % 4])
        self._stop_asking = stop
        self._connection: http.client.HTTPConnection | None = None
        self.failures: list[str] = []
        self.took_s: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self._stop_asking.is_set():
            started = time.monotonic()
            prompt = next(self._prompts)
            try:
                self._ask(prompt)
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
                how = f"{'stream' if self._stream else 'whole'}, {'kept' if self._keep else 'fresh'}"
                self.failures.append(f"{how}, {prompt}: {error!r}")
                break
            self.took_s.append((started, time.monotonic() - started))
        self._hang_up()

    def _ask(self, prompt: str) -> None:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "stream": self._stream}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        with self._connection.getresponse() as reply:
            content = reply.read()
        assert reply.status == 200, content
        if self._stream:
            assert content.endswith(b"data: [DONE]\n\n"), content[-300:]
            assert b'"error"' not in content, content[-300:]
        else:
            assert json.loads(content)["choices"][0]["message"]["content"].startswith("tok0"), content
        if not self._keep:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def asking(daemon: Daemon, count: int) -> Iterator[list[Client]]:
    """Clients that ask during the block; at its end all have their last answer."""
    stop = threading.Event()
    slots = [row["port"] for row in rows(daemon)]
    clients = [Client(daemon.port, slots, number, stop) for number in range(count)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        stop.set()
        for client in clients:
            client.join(PATIENCE_S)
    assert not any(client.is_alive() for client in clients)


def answered(clients: list[Client]) -> int:
    return sum(len(client.took_s) for client in clients)


def until(predicate: Callable[[], bool], what: str) -> float:
    """Seconds until ``predicate`` holds; fails after a bound."""
    started = time.monotonic()
    while not predicate():
        assert time.monotonic() - started < PATIENCE_S, f"{what}: it never came true"
        threading.Event().wait(0.01)
    return time.monotonic() - started


@pytest.mark.requirement("B-5", "R-S2")
def test_planned_restarts_under_load_fail_no_request(two_models: Daemon, figure: Note, full: bool) -> None:
    restarts, count = (10, 16) if full else (1, 6)
    before = workers(two_models)
    took_s, marks = [], []
    with asking(two_models, count) as clients:
        for _ in range(restarts):
            seen = answered(clients)
            until(lambda seen=seen: answered(clients) >= seen + 2 * count, "clients are answered")  # type: ignore[misc]
            started = time.monotonic()
            two_models.restart()
            took_s.append(time.monotonic() - started)
            marks.append((started, started + took_s[-1]))
        seen = answered(clients)
        until(lambda: answered(clients) >= seen + 2 * count, "clients are answered")
    failures = [failure for client in clients for failure in client.failures]
    figure("restart.planned.failed_requests", len(failures), "requests", "<= 0")
    assert failures == []
    assert workers(two_models) == before, "the same processes serve"
    for worker in before.values():
        assert stats(two_models, worker)["overcommitted"] == 0
    calm, during = split([pair for client in clients for pair in client.took_s], marks)
    figure("restart.planned.until_serving", max(took_s), "s")
    figure("restart.planned.longest_answer_calm", max(calm), "s")
    figure("restart.planned.longest_answer_during", max(during), "s")


def split(took_s: list[tuple[float, float]], marks: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """How long requests took: those that no restart fell into, and the others."""
    groups: tuple[list[float], list[float]] = ([0.0], [0.0])
    for started, duration in took_s:
        groups[any(started < end and begin < started + duration for begin, end in marks)].append(duration)
    return groups


def stats(daemon: Daemon, worker: dict[str, Any]) -> dict[str, Any]:
    """What the engine itself counts."""
    with contextlib.closing(UnixConnection(str(daemon.home.runtime / f"{worker['id']}.http"), 10)) as connection:
        connection.request("GET", "/stats", headers={"Connection": "close"})
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        return told


@pytest.mark.requirement("B-5", "R-S2")
def test_a_killed_daemons_workers_are_adopted(two_models: Daemon, figure: Note, full: bool) -> None:
    before = workers(two_models)
    memory = {model: engine_memory_bytes(worker) for model, worker in before.items()}
    adopted_s, grown = [0.0], [0.0]
    for _ in range(20 if full else 2):
        with asking(two_models, 4) as clients:
            until(lambda: answered(clients) >= 8, "clients are answered")
            os.kill(two_models.pid, signal.SIGKILL)
            until(lambda: any(client.failures for client in clients), "open requests end")
        two_models.kill()
        two_models.start()
        adopted_s.append(until(lambda: workers(two_models) == before, "both are adopted"))
        grown += [engine_memory_bytes(worker) / memory[model] for model, worker in before.items()]
        with asking(two_models, 4) as clients:
            until(lambda: answered(clients) >= 8, "clients are answered")
        assert [failure for client in clients for failure in client.failures] == []
    for worker in before.values():
        assert stats(two_models, worker)["overcommitted"] == 0
    figure("restart.killed.adopted_after_ready", max(adopted_s), "s", "<= 1.0")
    figure("restart.killed.worker_memory", max(grown), "x", "<= 1.1")
