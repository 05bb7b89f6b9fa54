"""Identity and proof of death, on real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from homelab_llm.inference.fleet import processes
from homelab_llm.testing.events import eventually


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own."""
    process = subprocess.Popen(["sleep", "600"], process_group=0)
    yield process
    process.kill()
    process.wait(10)


def test_a_living_process_is_known_by_pid_and_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    started = processes.start_time(sleeper.pid)
    assert started is not None
    assert processes.alive(sleeper.pid, started)
    assert not processes.alive(sleeper.pid, started + 1)


async def test_a_zombie_is_dead_before_and_after_it_is_reaped(sleeper: subprocess.Popen[bytes]) -> None:
    started = processes.start_time(sleeper.pid)
    assert started is not None
    sleeper.kill()
    await eventually(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    assert not processes.alive(sleeper.pid, started)
    assert processes.group_members(sleeper.pid) == []
    sleeper.wait(10)
    assert not processes.alive(sleeper.pid, started)
    assert processes.look(sleeper.pid) is None


def test_members_are_found_after_their_leader_and_not_under_a_foreign_one(sleeper: subprocess.Popen[bytes]) -> None:
    started = processes.start_time(sleeper.pid)
    assert started is not None
    assert processes.members_of(sleeper.pid, started) == [sleeper.pid]
    assert processes.members_of(sleeper.pid, started - 1) == []
    follower = subprocess.Popen(["sleep", "600"], process_group=sleeper.pid)
    sleeper.kill()
    sleeper.wait(10)
    assert processes.members_of(sleeper.pid, started) == [follower.pid]
    follower.kill()
    follower.wait(10)


def test_memory_counts_what_a_process_really_holds() -> None:
    script = "import sys; held = b'x' * (50 << 20); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 50 << 20 < processes.memory_bytes([process.pid]) < 100 << 20
        process.communicate()
    assert processes.memory_bytes([process.pid]) == 0


def test_both_ends_of_a_socket_know_each_other(tmp_path: Path) -> None:
    first, second = socket.socketpair()
    with first, second:
        assert processes.peer_of(first) == processes.peer_of(second) == (os.getpid(), os.getuid())


def test_no_process_has_no_start_time() -> None:
    assert processes.start_time(2**22 + 1) is None
