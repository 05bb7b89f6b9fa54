"""The daemon's life as a process: ready, drained, tidy; signals. The house inside is a stand-in that keeps a diary."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.ops.launch import owner_pid
from homelab_llm.ops.record import DaemonRecord, write_record

PROGRAM = """
import asyncio, os, sys
from homelab_llm.core.paths import Home
from homelab_llm.ops.life import Life, live
from homelab_llm.ops.ownership import sole_daemon

class House:
    addresses = ["127.0.0.1:4321"]
    warnings = [{"text": "a port was taken", "hint": "free it"}]
    def bind(self):
        home.daemon_sock.touch()
    async def start(self, leases):
        if "fail" in sys.argv:
            raise RuntimeError("no")
        print("start", flush=True)
    def let_go(self, worker_id):
        print("let go", worker_id, flush=True)
    async def stop(self, drain_s, *, leave_workers, remove):
        left = " and workers stay" if leave_workers else ""
        print("stop", drain_s, home.daemon_json.exists(), f"remove={remove}{left}", flush=True)
        if "hang" in sys.argv:
            await asyncio.sleep(600)

async def main(owner):
    stopping = asyncio.Event()
    if "shutdown" in sys.argv:
        stopping.set()
    hang_up = lambda: print("hup", flush=True)
    await live(House(), Life(home, owner, os.environ, stopping, drain_s=2, hang_up=hang_up))

home = Home.at()
with sole_daemon(home) as owner:
    asyncio.run(main(owner))
print("end", flush=True)
"""


@contextmanager
def life(*argv: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_zero_leaving_nothing(home: Home, number: signal.Signals) -> None:
    path = str(home.runtime / "n.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = path
        try:
            with life() as process:
                assert line(process) == "start"
                assert manager.recv(100).startswith(b"READY=1")
                record = json.loads(home.daemon_json.read_text())
                assert record["pid"] == process.pid
                assert record["listeners"] == ["127.0.0.1:4321"]
                assert record["warnings"] == [{"text": "a port was taken", "hint": "free it"}]
                assert record["managed"] is True
                process.send_signal(number)
                assert manager.recv(100) == b"STOPPING=1"
                left = " and workers stay" if number == signal.SIGTERM else ""
                assert line(process) == f"stop 2 False remove=True{left}"
                assert line(process) == "end"
                assert process.wait(10) == 0
        finally:
            del os.environ["NOTIFY_SOCKET"]
    assert not home.daemon_json.exists()
    assert not home.daemon_sock.exists()


def test_a_second_signal_ends_a_hanging_drain_at_once(home: Home) -> None:
    with life("hang") as process:
        assert line(process) == "start"
        process.send_signal(signal.SIGTERM)
        assert line(process).startswith("stop")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    assert not home.daemon_sock.exists()


def test_a_hang_up_is_passed_on_and_ends_nothing(home: Home) -> None:
    with life() as process:
        assert line(process) == "start"
        process.send_signal(signal.SIGHUP)
        assert line(process) == "hup"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "stop 2 False remove=True"


def test_a_house_that_cannot_start_is_taken_down_and_leaves_nothing(home: Home) -> None:
    with life("fail") as process:
        assert line(process) == "stop 2 False remove=True"
        assert process.wait(10) == 1
    assert not home.daemon_json.exists()
    assert not home.daemon_sock.exists()


def test_a_manager_that_asks_over_the_socket_ends_the_workers_too(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMELAB_SERVICE", "launchd")
    with life("shutdown") as process:
        assert line(process) == "start"
        assert line(process) == "stop 2 False remove=True"
        assert process.wait(10) == 0


@pytest.mark.requirement("R-S2")
def test_a_second_daemon_is_refused_with_the_pid_of_the_first(home: Home) -> None:
    with life() as first:
        assert line(first) == "start"
        with life() as second:
            assert second.wait(20) == 1
            assert second.stderr is not None
            assert f"another daemon owns {home.root} (pid {first.pid})" in second.stderr.read()
        assert home.daemon_sock.exists(), "the first one is not disturbed"


@pytest.mark.requirement("R-S2")
def test_a_pid_file_whose_pid_is_somebody_elses_now_keeps_nobody_out(home: Home) -> None:
    home.daemon_lock.write_text(str(os.getpid()))
    write_record(home, DaemonRecord(pid=os.getpid(), version="1", started_unix_s=0, socket=str(home.daemon_sock)))
    assert owner_pid(home) is None
    with life() as process:
        assert line(process) == "start"
        assert owner_pid(home) == process.pid
