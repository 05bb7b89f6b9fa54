"""The supervisor with real processes: from start to the proof of death."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from homelab_llm.core.errors import EngineError, LoadFailed, WorkerCrashed, WorkerOutOfMemory
from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.seams import Workers
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Event, Loaded, LoadProgress, WorkerExit
from homelab_llm.inference.fleet.vocabulary import LoadFailed as LoadFailedEvent
from homelab_llm.testing.events import Recorded, eventually

from .conftest import Bench, dead, of, stream_until_token


def test_it_has_the_shape_the_run_loop_asks_for(home: Home) -> None:
    workers: Workers = Supervisor(home, print, load_timeout_s=1, drain_s=1)
    assert workers.sockets("abc12") == home.runtime / "abc12.http"
    assert workers.info("abc12") is None


async def test_a_worker_loads_with_progress_and_serves_on_a_private_socket(bench: Bench) -> None:
    info = await bench.ready(load_s=0.1)
    stages = [(event.stage, event.done) for event in bench.events if isinstance(event, LoadProgress)]
    assert stages[0] == ("load", 0.0)
    assert stages[-1] == ("load", 1.0)
    assert stages == sorted(stages)
    socket = bench.supervisor.sockets("abc12")
    assert len(socket.name) <= 12
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.home.runtime.stat().st_mode) == 0o700
    _, writer = await stream_until_token(socket, "fake: tokens=2")
    writer.close()
    assert info.engine_pid is not None
    assert os.getsid(info.engine_pid) == info.pid != os.getsid(0)


async def test_the_memory_the_engine_holds_is_measured(bench: Bench) -> None:
    info = await bench.ready(memory_mb=64)
    loaded = await bench.events.until(lambda event: isinstance(event, Loaded))
    assert isinstance(loaded, Loaded)
    assert 64 << 20 < loaded.footprint_bytes < 160 << 20
    assert info.memory_bytes == loaded.footprint_bytes


@pytest.mark.requirement("R-F6")
async def test_drain_lets_the_engine_end_in_order_and_its_memory_is_free(bench: Bench) -> None:
    info = await bench.ready(memory_mb=16, children=2)
    assert info.engine_pid is not None
    assert len(processes.group_members(info.engine_pid)) == 3
    bench.supervisor.drain("abc12")
    assert await bench.exit_of() == WorkerExit("abc12", None)
    assert not processes.group_members(info.engine_pid)
    assert processes.look(info.pid) is None
    assert list(bench.home.runtime.iterdir()) == []
    assert bench.supervisor.info("abc12") is None


async def test_an_engine_that_ignores_term_is_killed(home: Home, bench: Bench) -> None:
    impatient = Supervisor(home, bench.events, load_timeout_s=20, drain_s=0.1)
    bench.supervisor = impatient
    info = await bench.ready(ignore_term=True)
    impatient.drain("abc12")
    assert (await bench.exit_of()).error is None
    await dead(info.pid, info.engine_pid)
    await impatient.close()


async def test_kill_does_not_wait_for_an_engine_that_ignores_term(bench: Bench) -> None:
    info = await bench.ready(ignore_term=True)
    bench.supervisor.drain("abc12")
    bench.supervisor.kill("abc12")
    assert (await asyncio.wait_for(bench.exit_of(), 4)).error is None  # drain alone would take 5 s
    await dead(info.pid, info.engine_pid)


@pytest.mark.requirement("R-I2")
async def test_an_engine_killed_in_mid_stream_fails_typed_and_alone(bench: Bench) -> None:
    victim, other = await bench.ready("abc12"), await bench.ready("xyz89")
    reader, writer = await stream_until_token(bench.supervisor.sockets("abc12"), "fake: tokens=1000 rate=100")
    assert victim.engine_pid is not None
    os.kill(victim.engine_pid, signal.SIGKILL)
    failure = await bench.supervisor.failure("abc12")
    assert isinstance(failure, WorkerCrashed)
    assert failure.facts == {"signal": signal.SIGKILL, "log": "abc12.log"}
    await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert (await bench.exit_of("abc12")).error is failure
    assert (await bench.supervisor.failure("abc12")) is failure
    assert bench.supervisor.info("xyz89") is not None
    _, writer = await stream_until_token(bench.supervisor.sockets("xyz89"), "fake: tokens=2")
    writer.close()
    assert other.pid != victim.pid


@pytest.mark.requirement("R-I2")
@pytest.mark.parametrize(
    ("fault", "kind", "code", "number"),
    [
        ("crash_at=1", WorkerCrashed, None, signal.SIGABRT),
        ("crash_at=1 exit=9", WorkerCrashed, 9, None),
        ("oom_at=1", WorkerOutOfMemory, None, signal.SIGABRT),
    ],
)
async def test_each_way_to_die_while_serving_has_its_error(
    bench: Bench, fault: str, kind: type[EngineError], code: int | None, number: int | None
) -> None:
    await bench.ready()
    _, writer = await stream_until_token(bench.supervisor.sockets("abc12"), f"fake: tokens=9 {fault}")
    error = (await bench.exit_of()).error
    writer.close()
    assert type(error) is kind
    assert (error.facts.get("exit_code"), error.facts.get("signal")) == (code, number)
    assert str(bench.folder) not in error.message


async def test_a_crash_while_loading_fails_the_load_with_the_engines_own_words(bench: Bench) -> None:
    event = await bench.failed_load(load="crash", load_s=0.05)
    assert isinstance(event.error, LoadFailed)
    assert event.error.facts == {"exit_code": 3, "log": "abc12.log"}
    assert "the fake model cannot be loaded" in event.error.message
    assert (bench.home.worker_logs / "abc12.log").read_text().count("cannot be loaded") == 1


async def test_no_memory_while_loading_is_told_as_such(bench: Bench) -> None:
    event = await bench.failed_load(load="oom", load_s=0.05)
    assert isinstance(event.error, WorkerOutOfMemory)
    assert event.error.facts["exit_code"] == 1


async def test_a_load_that_hangs_ends_at_its_limit(home: Home, bench: Bench) -> None:
    bench.supervisor = Supervisor(home, bench.events, load_timeout_s=0.5, drain_s=5)
    event = await bench.failed_load(load="hang", ignore_term=True)
    assert isinstance(event.error, LoadFailed)
    assert event.error.facts["limit_s"] == 0.5
    assert list(home.runtime.iterdir()) == []


async def test_a_failed_conversion_fails_the_load(bench: Bench) -> None:
    go = bench.folder / "go"
    told = """echo '@progress {"stage": "convert", "done": 0.5}'"""
    script = f"{told}; while [ ! -e {go} ]; do sleep 0.01; done; echo error: no such tensor; exit 5"
    bench.supervisor.start("abc12", replace(bench.plan("abc12"), prepare=("/bin/sh", "-c", script)))
    await bench.events.until(lambda event: event == LoadProgress("abc12", "convert", 0.5))
    go.touch()
    error = (await bench.exit_of()).error
    assert isinstance(error, LoadFailed)
    assert error.message == "model-abc12: the conversion ended with exit code 5: error: no such tensor"


async def test_a_program_that_is_not_there_fails_the_load(bench: Bench) -> None:
    bench.supervisor.start("abc12", replace(bench.plan("abc12"), argv=("/no/such/engine",)))
    error = (await bench.exit_of()).error
    assert isinstance(error, LoadFailed)
    assert "No such file" in error.message


@pytest.mark.parametrize("call", ["drain", "kill"])
@pytest.mark.parametrize("moment", ["at once", "while it loads"])
async def test_a_load_that_is_called_off_reports_its_end_alone(bench: Bench, call: str, moment: str) -> None:
    bench.supervisor.start("abc12", bench.plan("abc12", load="hang"))
    if moment == "while it loads":
        await bench.events.until(lambda event: isinstance(event, LoadProgress))
    getattr(bench.supervisor, call)("abc12")
    assert await bench.exit_of() == WorkerExit("abc12", None)
    assert not [event for event in bench.events if isinstance(event, Loaded | LoadFailedEvent)]


async def test_every_start_has_exactly_one_exit(bench: Bench) -> None:
    await bench.failed_load("aaaaa", load="crash")
    await bench.ready("bbbbb")
    bench.supervisor.kill("bbbbb")
    await bench.exit_of("bbbbb")
    info = await bench.ready("ccccc")
    os.kill(info.pid, signal.SIGKILL)
    await bench.exit_of("ccccc")
    await bench.supervisor.close()
    exits = [event.worker_id for event in bench.events if isinstance(event, WorkerExit)]
    assert exits == ["aaaaa", "bbbbb", "ccccc"]


async def test_a_host_that_is_killed_takes_its_whole_group_along(bench: Bench) -> None:
    info = await bench.ready(children=2, ignore_term=True)
    assert info.engine_pid is not None
    members = processes.group_members(info.engine_pid)
    assert len(members) == 3
    os.kill(info.pid, signal.SIGKILL)
    error = (await bench.exit_of()).error
    assert isinstance(error, WorkerCrashed)
    assert "worker host" in error.message
    await dead(*members)


async def test_a_host_that_hangs_is_ended_too(bench: Bench) -> None:
    info = await bench.ready()
    os.kill(info.pid, signal.SIGSTOP)
    bench.supervisor.kill("abc12")
    assert (await bench.exit_of()).error is None
    await dead(info.pid, info.engine_pid)


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": "0" * 32},
        {"digest": "sha256:" + "0" * 64},
        {"engine": "other"},
        {"protocol": 2},
        {"host_pid": 1},
        {"type": "greetings"},
    ],
)
async def test_a_host_that_cannot_prove_who_it_is_is_refused(
    home: Home, bench: Bench, tmp_path: Path, lie: dict[str, object]
) -> None:
    impostor = tmp_path / "impostor.py"
    impostor.write_text(
        "import json, os, socket, sys\n"
        "spec = json.load(open(sys.argv[2]))\n"
        "hello = {'type': 'hello', 'host_pid': os.getpid(), 'protocol': 1}\n"
        "hello |= {key: spec[key] for key in ('id', 'nonce', 'digest', 'engine')} | json.loads(sys.argv[1])\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind(spec['ctl']); listener.listen()\n"
        "client, _ = listener.accept()\n"
        "client.sendall(json.dumps(hello).encode() + b'\\n')\n"
        "client.recv(1000)\n"
    )
    argv = (sys.executable, str(impostor), json.dumps(lie))
    bench.supervisor = Supervisor(home, bench.events, load_timeout_s=20, drain_s=5, host_argv=argv)
    event = await bench.failed_load()
    assert event.error.code == "engine_reply_invalid"
    wrong = event.error.facts["wrong"]
    assert isinstance(wrong, list)
    assert set(lie) <= {*wrong, "type"}


async def test_a_stranger_on_the_engines_socket_does_not_make_it_ready(home: Home, bench: Bench) -> None:
    bench.supervisor = Supervisor(home, bench.events, load_timeout_s=1.0, drain_s=5)
    asked = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    plan = replace(bench.plan("abc12"), argv=("/bin/sleep", "600"))
    bench.supervisor.start("abc12", plan)
    await eventually(lambda: (info := bench.supervisor.info("abc12")) is not None and info.engine_pid is not None)
    server = await asyncio.start_unix_server(answer, bench.supervisor.sockets("abc12"))
    error = (await bench.exit_of()).error
    server.close()
    assert isinstance(error, LoadFailed)
    assert not any(isinstance(event, Loaded) for event in bench.events)


async def test_secrets_of_the_daemon_do_not_reach_the_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("SOME_API_KEY", "secret")
    monkeypatch.setenv("HARMLESS", "yes")
    plan = replace(bench.plan("abc12"), argv=("/bin/sh", "-c", "env; exit 1"), env={"EXTRA": "given"})
    bench.supervisor.start("abc12", plan)
    await bench.exit_of()
    printed = (bench.home.worker_logs / "abc12.log").read_text().splitlines()
    assert {"HARMLESS=yes", "EXTRA=given"} <= set(printed)
    assert not [line for line in printed if line.startswith(("HF_TOKEN", "SOME_API_KEY"))]


@pytest.mark.requirement("R-I9")
async def test_each_start_is_logged_with_command_version_and_digest(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("homelab_llm"), "propagate", True)
    plan = bench.plan("abc12")
    with caplog.at_level(logging.INFO, "homelab_llm"):
        bench.supervisor.start("abc12", plan)
    told = next(vars(record) for record in caplog.records if record.message == "worker starts")
    assert (told["worker"], told["engine"], told["engine_version"]) == ("abc12", "fake", "1")
    assert (told["digest"], told["argv"]) == (str(plan.model.digest), list(plan.argv))


async def test_a_home_path_of_200_characters_works(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / ("long-" * 40)
    root = Path(str(root)[:200].ljust(200, "x"))
    home = Home.at(root).ensure()
    events: Recorded[Event] = Recorded()
    long = Bench(home, tmp_path, events, Supervisor(home, events, load_timeout_s=20, drain_s=5))
    await long.ready()
    assert len(str(home.root)) == 200
    assert len(str(long.supervisor.sockets("abc12"))) < 104
    await long.supervisor.close()
    home.runtime.rmdir()


@pytest.mark.parametrize("worker_id", ["", "abcd", "abcdef", "../ab", "ABC12", "abc1\n"])
async def test_a_malformed_id_never_becomes_a_file_name(bench: Bench, worker_id: str) -> None:
    with pytest.raises(ValueError, match="not a worker id"):
        bench.supervisor.sockets(worker_id)
    with pytest.raises(ValueError, match="not a worker id"):
        bench.supervisor.start(worker_id, bench.plan("abc12"))


async def test_an_id_in_use_is_refused(bench: Bench) -> None:
    await bench.ready()
    with pytest.raises(ValueError, match="lives"):
        bench.supervisor.start("abc12", bench.plan("abc12"))


async def test_failure_of_a_worker_that_lives_or_was_unloaded_is_told_as_such(bench: Bench) -> None:
    await bench.ready()
    assert "lives" in (await bench.supervisor.failure("abc12")).message
    bench.supervisor.kill("abc12")
    assert "unloaded" in (await bench.supervisor.failure("abc12")).message


async def test_close_ends_everything_with_proof(bench: Bench) -> None:
    infos = [await bench.ready(worker_id, children=1) for worker_id in ("aaaaa", "bbbbb")]
    await bench.supervisor.close()
    for info in infos:
        assert info.engine_pid is not None
        assert not processes.group_members(info.engine_pid)
        assert processes.look(info.pid) is None
    exits = {event.worker_id: event.error for event in bench.events if isinstance(event, WorkerExit)}
    assert exits == {"aaaaa": None, "bbbbb": None}
    assert not any(of(event, "aaaaa") and isinstance(event, LoadFailedEvent) for event in bench.events)
