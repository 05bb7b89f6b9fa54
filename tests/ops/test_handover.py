"""The planned restart: a new process, the same sockets and lock; and the old one goes on when the new one fails."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.locks import holder_pid
from homelab_llm.core.paths import Home
from homelab_llm.ops.handover.dialogue import Busy, Done, Failed, Message, Prepared, Serving, Yours, decode, encode
from homelab_llm.ops.launch import owner_pid
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.events import eventually

MESSAGES: list[Message] = [
    Busy("migrating", 600.0),
    Prepared(7, "1.2"),
    Yours({"abcde": 2}),
    Serving(7, ["127.0.0.1:1"]),
    Done("abcde"),
    Failed("invalid_settings", "no\nsuch setting", "mend it"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_what_is_said_is_one_line_and_is_understood(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize("line", [b"", b"\n", b"{}", b"[]", b'{"say": "hello"}', b'{"say": "done"}', b"\xff"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(line)


Start = Callable[..., Daemon]


@pytest.fixture
def start(home: Home) -> Iterator[Start]:
    """Starts the daemon of the home with more variables; it is stopped at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda **environ: stack.enter_context(Daemon(home, environ=environ))


def get(connection: http.client.HTTPConnection, path: str = "/v1/models") -> http.client.HTTPResponse:
    connection.request("GET", path)
    with connection.getresponse() as reply:
        reply.read()
        return reply


