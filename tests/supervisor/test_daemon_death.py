"""The daemon dies without a word; nothing of its workers may stay, and the next daemon finds a clean house."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.graves import prune_logs
from homelab_llm.inference.fleet.launch import HOST_ARGV, Lifetimes, WorkerFiles, write_spec
from homelab_llm.testing.events import eventually
from homelab_llm.testing.models import write_fake_model

from .conftest import Bench, dead, record_of, stream_until_token
from .doomed import a_daemon


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("model", [{"children": 1}, {"ignore_term": True}, {"load": "hang"}])
async def test_a_killed_daemon_leaves_no_worker_and_no_socket(
    home: Home, tmp_path: Path, loop: str, model: dict[str, Any]
) -> None:
    daemon, pids = await a_daemon(write_fake_model(tmp_path / "m.gguf", **model), loop=loop)
    groups = [member for pid in pids for member in processes.group_members(pid)]
    assert len(groups) == 4 + 2 * model.get("children", 0)
    daemon.kill()
    await daemon.communicate()
    await dead(*groups)
    left = {path.suffix for path in home.runtime.iterdir()}
    assert left <= {".exit"}


@pytest.mark.requirement("R-S2")
async def test_the_next_daemon_ends_workers_that_still_wait_and_serves(bench: Bench, tmp_path: Path) -> None:
    daemon, pids = await a_daemon(write_fake_model(tmp_path / "m.gguf"), grace_s=600)
    daemon.kill()
    await daemon.communicate()
    assert await bench.supervisor.sweep() == ["aaaaa", "bbbbb"]
    await dead(*pids)
    assert list(bench.home.runtime.iterdir()) == []
    await bench.ready("aaaaa")
    _, writer = await stream_until_token(bench.supervisor.sockets("aaaaa"), "fake: tokens=2")
    writer.close()


async def test_a_sweep_leaves_the_workers_of_this_daemon_alone(bench: Bench) -> None:
    info = await bench.ready()
    assert await bench.supervisor.sweep() == []
    assert bench.supervisor.info("abc12") == info
    _, writer = await stream_until_token(bench.supervisor.sockets("abc12"), "fake: tokens=2")
    writer.close()


async def test_a_sweep_ends_an_engine_whose_host_is_gone(bench: Bench, tmp_path: Path) -> None:
    """As on a system without parent-death signals: the record names an engine that lives on alone."""
    engine = await asyncio.create_subprocess_exec("sleep", "600", process_group=0)
    record_of("zzzzz", host=(engine.pid, 1)).write(bench.home)
    record = {"boot_id": processes.boot_id(), "host": [engine.pid, 1], "nonce": "n"}
    path = bench.home.runtime / "zzzzz.run"
    path.write_text(json.dumps(record | {"engine": [engine.pid, processes.start_time(engine.pid)]}))
    assert await bench.supervisor.sweep() == ["zzzzz"]
    assert await engine.wait() == -signal.SIGKILL
    assert not path.exists()


@pytest.mark.parametrize("wrong", ["start time", "boot", "nonce", "nonsense"])
async def test_a_sweep_never_signals_without_proof(bench: Bench, wrong: str) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "600", process_group=0)
    identity = (bystander.pid, (processes.start_time(bystander.pid) or 0) - (wrong == "start time"))
    boot_id = "another" if wrong == "boot" else processes.boot_id()
    host = identity if wrong == "start time" else None
    record_of("zzzzz", host=host, boot_id=boot_id).write(bench.home)
    nonce = "another" if wrong == "nonce" else "n"
    text = json.dumps({"boot_id": boot_id, "host": identity, "engine": identity, "nonce": nonce})
    path = bench.home.runtime / "zzzzz.run"
    path.write_text(text[:-9] if wrong == "nonsense" else text)
    assert await bench.supervisor.survivors() == []
    assert await bench.supervisor.sweep() == []
    assert bystander.returncode is None
    assert processes.alive(bystander.pid, processes.start_time(bystander.pid) or 0)
    assert not path.exists()
    bystander.kill()
    await bystander.wait()


async def test_a_sweep_removes_stale_sockets_and_leaves_foreign_files(bench: Bench) -> None:
    for name in ("aaaaa.http", "aaaaa.ctl", "bbbbb.exit", "ccccc.spec"):
        (bench.home.runtime / name).touch()
    foreign = bench.home.runtime / "daemon.sock"
    foreign.touch()
    assert await bench.supervisor.sweep() == []
    assert list(bench.home.runtime.iterdir()) == [foreign]
    foreign.unlink()


async def test_a_start_removes_what_an_earlier_worker_of_that_name_left(bench: Bench) -> None:
    for suffix in ("http", "ctl", "exit", "run"):
        (bench.home.runtime / f"abc12.{suffix}").write_text("stale")
    await bench.ready()
    bench.supervisor.kill("abc12")
    assert (await bench.exit_of()).error is None


async def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for number in range(60):
        for name in (f"w{number:04d}.log", f"w{number:04d}.log.1"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (number, number))
    (tmp_path / "notes.txt").touch()
    prune_logs(tmp_path, {"w0000"})
    left = {path.name for path in tmp_path.iterdir()}
    newest = {f"w{number:04d}.log{rest}" for number in [0, *range(20, 60)] for rest in ("", ".1")}
    assert left == newest | {"notes.txt"}


async def test_a_host_ends_by_itself_when_its_daemon_died_before_it_looked(home: Home, bench: Bench) -> None:
    files, plan = WorkerFiles.of(home, "abc12"), bench.plan("abc12")
    path = write_spec(files, replace(plan, argv=("/bin/sleep", "600")), "n", Lifetimes(9, 9, 0, 9))
    corpse = await asyncio.create_subprocess_exec("true")
    await corpse.wait()
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"daemon_pid": corpse.pid, "daemon_start_time": 5}))
    host = await asyncio.create_subprocess_exec(*HOST_ARGV, str(path), start_new_session=True)
    assert await asyncio.wait_for(host.wait(), 20) == 0
    await eventually(files["exit"].exists)
    files.remove()
