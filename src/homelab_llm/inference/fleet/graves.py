"""Ending what is left of workers, with proof: a process is signalled only when its identity is shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.control import Control, connect
from homelab_llm.inference.fleet.launch import SUFFIXES, WORKER_ID, WorkerFiles
from homelab_llm.inference.fleet.record import WorkerRecord, expected_hello, forget, read_records

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


@dataclass(frozen=True, slots=True)
class Swept:
    """Workers that lived and were ended, and those that live and may not be touched."""

    ended: list[str]
    unproven: list[str]


async def sweep(home: Home, keep: Collection[str]) -> Swept:
    """End workers of an earlier daemon that are proven ours, and remove what dead ones left.

    Only for the daemon that holds this home's lock. ``keep`` are workers to leave as they are.
    """
    names = [entry.name for entry in home.runtime.iterdir()]
    records = read_records(home)
    found = ({match[1] for name in names if (match := _NAME.fullmatch(name))} | set(records)) - set(keep)
    names = sorted(found)
    ends = await asyncio.gather(*(_end(home, worker_id, records.get(worker_id)) for worker_id in names))
    fates = dict(zip(names, ends, strict=True))
    for worker_id, fate in fates.items():
        if fate != "unproven":
            WorkerFiles.of(home, worker_id).remove()
            forget(home, worker_id)
    swept = Swept(
        *([worker_id for worker_id, fate in fates.items() if fate == wanted] for wanted in ("ended", "unproven"))
    )
    prune_logs(home.worker_logs, {*keep, *swept.unproven})
    return swept


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


async def _end(home: Home, worker_id: str, record: WorkerRecord | None) -> Literal["ended", "dead", "unproven"]:
    """End one worker of an earlier daemon, when our record of it proves that it is that."""
    files = WorkerFiles.of(home, worker_id)
    told = _record(files["run"])
    if record is None or record.boot_id != processes.boot_id():
        return "unproven" if await _somebody_lives(files, told) else "dead"
    try:
        asked = await _ask_to_end(files, record)
    except EngineReplyInvalid:
        return "unproven"
    ours = told if told.get("nonce") == record.nonce else {}
    identities = [(one[0], one[1]) for one in (record.host, ours.get("host"), ours.get("engine")) if one]
    lived = asked or any(processes.members_of(*identity) for identity in identities)
    await clear(identities)
    return "ended" if lived else "dead"


async def _somebody_lives(files: WorkerFiles, told: dict[str, Any]) -> bool:
    """Whether the sockets or the host's own record of an unknown worker belong to somebody who lives."""
    for suffix in ("ctl", "http"):
        with contextlib.suppress(OSError):
            (await connect(files[suffix])).close()
            return True
    return any(processes.members_of(one[0], one[1]) for one in (told.get("host"), told.get("engine")) if one)


async def _ask_to_end(files: WorkerFiles, record: WorkerRecord) -> bool:
    """Over its control socket, which signals nobody, and only when it proves to be ours; whether it was there.

    Raises:
        EngineReplyInvalid: somebody else answers.
    """
    try:
        async with asyncio.timeout(_HOST_S):
            control = await Control.open(files["ctl"])
            try:
                if await control.hello(expected_hello(record)) is None:
                    return False
                control.send({"cmd": "drain", "term_s": _TERM_S})
                while await control.receive() is not None:
                    pass
            finally:
                control.close()
    except (OSError, TimeoutError):
        return False
    return True
