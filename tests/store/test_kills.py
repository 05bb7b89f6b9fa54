"""Killed at every failpoint, at every passage of it: no half model, the repetition finishes, nothing is left over."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import homelab_llm.store.layout
from homelab_llm.store.layout import FAILPOINTS
from homelab_llm.store.model_store import ModelStore

Gguf = Callable[..., Path]
Folder = Callable[..., Path]
Cache = Callable[[Path], Path]

SCENARIO = Path(__file__).with_name("kill_scenario.py")
ALL = [*FAILPOINTS, "atomic.before_rename"]
NAMES = ["copied:1", "etagged:1", "linked:1", "pulled:1", "single:1"]
OWN_FILES = [path for path in Path(homelab_llm.store.layout.__file__).parent.glob("*.py")]


@pytest.fixture
def sources(disk: Path, gguf: Gguf, hf_folder: Folder, hf_cache: Cache) -> Path:
    gguf("single.gguf")
    gguf("cached.gguf", folder=disk / "repo")
    hf_folder("folder", files={"README.md": b"read"})
    snapshot = hf_cache(disk / "repo")
    snapshot.parents[2].rename(disk / "sources" / "hub")
    return disk / "sources"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCENARIO), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def passages(disk: Path, sources: Path) -> dict[str, int]:
    (counts,) = lines(run("--count", disk / "counted", sources))
    return counts


def test_the_list_of_failpoints_is_the_failpoints_of_the_code() -> None:
    written = {name for path in OWN_FILES for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}
    assert {name for name in written if name.startswith("store.")} == set(FAILPOINTS)


def test_the_scenario_passes_every_failpoint(passages: dict[str, int]) -> None:
    assert [name for name in ALL if not passages.get(name)] == []


@pytest.mark.requirement("R-S2")
@pytest.mark.parametrize("name", ALL)
def test_a_process_killed_at_a_failpoint_leaves_whole_models_and_the_next_one_finishes(
    disk: Path, sources: Path, name: str
) -> None:
    root = disk / "store"
    killed = run(root, sources, HOMELAB_FAILPOINTS=f"{name}=kill")
    assert killed.returncode == -9, killed.stderr
    for model in ModelStore(root).models():
        assert all(path.is_file() for path in model.files.values())
    assert ModelStore(root).problems() == []
    done = run(root, sources)
    assert done.returncode == 0, done.stderr
    assert [model.name for model in ModelStore(root).models()] == NAMES


@pytest.mark.requirement("R-S2")
def test_killed_at_every_passage_nothing_is_half_done_lost_or_left_over(
    disk: Path, sources: Path, passages: dict[str, int]
) -> None:
    before = {path: path.read_bytes() for path in sources.rglob("*") if path.is_file()}
    examined = 0
    for name in ALL:
        for found in lines(run("--every", disk / "s", sources, name, passages[name])):
            assert found["died"], found["at"]
            for state in (found["kill"], found["end"]):
                assert state["wrong"] == [], found["at"]
                assert state["problems"] == [], found["at"]
                assert state["orphans"] == [], found["at"]
                assert state["after_prune"] == state["names"], found["at"]
            assert found["end"]["names"] == NAMES, found["at"]
            examined += 1
    assert examined == sum(passages[name] for name in ALL)
    assert {path: path.read_bytes() for path in before} == before
