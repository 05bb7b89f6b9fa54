"""A daemon's life up to a kill; started by ``test_kills.py`` in a process of its own.

``kill_scenario.py DATABASE FOLDER ROOM VERB FAILPOINT``: one model is on the first slot; then VERB (``load`` puts
another in its place, ``unload`` empties the slot) runs with the failpoint armed. Prints the pid of the first worker.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from homelab_llm.core import failpoints
from homelab_llm.core.paths import Home
from homelab_llm.data.database import Database
from homelab_llm.data.registry import Registry
from homelab_llm.testing.controller import FIRST, Rig


async def scenario(database: str, folder: str, room: str, verb: str, point: str) -> None:
    registry = Registry(Database.open(database, Path(folder) / "system.db"), Path(folder) / "registry.json")
    rig = Rig(Home.at(), Path(folder), room=int(room), registry=registry, grace_s=30.0)
    await rig.start()
    one = rig.model("one")
    rig.shelf.remote["two:latest"] = rig.model("two", stored=False)
    await rig.load(one.name, FIRST)
    failpoints.arm(f"{point}=kill")
    if verb == "load":
        await rig.load("two:latest", FIRST, force=True)
    else:
        await rig.controller.unload(str(FIRST))
    await rig.stop()


if __name__ == "__main__":
    asyncio.run(scenario(*sys.argv[1:]))
