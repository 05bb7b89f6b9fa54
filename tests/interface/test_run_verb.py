"""``run`` and ``chat`` through the real daemon, with the fake engine: answers, errors, Ctrl-C, a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.events import eventually
from homelab_llm.testing.models import write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

MLXCTL = [sys.executable, "-m", "homelab_llm.interface.cli.main"]


@pytest.fixture
def fleet(home: Home) -> Iterator[Daemon]:
    """A daemon with the fake engine and the model ``fake:latest``."""
    path = write_fake_model(home.root / "fake.gguf")
    ModelStore(home.store).import_path(path, ModelRef.parse("fake"))
    with Daemon(home, fake=True) as running:
        yield running


def started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def leases(daemon: Daemon) -> list[int]:
    return [int(entry["leases"]) for entry in daemon.call("GET", "/admin/models")[1]["models"]]


@pytest.mark.requirement("R-U1")
def test_run_streams_the_answer_and_v_adds_the_counts(mlxctl: Mlxctl, fleet: Daemon) -> None:
    shown = mlxctl("run", "fake", "fake: tokens=3", "-v")
    assert (shown.code, shown.out) == (0, "tok0 tok1 tok2\n")
    assert "3 answer tokens" in shown.err
    assert "tokens/s" in shown.err
    assert mlxctl("ps", "--json").json()["models"][0]["model"] == "fake:latest"
    assert mlxctl("stop", "fake").out == "stopped fake\n"
    assert mlxctl("ps", "--json").json()["models"] == []


@pytest.mark.requirement("R-F4")
def test_run_with_json_is_one_object(mlxctl: Mlxctl, fleet: Daemon) -> None:
    shown = mlxctl("run", "fake", "fake: tokens=3", "--json")
    found = shown.json()
    assert (found["model"], found["answer"], found["finish_reason"]) == ("fake:latest", "tok0 tok1 tok2", "stop")
    assert found["usage"]["completion_tokens"] == 3
    assert shown.err == ""


def test_what_is_piped_in_follows_the_prompt_or_is_the_prompt(mlxctl: Mlxctl, fleet: Daemon) -> None:
    alone = mlxctl("run", "fake", "--json", stdin=b"fake: tokens=2\n").json()
    assert alone["answer"] == "tok0 tok1"
    both = mlxctl("run", "fake", "one two three", "--json", stdin=b"four fake: tokens=2\n").json()
    assert both["answer"] == "tok0 tok1"
    assert both["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]
    assert mlxctl("run", "fake", stdin=b" \n").code == 3


def test_options_reach_the_engine(mlxctl: Mlxctl, fleet: Daemon) -> None:
    assert mlxctl("run", "fake", "hi", "--max-tokens", "2", "--json").json()["finish_reason"] == "length"
    assert mlxctl("run", "fake", "hi", "--keep-alive", "-1", "--max-tokens", "1").code == 0
    assert mlxctl("ps", "--json").json()["models"][0]["expires_in_s"] is None


@pytest.mark.requirement("R-F4")
def test_an_engine_that_dies_in_the_middle_is_an_error_after_what_was_said(mlxctl: Mlxctl, fleet: Daemon) -> None:
    shown = mlxctl("run", "fake", "fake: tokens=9 coalesce=1 crash_at=3")
    assert shown.code == 8
    assert shown.out.startswith("tok0 tok1 tok2")
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert mlxctl("run", "fake", "fake: tokens=1").code == 0, "the next one works"


def test_a_model_that_is_nowhere_names_the_closest_and_where_to_get_one(mlxctl: Mlxctl, fleet: Daemon) -> None:
    error = mlxctl("run", "fakee", "hi", "--json").json()["error"]
    assert error["code"] == "model_not_found"
    assert error["facts"]["closest"] == ["fake:latest"]
    assert error["hint"]


@pytest.mark.requirement("R-F4")
async def test_control_c_breaks_off_the_answer_at_the_engine_too(fleet: Daemon) -> None:
    command = [*MLXCTL, "run", "fake", "fake: tokens=100000 rate=50 coalesce=1"]
    with started(command) as running:
        assert running.stdout is not None
        assert running.stdout.read(4) == b"tok0"
        assert leases(fleet) == [1]
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    await eventually(lambda: leases(fleet) == [0])


def test_a_chat_without_a_terminal_answers_line_by_line(mlxctl: Mlxctl, fleet: Daemon) -> None:
    shown = mlxctl("chat", "fake", stdin=b"fake: tokens=1\n\nfake: tokens=2\n")
    assert shown.out == "tok0\ntok0 tok1\n"


@pytest.mark.requirement("R-U1")
async def test_the_log_of_a_worker_and_the_record_of_requests_can_be_read(mlxctl: Mlxctl, fleet: Daemon) -> None:
    mlxctl("run", "fake", "fake: tokens=1")
    assert mlxctl("logs", "fake").code == 0

    def models() -> list[Any]:
        return json.loads(mlxctl("db", "query", "SELECT model FROM requests", "--json").out)["rows"]  # type: ignore[no-any-return]

    await eventually(lambda: ["fake:latest"] in models())


class Screen:
    """A terminal with a program in it."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._master = master
        self.shown = ""

    def until(self, text: str, within_s: float = 30) -> str:
        """What was shown since the last call, up to and with ``text``."""
        deadline = time.monotonic() + within_s
        while text not in self.shown:
            readable, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"{text!r} was not shown, but {self.shown!r}"
            self.shown += os.read(self._master, 65536).decode("utf-8", "replace")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def types(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")


@contextmanager
def terminal(*argv: str) -> Iterator[Screen]:
    """Run the command line on a terminal of its own."""
    master, slave = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen([*MLXCTL, *argv], stdin=slave, stdout=slave, stderr=slave, env=environ) as process:
        os.close(slave)
        try:
            yield Screen(master, process)
        finally:
            process.kill()
            os.close(master)


@pytest.mark.requirement("R-U1")
async def test_a_chat_on_a_terminal_talks_obeys_commands_and_survives_control_c(fleet: Daemon) -> None:
    with terminal("run", "fake") as screen:
        screen.until(">>> ")
        screen.types("fake: tokens=2")
        assert "tok0 tok1" in screen.until("tok1")
        screen.until(">>> ")
        screen.types("/nonsense")
        screen.until("no such command: /nonsense")
        screen.until(">>> ")
        screen.types("fake: tokens=100000 rate=50 coalesce=1")
        screen.until("tok3")
        screen.process.send_signal(signal.SIGINT)
        screen.until(">>> ")
        await eventually(lambda: leases(fleet) == [0])
        screen.types("fake: tokens=1")
        screen.until("tok0")
        screen.until(">>> ")
        screen.types("/bye")
        assert screen.process.wait(20) == 0
    history = fleet.home.root / "chat_history"
    assert "/nonsense" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.requirement("R-F4")
def test_rm_asks_on_a_terminal_and_no_means_no(fleet: Daemon, mlxctl: Mlxctl) -> None:
    with terminal("rm", "fake") as screen:
        screen.until("remove fake:latest? [y/N] ")
        screen.types("n")
        screen.until("nothing removed")
        assert screen.process.wait(20) == 0
    assert mlxctl("show", "fake").code == 0
    with terminal("rm", "fake") as screen:
        screen.until("[y/N] ")
        screen.types("y")
        screen.until("removed fake:latest")
    assert mlxctl("show", "fake").code == 4


def test_an_idle_daemon_is_restarted_for_another_engine(home: Home, mlxctl: Mlxctl) -> None:
    environ = {"HOMELAB_SERVER__LISTEN": "127.0.0.1:0"}
    ModelStore(home.store).import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("fake"))
    before = mlxctl("daemon", "start", "--json", environ=environ).json()
    try:
        shown = mlxctl("run", "fake", "hi", "--engine", "mlx", environ=environ)
        after = mlxctl("daemon", "status", "--json").json()
        assert "restarting the idle daemon" in shown.err
        assert shown.code == 8, "no engine of the product runs a fake model"
        assert (before["engine"], after["engine"]) == ("auto", "mlx")
        assert before["pid"] != after["pid"]
    finally:
        assert mlxctl("daemon", "stop").code == 0


def test_a_daemon_that_a_service_manager_keeps_is_not_restarted(home: Home, mlxctl: Mlxctl, fleet: Daemon) -> None:
    record = json.loads(home.daemon_json.read_text())
    home.daemon_json.write_text(json.dumps({**record, "managed": True}))
    refused = mlxctl("run", "fake", "fake: tokens=1", "--engine", "mlx")
    assert refused.code == 6
    assert "a service manager keeps it" in refused.err
    assert "engine.prefer: mlx" in refused.err
    assert mlxctl("run", "fake", "fake: tokens=1", "--engine", record["engine"]).code == 0
