"""Status: a started worker as plain JSON."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homelab_llm.inference.fleet.seams import Planned, WorkerInfo
from homelab_llm.inference.fleet.state import QuarantineView, WorkerView
from homelab_llm.inference.fleet.vacating import Vacating


@dataclass(slots=True)
class Running:
    """A started worker of the run loop; ``gone`` is set after its proof of death.

    ``vacating`` holds the leases whose clients left, where the worker does not notice that at once.
    ``learned_bytes`` is the largest footprint that was measured.
    """

    planned: Planned
    socket: Path
    digest: str
    loaded_unix_s: float | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    vacating: Vacating | None = None
    learned_bytes: int = 0


def worker_status(view: WorkerView, running: Running, info: WorkerInfo | None) -> dict[str, Any]:
    """``expires_in_s`` is None while it is used or stays for ever; ``memory_bytes`` is 0 before it was measured."""
    return {
        "id": view.worker_id,
        "model": view.demand.name,
        "digest": running.digest,
        "engine": running.planned.engine,
        "state": view.state,
        "pid": info.pid if info else None,
        "memory_bytes": info.memory_bytes if info else 0,
        "footprint_bytes": view.reserved_bytes,
        "leases": view.leases,
        "waiting": view.waiting,
        "parallel": view.demand.parallel,
        "context_tokens": running.planned.context_tokens,
        "loaded_unix_s": running.loaded_unix_s,
        "expires_in_s": view.expires_in_s,
        "pinned": view.pinned,
        "progress": {"stage": view.stage, "done": view.done},
        "warning": running.planned.warning,
    }


def quarantine_status(view: QuarantineView) -> dict[str, Any]:
    """A model that is not tried again, and why."""
    return {"model": view.demand.name, "failures": view.failures, "reason": view.reason}
