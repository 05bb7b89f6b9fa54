"""Workers and daemons: who ends whom, and what a restart leaves loaded. Real daemons, the fake engine."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psutil
import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.events import eventually
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.slotted import free_ports, rows, steps

Start = Callable[..., Daemon]
MANAGED = {"NOTIFY_SOCKET": "/nonexistent"}


@pytest.fixture
def start(home: Home) -> Iterator[Start]:
    """Starts a daemon with a model loaded, whose workers outlive it for a minute; it is stopped at the end."""
    ModelStore(home.store).import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("fake"))
    with ExitStack() as stack:

        def started(**environ: str) -> Daemon:
            daemon = Daemon(home, fake=True, environ={"HOMELAB_FLEET__ORPHAN_GRACE_S": "60", **environ})
            stack.enter_context(daemon)
            assert daemon.call("POST", "/admin/models/load", {"model": "fake"})[0] == 200
            return daemon

        yield started


def worker(daemon: Daemon) -> dict[str, Any]:
    (row,) = daemon.call("GET", "/admin/models")[1]["models"]
    return dict(row)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def watches(daemon: Daemon, row: dict[str, Any]) -> int:
    """The process whose death would end the worker, as its host says."""
    with closing(socket.socket(socket.AF_UNIX)) as link:
        link.settimeout(10)
        link.connect(str(daemon.home.runtime / f"{row['id']}.ctl"))
        with link.makefile("rb") as lines:
            return int(json.loads(lines.readline())["daemon_pid"])


@pytest.mark.requirement("B-5", "R-S2")
async def test_a_service_manager_that_stops_the_daemon_leaves_its_workers_to_the_next_one(start: Start) -> None:
    daemon = start(**MANAGED)
    row = worker(daemon)
    host = psutil.Process(row["pid"])
    assert daemon.stop() == 0
    assert lives(host)
    daemon.start()
    assert {key: worker(daemon)[key] for key in ("id", "pid", "state")} == {k: row[k] for k in ("id", "pid", "state")}
    assert watches(daemon, row) == daemon.pid
    assert daemon.call("POST", "/admin/shutdown", {})[0] == 202
    await eventually(lambda: not lives(host), 20, what="the operator's stop ends every worker")


async def test_a_signal_to_a_daemon_that_nobody_manages_ends_its_workers(start: Start) -> None:
    daemon = start()
    host = psutil.Process(worker(daemon)["pid"])
    assert daemon.stop() == 0
    assert not lives(host)


@pytest.mark.requirement("B-5", "R-S2")
@pytest.mark.parametrize("point", ["handover.serving=kill", "handover.claimed=kill"])
async def test_workers_that_a_failed_new_daemon_had_adopted_come_back(start: Start, point: str) -> None:
    daemon = start(HOMELAB_FAILPOINTS=point)
    row = worker(daemon)
    assert daemon.call("POST", "/admin/restart", {})[0] == 503
    await eventually(lambda: watches(daemon, row) == daemon.pid)
    assert (worker(daemon)["pid"], worker(daemon)["state"]) == (row["pid"], "ready")
    status, told = daemon.call("POST", "/v1/chat/completions", asked("fake: tokens=2"))
    assert (status, told["choices"][0]["message"]["content"]) == (200, "tok0 tok1")


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.requirement("B-5")
@pytest.mark.parametrize("restarts", [1, 2])
async def test_a_stream_goes_on_in_the_old_daemon_and_counts_in_the_newest(start: Start, restarts: int) -> None:
    daemon = start()
    row = worker(daemon)
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    tokens = 160 * restarts  # four seconds for each restart
    content = json.dumps(asked(f"fake: tokens={tokens} rate=40", stream=True))
    connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.readline().startswith(b"data: ")
    for _ in range(restarts):
        daemon.restart()
        assert (worker(daemon)["pid"], worker(daemon)["leases"]) == (row["pid"], 1)
    assert watches(daemon, row) == daemon.pid
    rest = reply.read()
    reply.close()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert f"tok{tokens - 1}".encode() in rest
    await eventually(lambda: worker(daemon)["leases"] == 0)
    connection.close()


@pytest.mark.requirement("B-5", "R-S2")
async def test_a_killed_daemons_stream_ends_and_its_worker_serves_the_next_one(start: Start) -> None:
    daemon = start()
    row = worker(daemon)
    psutil.Process(daemon.pid).send_signal(signal.SIGKILL)
    daemon.kill()
    daemon.start()
    assert (worker(daemon)["pid"], worker(daemon)["state"]) == (row["pid"], "ready")
    assert daemon.call("POST", "/v1/chat/completions", asked("fake: tokens=2"))[0] == 200


@pytest.mark.requirement("B-5", "R-F4")
def test_a_restart_waits_for_a_slot_that_is_being_loaded(home: Home) -> None:
    """Half of a load cannot be handed over, and the new daemon must not take it for a failure."""
    path = write_fake_model(home.root / "slow.gguf", load_s=1.5)
    ModelStore(home.store).import_path(path, ModelRef.parse("slow"))
    (port,) = free_ports(1)
    with Daemon(home, fake=True, slots=str(port), environ={"HOMELAB_FLEET__ORPHAN_GRACE_S": "60"}) as daemon:
        told: list[tuple[int, Any]] = []
        body = {"model": "slow", "slot": str(port)}
        loading = threading.Thread(target=lambda: told.append(daemon.call("POST", "/admin/slots/load", body)))
        loading.start()
        while rows(daemon)[0]["state"] != "loading":
            assert not told, told
        daemon.restart()
        loading.join(30)
        assert steps(told[0])[-1]["stage"] == "ready"
        (row,) = rows(daemon)
        assert (row["state"], row["model"], row["last_failure"], row["drift"]) == ("serving", "slow:latest", "", "")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(asked("fake: tokens=2")), {"Content-Type": "application/json"}
        )
        with connection.getresponse() as reply:
            assert reply.status == 200
        connection.close()
