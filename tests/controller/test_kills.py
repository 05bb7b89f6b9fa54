"""The daemon is killed at each failpoint of a load, swap or unload: the next one brings everything in line again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

import homelab_llm.inference.controller
from homelab_llm.core.paths import Home
from homelab_llm.data.database import Database
from homelab_llm.data.migrate import migrate
from homelab_llm.data.registry import Registry
from homelab_llm.testing.controller import FIRST, Rig, last

FULL = os.environ.get("HOMELAB_SIZE") == "full"
SCENARIO = Path(__file__).with_name("kill_scenario.py")
SOURCES = Path(homelab_llm.inference.controller.__file__).parent.glob("*.py")

POINTS = ["before_pull", "after_pull", "before_load", "after_load", "before_flip", "before_serve", "after_serve"]
POINTS += ["before_unload", "after_unload"]
EVERY = [("load", room, point) for room in (2, 1) for point in POINTS]
EVERY += [("load", room, f"registry.{point}_commit") for room in (2, 1) for point in ("before", "after")]
EVERY += [("unload", 2, point) for point in ("before_unload", "after_unload")]
FEW = [("load", 2, point) for point in ("after_pull", "before_flip", "before_serve", "after_serve", "before_unload")]
FEW += [("load", 1, "after_unload"), ("load", 1, "before_serve"), ("unload", 2, "before_unload")]


def test_every_failpoint_of_the_controller_is_tried() -> None:
    passed = {found for file in SOURCES for found in re.findall(r'failpoint\("controller\.(\w+)"\)', file.read_text())}
    assert passed == set(POINTS)


async def killed(database: Database, folder: Path, room: int, verb: str, point: str) -> None:
    """Run the scenario up to its death."""
    address = f"sqlite:///{folder}/system.db"
    argv = [sys.executable, str(SCENARIO), address, str(folder), str(room), verb, point]
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == -signal.SIGKILL, errors.decode()


@pytest.mark.requirement("R-F2", "R-F3", "B-4")
@pytest.mark.parametrize(("verb", "room", "point"), EVERY if FULL else FEW)
async def test_after_a_kill_reconcile_leaves_no_drift(
    home: Home, tmp_path: Path, verb: str, room: int, point: str
) -> None:
    database = Database.open("", tmp_path / "system.db")
    migrate(database.address, tmp_path / "backups")
    await killed(database, tmp_path, room, verb, point if "." in point else f"controller.{point}")
    rig = Rig(home, tmp_path, room=room, registry=Registry(database, tmp_path / "registry.json"), grace_s=30.0)
    rig.model("one")
    two = rig.model("two", stored=point != "before_pull")
    rig.shelf.remote[two.name] = two
    await rig.start()
    try:
        await rig.controller.boot()
        await last(rig.controller.reconcile(apply=True))
        told = await rig.controller.slots()
        row = told["slots"][0]
        assert (told["drift"], (await rig.controller.verify())["problems"]) == (False, [])
        if verb == "unload":
            assert (row["state"], row["desired"]) == ("empty", "")
        else:
            assert (row["state"], row["desired"]) == ("serving", row["actual"])
            assert await rig.ask() == f"{row['desired'].removesuffix('-latest')}:latest"
        await rig.load(two.name, FIRST, force=True)
        assert await rig.ask(port=FIRST) == two.name
    finally:
        await rig.stop()
        database.close()
