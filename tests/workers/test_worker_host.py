"""The worker host: what it tells, what it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from homelab_llm.inference.fleet import processes
from homelab_llm.testing.events import eventually

from .conftest import NONCE, Hosts, message

SLEEP = "exec sleep 600"
STUBBORN = "trap '' TERM; while :; do sleep 600; done"


async def gone(host: subprocess.Popen[bytes]) -> None:
    await eventually(lambda: host.poll() is not None, what="the end of the host")


async def test_the_hello_names_the_worker_and_both_processes(hosts: Hosts) -> None:
    host = hosts.start(SLEEP)
    control = await hosts.talk()
    hello = await message(control, "hello")
    if hello["engine_pid"] is None:
        hello["engine_pid"] = (await message(control, "engine"))["pid"]
    assert hello["protocol"] == 1
    assert (hello["id"], hello["nonce"], hello["engine"]) == ("abc12", NONCE, "fake")
    assert hello["digest"] == str(hosts.plan.model.digest)
    assert hello["host_pid"] == control.peer_pid == host.pid
    assert hello["host_start_time"] == processes.start_time(host.pid)
    assert os.getpgid(hello["engine_pid"]) == hello["engine_pid"]
    assert os.getsid(hello["engine_pid"]) == host.pid
    control.close()


async def test_sockets_and_records_are_private_and_the_spec_is_removed(hosts: Hosts) -> None:
    hosts.start(SLEEP)
    control = await hosts.talk()
    await message(control, "hello")
    await eventually(hosts.files["run"].exists)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in hosts.home.runtime.iterdir()}
    assert modes == {"abc12.ctl": 0o600, "abc12.run": 0o600}
    assert stat.S_IMODE(hosts.files.log.stat().st_mode) == 0o600
    control.close()


async def test_preparation_runs_first_and_progress_of_both_is_told_to_every_client(hosts: Hosts) -> None:
    marker = hosts.home.derived / "made"
    told = """echo '@progress {"stage": "%s", "done": %s}'"""
    wait = f"while [ ! -e {marker}.go ]; do sleep 0.01; done; "
    hosts.start(
        f"test -e {marker} && {told % ('load', 0.5)}; {SLEEP}",
        prepare=f"{told % ('convert', 0.25)}; {wait} touch {marker}",
    )
    first, second = await hosts.talk(), await hosts.talk()
    for control in (first, second):
        assert await message(control, "progress") == {"type": "progress", "stage": "convert", "done": 0.25}
    Path(f"{marker}.go").touch()
    for control in (first, second):
        assert (await message(control, "engine"))["stage"] == "run"
        assert await message(control, "progress") == {"type": "progress", "stage": "load", "done": 0.5}
        control.close()


async def test_a_failed_preparation_ends_the_worker_and_says_so(hosts: Hosts) -> None:
    host = hosts.start(f"touch {hosts.home.root}/started", prepare="echo cannot convert; exit 4")
    await gone(host)
    reason = hosts.reason()
    assert (reason["stage"], reason["exit_code"], reason["cause"]) == ("prepare", 4, "ended")
    assert "cannot convert" in reason["tail"]
    assert not (hosts.home.root / "started").exists()


async def test_a_program_that_is_missing_gives_a_reason_too(hosts: Hosts) -> None:
    host = hosts.start("", argv=["/no/such/program"])
    await gone(host)
    assert hosts.reason()["exit_code"] == 127
    assert "No such file" in hosts.reason()["tail"]


@pytest.mark.parametrize(
    ("script", "code", "number", "out_of_memory"),
    [
        ("echo fine; exit 0", 0, None, False),
        ("echo bad weights; exit 3", 3, None, False),
        ("kill -SEGV $$", None, signal.SIGSEGV, False),
        ("kill -KILL $$", None, signal.SIGKILL, False),
        ("echo 'terminate called: std::bad_alloc' >&2; kill -ABRT $$", None, signal.SIGABRT, True),
        ("echo 'ggml_metal: error: Insufficient Memory (00000008:kIOGPU…)'; exit 1", 1, None, True),
        ("echo 'CUDA error: out of memory'; exit 1", 1, None, True),
        ("echo MemoryError; exit 1", 1, None, True),
    ],
)
async def test_the_exit_reason_tells_code_signal_and_memory(
    hosts: Hosts, script: str, code: int | None, number: int | None, out_of_memory: bool
) -> None:
    await gone(hosts.start(f"ulimit -c 0; {script}"))
    reason = hosts.reason()
    assert (reason["exit_code"], reason["signal"], reason["out_of_memory"]) == (code, number, out_of_memory)


async def test_the_exit_is_told_on_the_socket_before_the_sockets_go(hosts: Hosts) -> None:
    host = hosts.start("while [ ! -e go ]; do sleep 0.01; cd " + str(hosts.home.root) + "; done; exit 7")
    control = await hosts.talk()
    await message(control, "hello")
    (hosts.home.root / "go").touch()
    assert (await message(control, "exit"))["exit_code"] == 7
    await gone(host)
    assert [path.name for path in hosts.home.runtime.iterdir()] == ["abc12.exit"]
    control.close()


async def test_drain_ends_in_order_and_kills_what_ignores_it(hosts: Hosts) -> None:
    host = hosts.start(f"trap '' TERM; sleep 600 & echo $! > {hosts.home.root}/child; {STUBBORN}")
    child = hosts.home.root / "child"
    await eventually(lambda: child.exists() and child.read_text().strip())
    control = await hosts.talk()
    control.send({"cmd": "drain", "term_s": 0.1})
    exit_told = await message(control, "exit")
    assert (exit_told["signal"], exit_told["cause"]) == (signal.SIGKILL, "asked")
    assert not exit_told["out_of_memory"]
    assert processes.look(int(child.read_text())) is None
    await gone(host)
    control.close()


async def test_the_rest_of_the_group_ends_with_the_engine(hosts: Hosts) -> None:
    host = hosts.start(f"sleep 600 & echo $! > {hosts.home.root}/child; exit 0")
    await gone(host)
    assert processes.look(int((hosts.home.root / "child").read_text())) is None


async def test_the_engine_ends_when_the_daemon_is_killed(hosts: Hosts) -> None:
    daemon = hosts.daemon()
    host = hosts.start(
        f"trap '' TERM; echo $$ > {hosts.home.root}/engine; {STUBBORN}",
        daemon_pid=daemon.pid,
        daemon_start_time=processes.start_time(daemon.pid),
        term_s=0.05,
    )
    engine = hosts.home.root / "engine"
    await eventually(lambda: engine.exists() and engine.read_text().strip())
    daemon.kill()
    daemon.wait(10)
    await gone(host)
    assert hosts.reason()["cause"] == "orphaned"
    assert not processes.group_members(int(engine.read_text()))
    assert [path.name for path in hosts.home.runtime.iterdir()] == ["abc12.exit"]


async def test_a_daemon_whose_number_another_process_has_counts_as_gone(hosts: Hosts) -> None:
    host = hosts.start(SLEEP, daemon_start_time=1)
    await gone(host)
    assert hosts.reason()["cause"] == "orphaned"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_the_engine_does_not_outlive_a_host_that_is_killed(hosts: Hosts) -> None:
    host = hosts.start(f"trap '' TERM; echo $$ > {hosts.home.root}/engine; {STUBBORN}")
    control = await hosts.talk()
    hello = await message(control, "hello")
    pid = hello["engine_pid"] or (await message(control, "engine"))["pid"]
    started = processes.start_time(pid)
    assert started is not None
    host.kill()
    await eventually(lambda: not processes.alive(pid, started), what="the end of the engine")
    control.close()
    for member in processes.group_members(pid):  # its children are the daemon's business, which is not here
        os.kill(member, signal.SIGKILL)


async def test_stats_weigh_the_whole_group(hosts: Hosts) -> None:
    hosts.start(f"sleep 600 & sleep 600 & {SLEEP}")
    control = await hosts.talk()
    await message(control, "hello")

    async def three() -> bool:
        control.send({"cmd": "stats"})
        stats = await message(control, "stats")
        return bool(stats["processes"] == 3 and stats["memory_bytes"] > 100_000 and stats["uptime_s"] > 0)

    await eventually(three)
    control.close()


async def test_the_host_itself_stays_small(hosts: Hosts) -> None:
    host = hosts.start(SLEEP)
    control = await hosts.talk()
    await message(control, "hello")
    assert processes.memory_bytes([host.pid]) < 12_000_000
    control.close()


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b'"x"\n', b"\xff\n", b'{"cmd":"drain"}\n', b"[" * 5000 + b"\n"])
async def test_nonsense_on_the_control_socket_is_refused_and_harms_nothing(hosts: Hosts, line: bytes) -> None:
    hosts.start(SLEEP)
    control = await hosts.talk()
    reader, writer = await asyncio.open_unix_connection(str(hosts.files["ctl"]))
    await reader.readline()
    writer.write(line)
    while b'"refused"' not in (answer := await asyncio.wait_for(reader.readline(), 10)):
        assert answer
    writer.close()
    await message(control, "hello")
    control.send({"cmd": "stats"})
    assert (await message(control, "stats"))["processes"] == 1
    control.close()


async def test_an_endless_line_is_cut_off(hosts: Hosts) -> None:
    hosts.start(SLEEP)
    control = await hosts.talk()
    reader, writer = await asyncio.open_unix_connection(str(hosts.files["ctl"]))
    writer.write(b"x" * 300_000)
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(1000), 10):
            pass
    writer.close()
    await message(control, "hello")
    control.send({"cmd": "stats"})
    assert (await message(control, "stats"))["processes"] == 1
    control.close()


@pytest.mark.parametrize("wrong", [{"nonce": "another"}, {"nonce": None}, {"digest": "sha256:" + "0" * 64}, {"pid": 1}])
async def test_adoption_without_proof_is_refused(hosts: Hosts, wrong: dict[str, object]) -> None:
    hosts.start(SLEEP)
    control = await hosts.talk()
    proof = {"pid": os.getpid(), "nonce": NONCE, "digest": str(hosts.plan.model.digest)}
    control.send({"cmd": "adopt", **proof, **wrong})
    assert (await message(control, "refused"))["reason"]
    control.close()


async def test_an_adopted_worker_outlives_its_first_daemon(hosts: Hosts) -> None:
    daemon = hosts.daemon()
    hosts.start(SLEEP, daemon_pid=daemon.pid, daemon_start_time=processes.start_time(daemon.pid))
    control = await hosts.talk()
    hello = await message(control, "hello")
    assert hello["daemon_pid"] == daemon.pid
    control.send({"cmd": "adopt", "pid": os.getpid(), "nonce": hello["nonce"], "digest": hello["digest"]})
    assert await message(control, "adopted") == {"type": "adopted", "pid": os.getpid()}
    daemon.kill()
    daemon.wait(10)
    for _ in range(3):
        control.send({"cmd": "stats"})
        assert (await message(control, "stats"))["processes"] == 1
    control.send({"cmd": "drain", "term_s": 5})
    assert (await message(control, "exit"))["cause"] == "asked"
    control.close()


async def test_a_worker_waits_out_its_grace_for_a_new_daemon(hosts: Hosts) -> None:
    daemon = hosts.daemon()
    host = hosts.start(
        SLEEP, daemon_pid=daemon.pid, daemon_start_time=processes.start_time(daemon.pid), orphan_grace_s=600
    )
    control = await hosts.talk()
    hello = await message(control, "hello")
    daemon.kill()
    daemon.wait(10)
    control.send({"cmd": "adopt", "pid": os.getpid(), "nonce": hello["nonce"], "digest": hello["digest"]})
    assert (await message(control, "adopted"))["pid"] == os.getpid()
    assert host.poll() is None
    control.close()


async def test_the_adopting_daemon_is_watched_in_turn(hosts: Hosts) -> None:
    host = hosts.start(SLEEP)
    script = (
        "import json,os,socket,sys\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f=s.makefile('rw')\n"
        "hello=json.loads(f.readline())\n"
        "f.write(json.dumps({'cmd':'adopt','pid':os.getpid(),'nonce':hello['nonce'],'digest':hello['digest']})+'\\n')\n"
        "f.flush()\n"
        "while json.loads(f.readline())['type']!='adopted': pass\n"
        "print('adopted',flush=True); sys.stdin.read()\n"
    )
    (await hosts.talk()).close()
    argv = [sys.executable, "-c", script, str(hosts.files["ctl"])]
    second = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert second.stdout is not None
    assert await second.stdout.readline() == b"adopted\n"
    second.kill()
    await second.communicate()
    await gone(host)
    assert hosts.reason()["cause"] == "orphaned"


async def test_the_log_is_bounded_and_keeps_the_newest(hosts: Hosts) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    await gone(hosts.start(script, log_part_bytes=4000, log_parts=3))
    parts = [hosts.files.log, *(hosts.files.log.with_name(f"abc12.log.{number}") for number in (1, 2))]
    assert sorted(path.name for path in hosts.home.worker_logs.iterdir()) == sorted(path.name for path in parts)
    assert hosts.files.log.read_text().endswith("line 1999\n")
    assert sum(path.stat().st_size for path in parts) <= 3 * 4000
    whole = "".join(path.read_text() for path in reversed(parts))
    first = int(whole.split("\n", 1)[0].split()[1])
    assert whole == "".join(f"line {number}\n" for number in range(first, 2000))