def dialled(daemon: Daemon) -> http.client.HTTPConnection:
    """A connection that was used and is kept open."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    assert get(connection).status == 200
    return connection


def record(home: Home) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(home.daemon_json.read_text())
    return told


@pytest.mark.requirement("B-5")
def test_a_new_process_serves_on_the_same_sockets(home: Home, start: Start) -> None:
    daemon = start()
    old, port, socket_file = daemon.pid, daemon.port, home.daemon_sock.stat().st_ino
    kept, unix = dialled(daemon), socket.socket(socket.AF_UNIX)
    unix.connect(str(home.daemon_sock))
    told = daemon.restart()
    assert told["pid"] not in (old, None)
    assert (daemon.port, home.daemon_sock.stat().st_ino) == (port, socket_file)
    assert record(home)["pid"] == owner_pid(home) == told["pid"]
    assert daemon.call("GET", "/admin/status")[1]["pid"] == told["pid"]
    reply = get(kept)
    assert (reply.status, reply.headers["connection"]) == (200, "close"), "the old one passed it on"
    assert get(kept).status == 200
    kept.close()
    unix.close()


@pytest.mark.requirement("B-5")
async def test_the_old_process_ends_by_itself_and_leaves_everything_to_the_new_one(home: Home, start: Start) -> None:
    daemon = start()
    old = psutil.Process(daemon.pid)
    daemon.restart()
    await eventually(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, 20)
    assert home.daemon_sock.exists()
    assert record(home)["pid"] == daemon.pid
    assert daemon.call("GET", "/readyz")[0] == 200


@pytest.mark.requirement("B-5")
def test_the_new_one_reads_the_settings_again(home: Home, start: Start) -> None:
    daemon = start()
    named = b"GET / HTTP/1.1\r\nHost: box\r\nConnection: close\r\n\r\n"
    home.config.write_text("server:\n  allowed_hosts: [box]\n")
    for status in (b"403", b"200"):
        with socket.create_connection(("127.0.0.1", daemon.port), timeout=30) as client:
            client.sendall(named)
            assert client.recv(100).split()[1] == status
        if status == b"403":
            daemon.restart()


def goes_on(daemon: Daemon, old: int, kept: http.client.HTTPConnection) -> None:
    """Assert that the old daemon serves as if nothing had been."""
    assert daemon.call("GET", "/admin/status")[1]["pid"] == old
    assert record(daemon.home)["pid"] == holder_pid(daemon.home.daemon_lock) == owner_pid(daemon.home) == old
    assert get(kept).status == 200
    with contextlib.closing(dialled(daemon)) as fresh:
        assert get(fresh).headers["connection"] is None
    assert [child.name() for child in psutil.Process(old).children()] == []


@pytest.mark.requirement("B-5", "R-S2")
@pytest.mark.parametrize(
    "point",
    [
        *("handover.prepared=kill", "handover.prepared=raise", "handover.claimed=kill", "handover.claimed=exit"),
        *("handover.serving=kill", "handover.serving=raise", "handover.spawn=raise", "handover.yours=raise"),
    ],
)
def test_when_the_new_one_fails_the_old_one_goes_on(start: Start, point: str) -> None:
    daemon = start(HOMELAB_FAILPOINTS=point)
    old, kept = daemon.pid, dialled(daemon)
    status, told = daemon.call("POST", "/admin/restart", {})
    assert (status, told["error"]["code"]) == (503, "daemon_unavailable")
    goes_on(daemon, old, kept)
    kept.close()


@pytest.mark.requirement("B-5")
def test_wrong_settings_are_told_and_the_old_one_goes_on(home: Home, start: Start) -> None:
    daemon = start()
    old, kept = daemon.pid, dialled(daemon)
    home.config.write_text("server:\n  lisen: x\n")
    status, told = daemon.call("POST", "/admin/restart", {})
    assert (status, told["error"]["code"]) == (503, "daemon_unavailable")
    assert "config.yaml:2: server.lisen: no such setting" in told["error"]["message"]
    goes_on(daemon, old, kept)
    kept.close()


@pytest.mark.requirement("B-5", "R-S2")
async def test_when_the_old_one_dies_in_between_the_new_one_takes_over_alone(home: Home, start: Start) -> None:
    daemon = start(HOMELAB_FAILPOINTS="handover.yours=kill")
    old = daemon.pid
    with pytest.raises(http.client.HTTPException):
        daemon.restart()
    found = await eventually(lambda: record(home)["pid"] if record(home)["pid"] != old else None, 20)
    assert found is not None
    daemon.take_over(found)
    await eventually(lambda: owner_pid(home) == found)
    assert daemon.call("GET", "/admin/status")[1]["pid"] == found
    with contextlib.closing(dialled(daemon)) as fresh:
        assert get(fresh).status == 200


async def test_a_second_restart_meanwhile_is_refused_and_a_signal_waits_for_the_new_one(
    home: Home, start: Start
) -> None:
    daemon = start()
    old = psutil.Process(daemon.pid)
    told: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: told.append(daemon.restart()))
    first.start()
    await eventually(lambda: bool(old.children()))
    status, refused = daemon.call("POST", "/admin/restart", {})
    assert (status, refused["error"]["code"]) == (409, "conflict")
    old.send_signal(signal.SIGTERM)
    first.join(30)
    assert record(home)["pid"] == told[0]["pid"] != old.pid
    await eventually(lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, 20)
    assert daemon.call("GET", "/readyz")[0] == 200


def test_under_launchd_a_restart_is_left_to_launchd(start: Start) -> None:
    daemon = start(HOMELAB_SERVICE="launchd")
    status, told = daemon.call("POST", "/admin/restart", {})
    assert (status, told["error"]["code"]) == (400, "unsupported_request")
    assert told["error"]["hint"] == "mlxctl daemon restart --cold"


def test_systemd_is_told_the_new_main_process(home: Home, start: Start) -> None:
    path = str(home.runtime / "n.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        daemon = start(NOTIFY_SOCKET=path)
        assert manager.recv(200).startswith(b"READY=1")
        told = daemon.restart()
        heard = [manager.recv(200).decode() for _ in range(3)]
    assert heard[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert sorted(heard[1:])[0] == f"MAINPID={told['pid']}\nREADY=1\nSTATUS=serving"
    assert record(home)["managed"] is True


def test_a_program_to_run_is_taken_from_the_daemons_own_socket_only(home: Home, start: Start, tmp_path: Path) -> None:
    daemon = start()
    python = tmp_path / "python"
    python.symlink_to(os.path.realpath(psutil.Process().exe()))
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request(
        "POST", "/admin/restart", json.dumps({"python": str(python)}), {"Content-Type": "application/json"}
    )
    with connection.getresponse() as reply:
        assert reply.status in (401, 403)
    connection.close()
    status, told = daemon.call("POST", "/admin/restart", {"python": "/nonexistent/python"})
    assert status == 503
    assert "nonexistent" in told["error"]["message"]
