"""Starting the daemon when a verb needs it: once, detached, and with its last words when it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from homelab_llm.core.errors import DaemonRunning, DaemonUnavailable
from homelab_llm.core.paths import Home
from homelab_llm.interface.cli.exit_codes import exit_code_of
from homelab_llm.interface.daemon_client import DaemonClient
from homelab_llm.ops import launch
from homelab_llm.ops.launch import daemon_log, ensure_daemon, owner_pid
from homelab_llm.ops.record import read_record
from homelab_llm.testing.events import eventually

MLXCTL = [sys.executable, "-m", "homelab_llm.interface.cli.main"]


@pytest.fixture
def quiet(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home whose daemons take free ports, and are gone at the end."""
    monkeypatch.setenv("HOMELAB_SERVER__LISTEN", "127.0.0.1:0")
    yield home
    if pid := owner_pid(home):
        os.kill(pid, signal.SIGKILL)


def background(argv: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, env=environ, stderr=subprocess.DEVNULL)


def start(home: Home) -> DaemonClient:
    client = DaemonClient(home.daemon_sock)
    ensure_daemon(home, client.answers, os.environ)
    return client


@pytest.mark.requirement("R-U1")
def test_twenty_processes_that_need_the_daemon_at_once_start_one(quiet: Home) -> None:
    calls = [
        subprocess.Popen([*MLXCTL, "daemon", "start", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(20)
    ]
    told = [(call.communicate(timeout=120)[0], call.returncode) for call in calls]
    assert [code for _, code in told] == [0] * 20
    assert len({json.loads(out)["pid"] for out, _ in told}) == 1
    ready = [line for line in daemon_log(quiet).read_text().splitlines() if '"message": "ready"' in line]
    assert len(ready) == 1


def test_the_daemon_has_a_session_and_a_log_of_its_own(quiet: Home) -> None:
    start(quiet)
    record = read_record(quiet)
    assert record is not None
    assert os.getsid(record.pid) == record.pid
    assert owner_pid(quiet) == record.pid
    assert record.listeners[0].startswith("127.0.0.1:")
    assert not record.listeners[0].endswith(":0")
    assert '"message": "ready"' in daemon_log(quiet).read_text()


@pytest.mark.requirement("R-S2")
async def test_after_a_kill_the_next_verb_finds_a_clean_home(quiet: Home) -> None:
    start(quiet)
    first = read_record(quiet)
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    await eventually(lambda: owner_pid(quiet) is None)
    assert not DaemonClient(quiet.daemon_sock).answers()
    assert start(quiet).answers()
    second = read_record(quiet)
    assert second is not None
    assert second.pid != first.pid


def test_a_daemon_that_dies_at_its_start_is_quoted(quiet: Home) -> None:
    quiet.config.write_text("server:\n  lisen: x\n")
    with pytest.raises(DaemonUnavailable) as caught:
        start(quiet)
    assert "config.yaml:2: server.lisen: no such setting" in caught.value.message
    assert caught.value.hint == "mlxctl doctor"


def test_stop_ends_it_and_a_second_stop_finds_none(quiet: Home) -> None:
    start(quiet)
    stopped = subprocess.run([*MLXCTL, "daemon", "stop", "--json"], capture_output=True, check=True)
    assert json.loads(stopped.stdout)["stopped"] is True
    assert owner_pid(quiet) is None
    assert not quiet.daemon_json.exists()
    assert not quiet.daemon_sock.exists()
    again = subprocess.run([*MLXCTL, "daemon", "stop", "--json"], capture_output=True, check=True)
    assert json.loads(again.stdout)["stopped"] is False


@pytest.mark.parametrize("how", [(), ("--cold",)])
def test_restart_is_another_process(quiet: Home, how: tuple[str, ...]) -> None:
    start(quiet)
    before = owner_pid(quiet)
    done = subprocess.run([*MLXCTL, "daemon", "restart", "--json", *how], capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["pid"] not in (None, before)
    assert told["pid"] == owner_pid(quiet)
    assert told["state"] == ("started" if how else "restarted")


def test_a_daemon_that_holds_the_home_and_answers_nobody_can_be_stopped(quiet: Home) -> None:
    program = "import sys, time; from pathlib import Path; from homelab_llm.core.locks import try_lock; "
    program += "held = try_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, str(quiet.daemon_lock)], stdout=subprocess.PIPE) as hung:
        assert hung.stdout is not None
        assert hung.stdout.readline() == b"held\n"
        asked = subprocess.run([*MLXCTL, "daemon", "status"], capture_output=True, text=True, check=False)
        assert asked.returncode == 10
        assert f"(pid {hung.pid}) does not answer" in asked.stderr
        subprocess.run([*MLXCTL, "daemon", "stop"], capture_output=True, check=True)
        assert hung.wait(10) == -signal.SIGTERM


def test_the_code_of_a_second_daemon_is_the_one_launch_waits_for() -> None:
    assert exit_code_of(DaemonRunning) == launch._CONFLICT


SYSTEMCTL = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path
from homelab_llm.core.locks import locked

if "restart" in sys.argv:
    lock = Path("{lock}")
    os.kill(int(lock.read_text()), signal.SIGTERM)
    with locked(lock, wait_s=20):
        pass
    quiet = subprocess.DEVNULL
    subprocess.Popen({serve!r}, stdout=quiet, stderr=quiet, env=dict(os.environ, NOTIFY_SOCKET="/nonexistent"))
"""


async def test_a_service_is_restarted_by_its_manager_and_not_by_us(
    quiet: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = [sys.executable, "-m", "homelab_llm.ops.serve", "--home", str(quiet.root)]
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(SYSTEMCTL.format(python=sys.executable, lock=quiet.daemon_lock, serve=serve))
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with background(serve, {**os.environ, "NOTIFY_SOCKET": "/nonexistent"}) as first:
        await eventually(DaemonClient(quiet.daemon_sock).answers, 30)
        done = subprocess.run([*MLXCTL, "daemon", "restart", "--cold", "--json"], capture_output=True, check=True)  # noqa: ASYNC221
        second = json.loads(done.stdout)
        assert first.wait(20) == 0
    assert second["managed"] is True
    assert second["pid"] != first.pid
