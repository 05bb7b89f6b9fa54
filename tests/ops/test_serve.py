"""``mlxserve``: flags, settings, refusals, signals, on the real daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.interface.daemon_client import DaemonClient
from homelab_llm.ops.record import DaemonRecord, read_record
from homelab_llm.testing.events import eventually

MLXSERVE = [sys.executable, "-m", "homelab_llm.ops.serve"]


def refused(*argv: str) -> tuple[int, str]:
    """Exit code and error output of a daemon that must not start."""
    done = subprocess.run([*MLXSERVE, *argv], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@contextmanager
def serving(*argv: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground, its log in a file."""
    with log.open("wb") as stream, subprocess.Popen([*MLXSERVE, *argv], stderr=stream) as process:
        try:
            yield process
        finally:
            process.kill()


async def ready(home: Home, process: subprocess.Popen[bytes]) -> DaemonRecord:
    """The record of that daemon, once it answers."""

    def answers() -> DaemonRecord | None:
        assert process.poll() is None, "the daemon ended"
        record = read_record(home)
        return record if record and record.pid == process.pid and DaemonClient(home.daemon_sock).answers() else None

    found = await eventually(answers, 30)
    assert found is not None
    return found


def test_slot_ports_that_are_none_are_refused(home: Home) -> None:
    code, said = refused("--slots", "8109-8100")
    assert code == 3
    assert "not ports for slots" in said


@pytest.mark.requirement("R-F1")
async def test_the_daemon_listens_on_its_slots(home: Home, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving("--listen", "127.0.0.1:0", "--slots", str(port), log=tmp_path / "log") as process:
        record = await ready(home, process)
        assert not any(address.endswith(f":{port}") for address in record.listeners)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.requirement("R-F1", "R-F4")
async def test_a_slot_whose_port_another_program_holds_says_so_until_it_is_free(home: Home, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with serving("--listen", "127.0.0.1:0", "--slots", str(port), log=tmp_path / "log") as process:
            record = await ready(home, process)
            assert f":{port} is held by" in record.warnings[0]["text"]
            client = DaemonClient(home.daemon_sock)
            (row,) = client.get("/admin/slots")["slots"]
            assert row["state"] in ("foreign", "unbound")
            assert row["foreign"] is None or row["foreign"]["pid"] == os.getpid()
            holder.close()
            await eventually(lambda: client.get("/admin/slots")["slots"][0]["state"] == "empty", 30)
            assert client.get("/admin/status")["warnings"] == []
            told = read_record(home)
            assert told is not None
            assert told.warnings == []


def test_a_wrong_setting_names_file_line_and_key(home: Home) -> None:
    home.config.write_text("# first line\nfleet:\n  keep_alive: soon\n")
    code, said = refused()
    assert code == 3
    assert "config.yaml:3: fleet.keep_alive" in said


@pytest.mark.requirement("R-S1")
def test_listening_beyond_loopback_needs_a_key_and_says_how_to_make_one(home: Home) -> None:
    code, said = refused("--listen", "0.0.0.0:0")
    assert code == 5
    assert "mlxctl key create" in said
    assert not home.daemon_sock.exists()


async def test_a_named_address_that_is_taken_is_fatal_and_a_default_one_is_skipped(home: Home, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        code, said = refused("--listen", address)
        assert code == 6
        assert address in said
        home.config.write_text(f"server:\n  listen: ['{address}', '127.0.0.1:0']\n")
        with serving(log=tmp_path / "log") as process:
            record = await ready(home, process)
            assert len(record.listeners) == 1
            assert address in record.warnings[0]["text"]


async def test_one_daemon_per_home_and_the_second_names_the_first(home: Home, tmp_path: Path) -> None:
    with serving("--listen", "127.0.0.1:0", log=tmp_path / "log") as process:
        await ready(home, process)
        code, said = refused("--listen", "127.0.0.1:0")
        assert code == 6
        assert f"pid {process.pid}" in said
        assert DaemonClient(home.daemon_sock).answers(), "the first one is not disturbed"


async def test_term_ends_with_zero_and_hup_reads_the_settings_again(home: Home, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving("--listen", "127.0.0.1:0", log=log) as process:
        await ready(home, process)
        home.config.write_text("fleet:\n  parallel: 3\n")
        process.send_signal(signal.SIGHUP)
        await eventually(lambda: "settings not reloaded" in log.read_text())
        home.config.write_text("log:\n  level: debug\nengine:\n  parallel: 3\n")
        process.send_signal(signal.SIGHUP)
        await eventually(lambda: "settings read again" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (told,) = [line for line in lines if line["message"] == "settings read again"]
    assert told["changed"] == ["engine.parallel", "log.level"]
    assert told["needs_restart"] == ["engine.parallel"]
    assert told["hint"] == "mlxctl daemon restart"
    assert not home.daemon_json.exists()


async def test_shutdown_over_the_socket_ends_with_zero(home: Home, tmp_path: Path) -> None:
    with serving("--listen", "127.0.0.1:0", log=tmp_path / "log") as process:
        await ready(home, process)
        DaemonClient(home.daemon_sock).post("/admin/shutdown", {})
        assert process.wait(20) == 0


@pytest.mark.requirement("R-U8")
async def test_the_log_is_json_or_for_a_console_as_asked(home: Home, tmp_path: Path) -> None:
    for form in ("json", "console"):
        log = tmp_path / form
        with serving("--listen", "127.0.0.1:0", "--log-format", form, log=log) as process:
            await ready(home, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        first = log.read_text().splitlines()[0]
        assert first.startswith("{") is (form == "json")
        assert "ready" in first


def test_the_daemon_imports_nothing_it_does_not_need_to_begin(home: Home) -> None:
    program = "import sys, homelab_llm.ops.house, homelab_llm.ops.life; print(','.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    loaded = set(done.stdout.strip().split(","))
    heavy = [
        "alembic",
        "psycopg",
        "rich",
        "numpy",
        "httpx2",
        "fastapi",
        "xllamacpp",
        "mlx",
        "jinja2",
        "huggingface_hub",
    ]
    assert [name for name in heavy if name in loaded] == []
