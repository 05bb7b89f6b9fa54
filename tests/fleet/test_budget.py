"""The budget: arithmetic over limits, and the reading of control groups from a tree of files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from homelab_llm.inference.fleet.budget import (
    Scope,
    budget_of,
    control_group_scopes,
    measure_budget,
    read_scopes,
    wired_scope,
)

GB = 10**9


@pytest.mark.requirement("R-F5")
def test_the_budget_is_the_fraction_of_the_smallest_limit() -> None:
    assert budget_of([Scope("machine", 64 * GB), Scope("control group", 10 * GB)], 0.9) == 9 * GB


@pytest.mark.requirement("R-F5", "B-3")
def test_what_others_use_is_taken_off_and_what_our_workers_use_is_not() -> None:
    machine = Scope("machine", 100 * GB, used_bytes=50 * GB)
    assert budget_of([machine], 0.9, ours_bytes=30 * GB) == 70 * GB
    assert budget_of([machine], 0.9, ours_bytes=60 * GB) == 90 * GB
    assert budget_of([machine], 0.9) == 90 * GB


def test_the_budget_is_never_negative() -> None:
    assert budget_of([Scope("machine", 10 * GB, used_bytes=10 * GB)], 0.5, ours_bytes=0) == 0


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        budget_of([Scope("machine", GB)], fraction)


def test_macos_lets_the_gpu_wire_three_quarters_unless_configured() -> None:
    assert wired_scope(64 * 2**30, 0).limit_bytes == 48 * 2**30
    assert wired_scope(64 * 2**30, 56 * 1024).limit_bytes == 56 * 2**30
    assert wired_scope(64 * 2**30, 999 * 1024).limit_bytes == 64 * 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")
    return root


def test_the_limits_of_our_control_group_and_of_those_above_count(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/box\n",
            "sys/fs/cgroup/user.slice/memory.max": "8000\n",
            "sys/fs/cgroup/user.slice/memory.current": "3000\n",
            "sys/fs/cgroup/user.slice/memory.stat": "anon 1\ninactive_file 1000\n",
            "sys/fs/cgroup/user.slice/box/memory.max": "max\n",
        },
    )
    assert control_group_scopes(root) == [Scope("control group user.slice", 8000, 2000)]


def test_control_groups_of_version_1_are_read_and_their_no_limit_is_understood(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n1:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "5000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "700\n",
        },
    )
    assert control_group_scopes(root) == [Scope("control group box", 5000, 700)]


def test_without_control_groups_there_is_no_such_limit(tmp_path: Path) -> None:
    assert control_group_scopes(tmp_path) == []


def test_this_machine_has_a_budget_within_its_memory() -> None:
    total = psutil.virtual_memory().total
    assert {scope.name for scope in read_scopes()} >= {"machine"}
    assert 0 < measure_budget(0.9) <= 0.9 * total
    assert measure_budget(0.5, 0) <= measure_budget(0.5)
