"""What happens when something dies or leaves: workers, clients, the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon, UnixConnection
from homelab_llm.testing.models import write_fake_model

Note = Callable[..., None]

PATIENCE_S = 30.0


def _until(predicate: Callable[[], bool]) -> float:
    """Seconds until ``predicate`` holds; fails after a bound."""
    started = time.monotonic()
    while not predicate():
        assert time.monotonic() - started < PATIENCE_S, "it never came true"
        threading.Event().wait(0.01)
    return time.monotonic() - started


def _send(daemon: Daemon, body: dict[str, Any]) -> socket.socket:
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE_S)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def _ask(model: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


def _load(daemon: Daemon, model: str) -> dict[str, Any]:
    status, text = daemon.call("POST", "/admin/models/load", {"model": model})
    assert (status, '"ready"' in str(text)) == (200, True), text
    return next(row for row in daemon.call("GET", "/admin/models")[1]["models"] if row["model"] == model)


def _events(connection: socket.socket) -> Iterator[Any]:
    with connection.makefile("rb") as stream:
        for line in stream:
            if line == b"0\r\n":  # the last chunk of the reply
                return
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line[6:])


def _leases(daemon: Daemon) -> int:
    return sum(row["leases"] + row["waiting"] for row in daemon.call("GET", "/admin/models")[1]["models"])


def _engine_of(row: dict[str, Any]) -> psutil.Process:
    """The engine below the worker host."""
    host = psutil.Process(row["pid"])
    return host.children()[0] if host.children() else host


@pytest.mark.requirement("R-I2", "R-G3")
def test_a_killed_worker_ends_the_stream_with_a_typed_error_and_the_next_request_works(
    request: pytest.FixtureRequest, fake_daemon: Daemon, figure: Note
) -> None:
    kind = request.node.callspec.params["fake_daemon"]
    row = _load(fake_daemon, "fake:latest")
    engine = _engine_of(row)
    with contextlib.closing(_send(fake_daemon, _ask("fake", "fake: tokens=5000 rate=100", stream=True))) as connection:
        events = _events(connection)
        seen = [next(events) for _ in range(5)]
        assert all("error" not in event for event in seen)
        killed = time.monotonic()
        engine.send_signal(signal.SIGKILL)
        error = next(event for event in events if "error" in event)["error"]
        figure(f"fault.worker_killed.{kind}.error_event", time.monotonic() - killed, "s", "<= 1.0")
        assert error["code"] in ("worker_crashed", "worker_out_of_memory")
        assert list(events) == []
    with contextlib.closing(_send(fake_daemon, _ask("fake", "fake: tokens=2"))) as connection:
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
    _until(lambda: _leases(fake_daemon) == 0)
    rows = fake_daemon.call("GET", "/admin/models")[1]["models"]
    assert [row["pid"] for row in rows if psutil.Process(row["pid"]).is_running()] == [rows[0]["pid"]]


@pytest.mark.requirement("R-I3", "R-S2")
@pytest.mark.parametrize(
    ("name", "text", "stream"),
    [
        ("in mid-stream", "fake: tokens=5000 rate=20", True),
        ("in prefill", "fake: tokens=50 prefill_s=600", True),
        ("before a whole reply", "fake: tokens=5000 rate=20", False),
    ],
)
def test_clients_that_leave_free_every_slot(
    request: pytest.FixtureRequest, fake_daemon: Daemon, figure: Note, full: bool, name: str, text: str, stream: bool
) -> None:
    kind = request.node.callspec.params["fake_daemon"]
    row = _load(fake_daemon, "fake:latest")
    freed = _leave(fake_daemon, lambda: _ask("fake", text, stream=stream), 200 if full else 30)
    worker = str(fake_daemon.home.runtime / f"{row['id']}.http")
    freed += _until(lambda: _get(worker, "/stats")["busy"] == 0)
    figure(f"fault.disconnect.{kind}.{name.replace(' ', '_')}", freed, "s", "<= 2.0")
    stats = _get(worker, "/stats")
    assert (stats["busy"], stats["overcommitted"]) == (0, 0)
    assert _leases(fake_daemon) == 0


def _leave(daemon: Daemon, body: Callable[[], dict[str, Any]], count: int) -> float:
    """``count`` clients ask, 32 at once, wait for a sign of life where there is one, and hang up; seconds to idle."""
    freed = 0.0
    for _ in range(0, count, 32):
        connections = [_send(daemon, body()) for _ in range(32)]
        _until(lambda: _leases(daemon) > 0)
        for connection in connections:
            connection.close()
        freed = max(freed, _until(lambda: _leases(daemon) == 0))
    return freed


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize(
    ("name", "text", "fields"),
    [
        ("mid-stream", "Tell a long story.", {"stream": True, "max_tokens": 2000}),
        ("prefill", "word " * 1800, {"stream": True, "max_tokens": 2000}),
        ("whole reply", "Tell a long story.", {"max_tokens": 2000}),
    ],
)
def test_a_real_engine_is_freed_when_clients_leave(
    daemon: Daemon, figure: Note, full: bool, name: str, text: str, fields: dict[str, Any]
) -> None:
    row = _load(daemon, "smollm2:135m")
    number = iter(range(10**6))

    def body() -> dict[str, Any]:
        return _ask("smollm2:135m", f"{next(number)} {text}", **fields)

    freed = _leave(daemon, body, 200 if full else 32)
    worker = str(daemon.home.runtime / f"{row['id']}.http")
    freed += _until(lambda: not any(slot["is_processing"] for slot in _get(worker, "/slots")))
    assert _leases(daemon) == 0
    figure(f"fault.disconnect.smollm2.{name.replace(' ', '_')}", freed, "s", "<= 3.0")


def _get(worker: str, path: str) -> Any:
    """JSON from a worker's own socket."""
    with contextlib.closing(UnixConnection(worker, 10)) as connection:
        connection.request("GET", path, headers={"Connection": "close"})
        return json.loads(connection.getresponse().read())


