"""Idle sleep is held off while requests run, by a program that runs as long."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.awake import Awake, inhibitor
from homelab_llm.testing.events import eventually

STAND_IN = (sys.executable, "-c", "import signal; signal.pause()")


def living(pid: int | None) -> bool:
    sight = processes.look(pid) if pid else None
    return sight is not None and not sight.zombie


def test_only_macos_has_such_a_program_and_it_ends_with_us() -> None:
    assert inhibitor("linux") == ()
    assert inhibitor("darwin", 42) == ("/usr/bin/caffeinate", "-i", "-w", "42")


async def test_the_program_runs_from_the_first_request_until_some_time_after_the_last() -> None:
    awake = Awake(STAND_IN, linger_s=0.02)
    awake.busy(True)
    first = awake.pid
    assert living(first)
    awake.busy(True)
    assert awake.pid == first
    awake.busy(False)
    assert awake.pid == first, "it lingers"
    awake.busy(True)
    awake.busy(False)
    await eventually(lambda: awake.pid is None)
    assert not living(first)
    awake.busy(True)
    assert awake.pid not in (None, first)
    awake.close()
    assert awake.pid is None


async def test_a_program_that_died_is_started_again_with_the_next_request() -> None:
    awake = Awake(STAND_IN)
    awake.busy(True)
    first = awake.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: not living(first))
    awake.busy(False)
    awake.busy(True)
    assert living(awake.pid)
    awake.close()


@pytest.mark.parametrize("program", [(), ("/no/such/program",)])
async def test_without_the_program_requests_run_all_the_same(program: tuple[str, ...]) -> None:
    awake = Awake(program)
    for busy in (True, False, True):
        awake.busy(busy)
        assert awake.pid is None
    awake.close()
