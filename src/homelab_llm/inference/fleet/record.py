"""What is kept of each worker in HOME/run/workers/<id>.json, so that the next daemon can prove that it is ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from homelab_llm.core.paths import Home
from homelab_llm.inference.fleet.launch import PROTOCOL, WORKER_ID

if TYPE_CHECKING:
    from homelab_llm.inference.fleet.processes import Identity

Probe = Literal["completion", "embedding", ""]
"""The canary that a worker must answer; empty = none."""


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker. ``nonce``, ``digest``, ``engine`` and ``host`` are what its host must repeat to be believed.

    ``host`` is None until the host was started. ``note`` belongs to the run loop and is kept as it is.
    ``memory_bytes`` is what the engine held when it was ready, 0 before.
    """

    worker_id: str
    nonce: str
    digest: str
    engine: str
    model: str
    ready_path: str
    probe: Probe
    boot_id: str
    started_unix_s: float
    note: Mapping[str, Any] = field(default_factory=dict)
    host: Identity | None = None
    ready: bool = False
    memory_bytes: int = 0

    def write(self, home: Home) -> None:
        """Keep it, private to this user; whole or not at all. Lost at a power cut, like the process itself.

        Raises:
            OSError: it cannot be written; a worker that could not be adopted later must not be started.
        """
        path = path_of(home, self.worker_id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_suffix(".json~")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:  # noqa: PTH123 — a mode from the first moment
            json.dump(asdict(self), stream)
        fresh.replace(path)


def path_of(home: Home, worker_id: str) -> Path:
    """Where the record of a worker is."""
    return home.run / "workers" / f"{worker_id}.json"


def forget(home: Home, worker_id: str) -> None:
    """Remove the record: the worker is dead by proof."""
    path = path_of(home, worker_id)
    for left in (path, path.with_suffix(".json~")):
        left.unlink(missing_ok=True)


def read_records(home: Home) -> dict[str, WorkerRecord | None]:
    """Every record that is there, by worker; None for one that cannot be understood."""
    folder = path_of(home, "").parent
    names = [path.stem for path in folder.glob("*.json")] if folder.is_dir() else []
    return {name: _read(path_of(home, name)) for name in sorted(names) if WORKER_ID.fullmatch(name)}


def _read(path: Path) -> WorkerRecord | None:
    try:
        content = json.loads(path.read_bytes())
        if content["host"] is not None:
            pid, started = content["host"]
            content["host"] = (int(pid), int(started))
        record = WorkerRecord(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.worker_id == path.stem and isinstance(record.note, dict) else None


def expected_hello(record: WorkerRecord) -> dict[str, Any]:
    """What the host of this worker must say."""
    expected: dict[str, Any] = {
        "protocol": PROTOCOL,
        "id": record.worker_id,
        "nonce": record.nonce,
        "digest": record.digest,
        "engine": record.engine,
    }
    if record.host is not None:
        expected |= {"host_pid": record.host[0], "host_start_time": record.host[1]}
    return expected
