"""Daemons of another process, made to be killed: a supervisor with two workers, or one that adopts them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

DAEMON = """
import asyncio, json, sys, time
from pathlib import Path
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import EngineOptions
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Loaded, LoadProgress
from homelab_llm.testing.engines import FakeEngine
from homelab_llm.testing.models import stored_fake_model

async def main():
    home, said, adopting = Home.at().ensure(), set(), sys.argv[4] == "adopt"
    def report(event):
        if not adopting and isinstance(event, Loaded | LoadProgress) and event.worker_id not in said:
            said.add(event.worker_id)
            info = supervisor.info(event.worker_id)
            print(json.dumps([info.pid, info.engine_pid]), flush=True)
    supervisor = Supervisor(home, report, load_timeout_s=60, drain_s=0.2, orphan_grace_s=float(sys.argv[2]))
    if adopting:
        began_s = time.monotonic()
        found = await supervisor.survivors()
        took_s = time.monotonic() - began_s
        told = {one.worker_id: [supervisor.info(one.worker_id).pid, one.engine_pid] for one in found}
        print(json.dumps({"took_s": took_s, "pids": told}), flush=True)
    else:
        model = stored_fake_model(Path(sys.argv[1]), "m")
        for worker_id in ("aaaaa", "bbbbb"):
            socket = supervisor.sockets(worker_id)
            plan = FakeEngine().plan(model, EngineOptions(), socket, home.derived)
            supervisor.start(worker_id, plan, {"key": "k-" + worker_id})
    await asyncio.Event().wait()

if sys.argv[3] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


async def a_daemon(model: Path, *, grace_s: float = 0.0, loop: str = "asyncio") -> tuple[Process, list[int]]:
    """A process with a supervisor, and the pids of the hosts and engines it runs."""
    daemon = await _started(model, grace_s, loop, "start")
    pids: list[int] = []
    for _ in range(2):
        pids += await _line(daemon)
    return daemon, pids


async def a_daemon_that_dies(model: Path, place: str) -> None:
    """A daemon that is killed at this failpoint, the first time that it comes by; its workers have a long grace."""
    daemon = await _started(model, 600.0, "asyncio", "start", HOMELAB_FAILPOINTS=f"{place}=kill")
    await daemon.communicate()
    assert daemon.returncode == -signal.SIGKILL


async def an_adopter(model: Path, *, grace_s: float = 600.0, loop: str = "asyncio") -> tuple[Process, dict[str, Any]]:
    """A process that adopts what it finds; how long that took, and the pids of host and engine of each worker."""
    daemon = await _started(model, grace_s, loop, "adopt")
    return daemon, await _line(daemon)


async def killed(daemon: Process) -> None:
    """SIGKILL, and its end."""
    daemon.kill()
    await daemon.communicate()


async def _started(model: Path, grace_s: float, loop: str, mode: str, **environ: str) -> Process:
    argv = [sys.executable, "-c", DAEMON, str(model), str(grace_s), loop, mode]
    return await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, env={**os.environ, **environ})


async def _line(daemon: Process) -> Any:
    assert daemon.stdout is not None
    return json.loads(await asyncio.wait_for(daemon.stdout.readline(), 30))
