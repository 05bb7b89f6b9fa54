"""``mlxctl events`` against a daemon that follows a script."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, ScriptedDaemon

FIRST = {"id": 4, "kind": "loaded", "text": "tiny:1 answers", "model": "tiny:1", "port": 8100, "unix_s": 1.0}
SECOND = {"id": 5, "kind": "evicted", "text": "made room", "level": "warning", "model": "b:1", "unix_s": 2.0}


def told(*events: object) -> list[str]:
    lines: list[str] = [": still here", ""]
    for event in events:
        lines += [f"data: {json.dumps(event)}", ""]
    return lines


@pytest.mark.requirement("R-F3")
def test_events_prints_what_is_remembered_and_ends(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.streams("/admin/events?after=0&follow=false", *told(FIRST, SECOND))
    shown = mlxctl("events")
    first, second = shown.out.splitlines()
    assert first.split()[1:] == ["loaded", "8100", "tiny:1", "answers"]
    assert second.split()[1:] == ["evicted", "warning:", "b:1", "made", "room"]
    rows = [json.loads(line) for line in mlxctl("events", "--json").out.splitlines()]
    assert rows == [FIRST, SECOND]
    only = mlxctl("events", "--kind", "evicted", "--kind", "swapped", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in only] == [5]


def test_events_after_a_number_asks_for_those_only(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.streams("/admin/events?after=4&follow=false", *told(SECOND))
    assert json.loads(mlxctl("events", "--after", "4", "--json").out)["id"] == 5


@pytest.mark.requirement("R-F4")
def test_events_f_goes_on_when_the_daemon_was_restarted_until_control_c(daemon: ScriptedDaemon) -> None:
    """Each connection of this daemon ends after two events, as one that is restarted would end it."""
    daemon.streams("/admin/events?after=0", *told(FIRST, SECOND))
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "events", "-f", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        ids = [json.loads(running.stdout.readline())["id"] for _ in range(4)]
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    assert ids == [4, 5, 4, 5]