@pytest.mark.requirement("R-S2")
def test_a_killed_daemon_leaves_no_worker_and_no_socket_in_use(
    request: pytest.FixtureRequest, fake_daemon: Daemon, figure: Note
) -> None:
    kind = request.node.callspec.params["fake_daemon"]
    row = _load(fake_daemon, "fake:latest")
    family = [psutil.Process(row["pid"]), *psutil.Process(row["pid"]).children(recursive=True)]
    assert len(family) >= 2
    os.kill(fake_daemon.pid, signal.SIGKILL)
    gone = _until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))
    figure(f"fault.daemon_killed.{kind}.workers_gone", gone, "s")
    for path in fake_daemon.home.runtime.glob("*"):
        if path.is_socket():
            with (
                contextlib.closing(socket.socket(socket.AF_UNIX)) as probe,
                pytest.raises(OSError, match=r"refused|No such"),
            ):
                probe.connect(str(path))
    fake_daemon.kill()
    fake_daemon.start()
    assert _load(fake_daemon, "fake:latest")["state"] == "ready"


@pytest.mark.requirement("R-S1", "R-U8")
def test_a_home_with_a_path_of_200_characters_serves(tmp_path: Path) -> None:
    root = tmp_path / ("h" * 100) / ("o" * 99)
    runtime = tmp_path / "r"
    runtime.mkdir(mode=0o700)
    home = Home.at(root, environ={"XDG_RUNTIME_DIR": str(runtime)}).ensure()
    ModelStore(home.store).import_path(write_fake_model(tmp_path / "fake.gguf"), ModelRef.parse("fake"))
    with Daemon(home, fake=True, environ={"XDG_RUNTIME_DIR": str(runtime)}) as daemon:
        assert len(str(root)) > 200
        with contextlib.closing(_send(daemon, _ask("fake", "fake: tokens=2"))) as connection:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
