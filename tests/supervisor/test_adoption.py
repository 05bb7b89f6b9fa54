"""Workers outlive their daemon, and the next one takes over those that prove to be ours."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.launch import WorkerFiles
from homelab_llm.inference.fleet.record import path_of, read_records
from homelab_llm.inference.fleet.seams import Survivor
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Event, Loaded, LoadFailed, LoadProgress, WorkerExit
from homelab_llm.testing.events import Recorded, eventually
from homelab_llm.testing.models import write_fake_model

from .conftest import Bench, dead, of, record_of, stream_until_token
from .doomed import a_daemon, a_daemon_that_dies, an_adopter, killed

pytestmark = pytest.mark.requirement("B-5")


async def orphans(home: Home, folder: Path, *, ready: bool = True, **model: Any) -> dict[str, tuple[int, int]]:
    """Host and engine of two workers whose daemon was killed."""
    daemon, _ = await a_daemon(write_fake_model(folder / "m.gguf", **model), grace_s=600)
    if ready:
        await eventually(lambda: all(record and record.ready for record in read_records(home).values()))
    await killed(daemon)
    found = {}
    for worker_id, record in read_records(home).items():
        assert record is not None
        assert record.host is not None
        engine = json.loads(WorkerFiles.of(home, worker_id)["run"].read_bytes())["engine"]
        found[worker_id] = (record.host[0], engine[0])
    return found


async def answers(bench: Bench, worker_id: str) -> None:
    """The worker serves a request."""
    _, writer = await stream_until_token(bench.supervisor.sockets(worker_id), "fake: tokens=2")
    writer.close()


def loaded(worker_id: str, event: Event) -> bool:
    return isinstance(event, Loaded) and of(event, worker_id)


def pids_of(bench: Bench, survivors: list[Survivor]) -> dict[str, tuple[int, int | None]]:
    infos = {one.worker_id: bench.supervisor.info(one.worker_id) for one in survivors}
    return {worker_id: (info.pid, info.engine_pid) for worker_id, info in infos.items() if info is not None}


async def test_both_workers_of_a_killed_daemon_are_adopted_as_they_are(bench: Bench, tmp_path: Path) -> None:
    daemon, _ = await a_daemon(write_fake_model(tmp_path / "m.gguf", memory_mb=32), grace_s=600)
    await eventually(lambda: all(record and record.ready for record in read_records(bench.home).values()))
    _, writer = await stream_until_token(bench.supervisor.sockets("aaaaa"), "fake: tokens=1000 rate=50")
    await killed(daemon)
    records = {key: record for key, record in read_records(bench.home).items() if record is not None}
    survivors = await bench.supervisor.survivors()
    assert [(one.worker_id, one.ready, one.note) for one in survivors] == [
        ("aaaaa", True, {"key": "k-aaaaa"}),
        ("bbbbb", True, {"key": "k-bbbbb"}),
    ]
    for one in survivors:
        before = records[one.worker_id]
        info = bench.supervisor.info(one.worker_id)
        assert info is not None
        assert (info.pid, one.started_unix_s) == ((before.host or (0, 0))[0], before.started_unix_s)
        assert min(one.memory_bytes, before.memory_bytes) > 32 << 20
        assert abs(one.memory_bytes - before.memory_bytes) < 8 << 20  # it is measured anew
        assert os.getsid(one.engine_pid or 0) == info.pid
        await answers(bench, one.worker_id)
    assert await bench.supervisor.sweep() == []
    assert not bench.events
    writer.close()
    bench.supervisor.drain("aaaaa")
    assert await bench.exit_of("aaaaa") == WorkerExit("aaaaa", None)
    await answers(bench, "bbbbb")


async def test_workers_pass_from_daemon_to_daemon_many_times(bench: Bench, tmp_path: Path) -> None:
    model = write_fake_model(tmp_path / "m.gguf")
    found = await orphans(bench.home, tmp_path)
    for loop in ("asyncio", "uvloop", "asyncio"):
        daemon, told = await an_adopter(model, loop=loop)
        assert told["pids"] == {worker_id: list(pids) for worker_id, pids in found.items()}
        await killed(daemon)
    assert pids_of(bench, await bench.supervisor.survivors()) == found


@pytest.mark.parametrize("load_s", [0.0, 0.3])
async def test_a_worker_that_still_loads_is_adopted_and_reports_later(
    bench: Bench, tmp_path: Path, load_s: float
) -> None:
    found = await orphans(bench.home, tmp_path, ready=False, load_s=load_s)
    survivors = await bench.supervisor.survivors()
    assert pids_of(bench, survivors) == found
    for one in survivors:
        if not one.ready:
            await bench.events.until(partial(loaded, one.worker_id))
        await answers(bench, one.worker_id)
    reported = [event.worker_id for event in bench.events if isinstance(event, Loaded)]
    assert sorted(reported) == [one.worker_id for one in survivors if not one.ready]
    records = read_records(bench.home).values()
    assert all(record is not None and record.ready and record.memory_bytes for record in records)


PLACES = ("recorded", "spawned", "named", "met", "answering", "proven", "ready")


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("place", PLACES)
async def test_after_a_kill_anywhere_in_a_load_each_worker_is_adopted_or_gone(
    bench: Bench, tmp_path: Path, place: str
) -> None:
    await a_daemon_that_dies(write_fake_model(tmp_path / "m.gguf", load_s=0.05), f"worker.{place}")
    survivors = await bench.supervisor.survivors()
    assert await bench.supervisor.sweep() == []
    assert not bench.notices
    ids = {one.worker_id for one in survivors}
    assert ids == set(read_records(bench.home)) == {path.stem for path in bench.home.runtime.iterdir()}
    assert "aaaaa" in ids or place == "recorded"
    for one in survivors:
        if not one.ready:
            await bench.events.until(partial(loaded, one.worker_id))
        await answers(bench, one.worker_id)


async def test_a_load_that_fails_after_the_adoption_is_told_with_its_reason(bench: Bench, tmp_path: Path) -> None:
    await orphans(bench.home, tmp_path, ready=False, load="crash", load_s=1.0)
    survivors = await bench.supervisor.survivors()
    assert [one.ready for one in survivors] == [False, False]
    for worker_id in ("aaaaa", "bbbbb"):
        error = (await bench.exit_of(worker_id)).error
        assert error is not None
        assert error.code == "load_failed"
        assert "the fake model cannot be loaded" in error.message
    assert sum(isinstance(event, LoadFailed) for event in bench.events) == 2
    assert any(isinstance(event, LoadProgress) for event in bench.events)


async def test_the_death_of_an_adopted_worker_is_proven_without_being_its_parent(bench: Bench, tmp_path: Path) -> None:
    found = await orphans(bench.home, tmp_path, children=1)
    await bench.supervisor.survivors()
    os.kill(found["aaaaa"][1], signal.SIGKILL)
    assert (await bench.supervisor.failure("aaaaa")).facts["signal"] == signal.SIGKILL
    os.kill(found["bbbbb"][0], signal.SIGKILL)
    for worker_id in ("aaaaa", "bbbbb"):
        error = (await bench.exit_of(worker_id)).error
        assert error is not None
        assert error.code == "worker_crashed"
        await dead(*found[worker_id])
        assert not processes.group_members(found[worker_id][1])


async def test_an_adopted_host_that_hangs_can_be_ended(bench: Bench, tmp_path: Path) -> None:
    found = await orphans(bench.home, tmp_path)
    await bench.supervisor.survivors()
    os.kill(found["aaaaa"][0], signal.SIGSTOP)
    bench.supervisor.kill("aaaaa")
    assert (await bench.exit_of("aaaaa")).error is None
    await dead(*found["aaaaa"])


async def test_a_worker_that_hangs_delays_nobody_for_long_and_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    found = await orphans(bench.home, tmp_path)
    os.kill(found["aaaaa"][0], signal.SIGSTOP)
    survivors = await asyncio.wait_for(bench.supervisor.survivors(), 5)
    assert [one.worker_id for one in survivors] == ["bbbbb"]
    assert [(notice.kind, notice.service) for notice in bench.notices] == [("unproven", "worker:aaaaa")]
    assert await bench.supervisor.sweep() == []
    os.kill(found["aaaaa"][0], signal.SIGCONT)
    assert processes.look(found["aaaaa"][1]) is not None
    assert pids_of(bench, await bench.supervisor.survivors()) == {"aaaaa": found["aaaaa"]}
    await answers(bench, "aaaaa")


@pytest.mark.parametrize("wrong", ["nonce", "digest", "engine", "start time", "host"])
async def test_a_worker_whose_proof_fails_is_only_reported(bench: Bench, tmp_path: Path, wrong: str) -> None:
    found = await orphans(bench.home, tmp_path)
    path = path_of(bench.home, "aaaaa")
    genuine = json.loads(path.read_bytes())
    pid, started = genuine["host"]
    lies = {"start time": {"host": [pid, started - 1]}, "host": {"host": [os.getpid(), started]}}
    path.write_text(json.dumps(genuine | lies.get(wrong, {wrong: "another"})))
    assert [one.worker_id for one in await bench.supervisor.survivors()] == ["bbbbb"]
    assert list(bench.supervisor.unproven) == ["aaaaa"]
    assert await bench.supervisor.sweep() == []
    assert [notice.kind for notice in bench.notices] == ["unproven"]
    assert all(processes.look(pid) is not None for pid in found["aaaaa"])
    assert {"aaaaa.ctl", "aaaaa.http", "aaaaa.run"} <= {path.name for path in bench.home.runtime.iterdir()}
    await answers(bench, "aaaaa")
    path.write_text(json.dumps(genuine))
    assert len(await bench.supervisor.survivors()) == 1


@pytest.mark.parametrize("words", [b"", b"hello\n", b'{"type":"hello"}\n'])
async def test_a_foreign_program_in_a_workers_place_is_left_alone(bench: Bench, words: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        writer.close()

    path = bench.home.runtime / "zzzzz.ctl"
    server = await asyncio.start_unix_server(answer, path)
    for host in (None, (1, 1)):
        record_of("zzzzz", host=host).write(bench.home)
        assert await bench.supervisor.survivors() == []
        assert await bench.supervisor.sweep() == []
        assert path.exists()
    assert len(bench.notices) == 2
    server.close()
    await server.wait_closed()
    assert await bench.supervisor.survivors() == []
    bench.supervisor.unproven.clear()
    await bench.supervisor.sweep()


@pytest.mark.parametrize("stale", ["reused pid", "another boot", "never started", "nonsense"])
async def test_the_record_of_a_dead_worker_is_removed(bench: Bench, stale: str) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "600", process_group=0)
    started = processes.start_time(bystander.pid) or 0
    host = {"reused pid": (bystander.pid, started - 1), "another boot": (bystander.pid, started)}.get(stale)
    boot_id = "another" if stale == "another boot" else processes.boot_id()
    record_of("zzzzz", host=host, boot_id=boot_id).write(bench.home)
    if stale == "nonsense":
        path_of(bench.home, "zzzzz").write_bytes(b"\0" * 400)
    assert await bench.supervisor.survivors() == []
    assert await bench.supervisor.sweep() == []
    assert read_records(bench.home) == {}
    assert not bench.notices
    assert processes.alive(bystander.pid, started)
    bystander.kill()
    await bystander.wait()


async def test_a_clock_that_jumped_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    """As if the records had been written before the clock was put forward, and back."""
    found = await orphans(bench.home, tmp_path)
    for worker_id, jumped_s in zip(found, (-1e9, 1e9), strict=True):
        path = path_of(bench.home, worker_id)
        record = json.loads(path.read_bytes())
        path.write_text(json.dumps(record | {"started_unix_s": record["started_unix_s"] + jumped_s}))
        os.utime(path, (path.stat().st_mtime + jumped_s,) * 2)
    assert pids_of(bench, await bench.supervisor.survivors()) == found
    assert not bench.notices


async def test_what_was_released_lives_on_and_can_be_taken_back(home: Home, bench: Bench) -> None:
    infos = {worker_id: await bench.ready(worker_id) for worker_id in ("aaaaa", "bbbbb")}
    bench.supervisor.start("ccccc", bench.plan("ccccc", load_s=0.5), {"key": "c"})
    await bench.events.until(lambda event: isinstance(event, LoadProgress) and of(event, "ccccc"))
    await bench.supervisor.release()
    bench.events.clear()
    assert bench.supervisor.info("aaaaa") is None
    await answers(bench, "aaaaa")
    events: Recorded[Event] = Recorded()
    other = Supervisor(home, events, load_timeout_s=20, drain_s=5)
    assert [one.worker_id for one in await other.survivors()] == ["aaaaa", "bbbbb", "ccccc"]
    await other.release()
    survivors = await bench.supervisor.survivors()
    assert {key: pids for key, pids in pids_of(bench, survivors).items() if key != "ccccc"} == {
        worker_id: (info.pid, info.engine_pid) for worker_id, info in infos.items()
    }
    await bench.events.until(lambda event: isinstance(event, Loaded) and of(event, "ccccc"))
    assert bench.supervisor.info("ccccc") is not None


async def test_a_daemon_whose_successor_died_takes_its_workers_back(home: Home, bench: Bench, tmp_path: Path) -> None:
    bench.supervisor = Supervisor(home, bench.events, load_timeout_s=20, drain_s=5, orphan_grace_s=0.0)
    infos = {worker_id: await bench.ready(worker_id) for worker_id in ("aaaaa", "bbbbb")}
    successor, told = await an_adopter(tmp_path / "m.gguf")
    assert set(told["pids"]) == set(infos)
    await answers(bench, "aaaaa")  # both watch; the old one may still be answering
    bench.supervisor.reclaim()
    await killed(successor)
    for worker_id, info in infos.items():
        await answers(bench, worker_id)
        assert bench.supervisor.info(worker_id) is not None
        assert processes.look(info.pid) is not None
    await bench.supervisor.close()
    await dead(*[info.pid for info in infos.values()])


async def test_a_released_supervisor_can_be_closed_and_ends_nobody(home: Home, bench: Bench) -> None:
    info = await bench.ready()
    await bench.supervisor.release()
    await bench.supervisor.close()
    assert processes.look(info.pid) is not None
    assert not [event for event in bench.events if isinstance(event, WorkerExit)]
    assert len(await bench.supervisor.survivors()) == 1


async def test_workers_end_by_themselves_when_the_grace_of_their_last_daemon_is_over(
    bench: Bench, tmp_path: Path
) -> None:
    found = await orphans(bench.home, tmp_path)
    daemon, told = await an_adopter(tmp_path / "m.gguf", grace_s=0.05)
    assert len(told["pids"]) == 2
    await killed(daemon)
    await dead(*[pid for pids in found.values() for pid in pids])
    assert await bench.supervisor.survivors() == []
    assert await bench.supervisor.sweep() == []


async def test_records_are_private(bench: Bench) -> None:
    await bench.ready()
    path = path_of(bench.home, "abc12")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
