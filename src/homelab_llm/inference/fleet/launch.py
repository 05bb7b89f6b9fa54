"""Launching one worker: the files it has in the runtime folder, its identity, and the spec its host reads."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet import processes

PROTOCOL = 1
HOST = Path(__file__).parent.parent / "workers" / "host" / "main.py"
HOST_ARGV = (sys.executable, "-I", "-S", str(HOST))
WORKER_ID = re.compile(r"[a-z0-9]{5}")
SUFFIXES = ("http", "sock", "ctl", "run", "exit", "spec")  # llama.cpp binds <id>.sock before it is renamed
_LOG_PART_BYTES = 50_000_000
_LOG_PARTS = 5
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WorkerFiles:
    """Where one worker's sockets, records and log are."""

    worker_id: str
    runtime: Path
    logs: Path

    @classmethod
    def of(cls, home: Home, worker_id: str) -> WorkerFiles:
        """Raises ``ValueError`` for an id that is not five of a-z and 0-9: it becomes a file name."""
        if not WORKER_ID.fullmatch(worker_id):
            raise ValueError(f"not a worker id: {worker_id!r}")
        return cls(worker_id, home.runtime, home.worker_logs)

    def __getitem__(self, suffix: str) -> Path:
        return self.runtime / f"{self.worker_id}.{suffix}"

    @property
    def log(self) -> Path:
        return self.logs / f"{self.worker_id}.log"

    def open_log(self) -> BinaryIO:
        """The log, to append to; private to this user."""
        return open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")  # noqa: PTH123

    def remove(self) -> None:
        """Remove everything in the runtime folder; the log stays."""
        for suffix in SUFFIXES:
            self[suffix].unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Time limits of workers, in seconds; see the settings of the fleet."""

    load_timeout_s: float
    drain_s: float
    orphan_grace_s: float
    measure_s: float


def new_nonce() -> str:
    """What a host must repeat to be believed."""
    return secrets.token_hex(16)


def write_spec(files: WorkerFiles, plan: LaunchPlan, nonce: str, lifetimes: Lifetimes) -> Path:
    """Write what the host reads, private to this user; the host removes it."""
    spec = {
        "protocol": PROTOCOL,
        "id": files.worker_id,
        "nonce": nonce,
        "digest": str(plan.model.digest),
        "engine": plan.engine,
        "argv": list(plan.argv),
        "prepare": list(plan.prepare),
        "env": engine_environment(os.environ, plan.env),
        **{suffix: str(files[suffix]) for suffix in ("http", "ctl", "run", "exit")},
        "log": str(files.log),
        "log_part_bytes": _LOG_PART_BYTES,
        "log_parts": _LOG_PARTS,
        "daemon_pid": os.getpid(),
        "daemon_start_time": processes.start_time(os.getpid()),
        "orphan_grace_s": lifetimes.orphan_grace_s,
        "term_s": lifetimes.drain_s,
    }
    path = files["spec"]
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:  # noqa: PTH123 — a mode from the first moment
        json.dump(spec, stream)
    return path


def engine_environment(environ: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment without what looks like a secret: native code that parses model files needs none."""
    return {name: value for name, value in environ.items() if not _SECRET_NAME.search(name)} | dict(extra)
