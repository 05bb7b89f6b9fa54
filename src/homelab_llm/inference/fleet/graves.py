"""Ending what is left of workers, with proof: a process is signalled only when its identity is shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.control import Control
from homelab_llm.inference.fleet.launch import SUFFIXES, WORKER_ID, WorkerFiles

_TERM_S = 1.0
_HOST_S = 3.0
_LOGS_KEPT = 40
_NAME = re.compile(rf"({WORKER_ID.pattern})\.(?:{'|'.join(SUFFIXES)})~?")
_LOG_NAME = re.compile(rf"({WORKER_ID.pattern})\.log(?:\.\d+)?")


async def clear(leaders: Iterable[processes.Identity]) -> None:
    """Kill the groups and wait until they are empty; takes as long as the kernel does."""
    for leader, started in dict.fromkeys(leaders):
        pause_s = 0.002
        while processes.members_of(leader, started):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader, signal.SIGKILL)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.1)


def recorded_engine(path: Path, nonce: str) -> processes.Identity | None:
    """The engine in a host's record, when it is the record of the host with this nonce."""
    record = _record(path)
    engine = record.get("engine")
    return (engine[0], engine[1]) if record.get("nonce") == nonce and engine else None


def recorded_exit(path: Path) -> dict[str, Any] | None:
    """The exit reason a host left in its file, for when it could not be told."""
    return _json(path) or None


async def sweep(home: Home, keep: Collection[str]) -> list[str]:
    """End workers of an earlier daemon and remove what lies about; gives the ids of workers that still lived.

    Only for the daemon that holds this home's lock. ``keep`` are the workers of this daemon.
    """
    names = [entry.name for entry in home.runtime.iterdir()]
    found = {match[1] for name in names if (match := _NAME.fullmatch(name))} - set(keep)
    lived = [worker_id for worker_id in sorted(found) if await _end(WorkerFiles.of(home, worker_id))]
    for worker_id in found:
        WorkerFiles.of(home, worker_id).remove()
    prune_logs(home.worker_logs, keep)
    return lived


def prune_logs(folder: Path, keep: Collection[str]) -> None:
    """Remove all but the newest logs; never those of workers in ``keep``."""
    logs: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if (match := _LOG_NAME.fullmatch(path.name)) and match[1] not in keep:
            logs.setdefault(match[1], []).append(path)
    newest = sorted(logs.values(), key=_age, reverse=True)
    for path in (path for paths in newest[_LOGS_KEPT:] for path in paths):
        path.unlink(missing_ok=True)


def _age(paths: list[Path]) -> float:
    times = [0.0]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _record(path: Path) -> dict[str, Any]:
    record = _json(path)
    return record if record.get("boot_id") == processes.boot_id() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


async def _end(files: WorkerFiles) -> bool:
    """End one worker of an earlier daemon; whether it lived."""
    asked = await _ask_to_end(files)
    record = _record(files["run"])
    host, engine = record.get("host"), record.get("engine")
    identities = [(identity[0], identity[1]) for identity in (host, engine) if identity]
    lived = asked or any(processes.members_of(*identity) for identity in identities)
    await clear(identities)
    return lived


async def _ask_to_end(files: WorkerFiles) -> bool:
    """Over its control socket, which signals nobody: whoever answers to this id may end in order."""
    try:
        async with asyncio.timeout(_HOST_S):
            control = await Control.open(files["ctl"])
            try:
                hello = await control.receive()
                if hello is None or hello.get("id") != files.worker_id:
                    return False
                control.send({"cmd": "drain", "term_s": _TERM_S})
                while await control.receive() is not None:
                    pass
            finally:
                control.close()
    except (OSError, TimeoutError):
        return False
    return True
