"""Adoption: what a worker of an earlier daemon was started for, and whether it may stay. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import InternalError
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet.seams import Planned, Survivor
from homelab_llm.inference.fleet.vocabulary import Adopted, Demand


def note_of(planned: Planned, digest: str, reserved_bytes: int) -> dict[str, Any]:
    """What a later daemon must know of a worker, as JSON."""
    return {
        "key": planned.demand.key,
        "digest": digest,
        "model": planned.demand.name,
        "engine": planned.engine,
        "parallel": planned.demand.parallel,
        "context_tokens": planned.context_tokens,
        "footprint_bytes": reserved_bytes,
    }


def adopted(survivor: Survivor, planned: Planned | None) -> tuple[Adopted, Planned]:
    """The event of a survivor, and its plan: ``planned`` when it is what the survivor was started for.

    Args:
        planned: how its model would be run now; None = there is no such model, or it cannot be run.
    """
    note = survivor.note
    noted_bytes = max(survivor.memory_bytes, _number(note, "footprint_bytes"))
    if planned is not None and planned.demand.key == note.get("key"):
        measured_bytes = planned.reserve_bytes(survivor.memory_bytes) if survivor.ready else 0
        event = Adopted(survivor.worker_id, planned.demand, measured_bytes or noted_bytes, survivor.ready)
        return event, planned
    unwanted = "its model is gone" if planned is None else "its model would be run in another way now"
    past = _past(survivor, note, noted_bytes)
    return Adopted(survivor.worker_id, past.demand, noted_bytes, survivor.ready, unwanted), past


def _past(survivor: Survivor, note: Mapping[str, Any], footprint_bytes: int) -> Planned:
    """The plan of a worker that only waits for its end; its demand's key is its own, so that nobody waits for it."""
    key = f"{note.get('key', '')}@{survivor.worker_id}"
    demand = Demand(key, str(note.get("model", "")), footprint_bytes, max(1, _number(note, "parallel")))
    traits = WorkerTraits(pooled=False, notices_abort=False, progress=False, grammar=False, tools=False)
    return Planned(demand, _never, str(note.get("engine", "")), _number(note, "context_tokens"), traits)


def _never(socket: Path) -> LaunchPlan:
    raise InternalError(f"{socket.name}: a worker that must go is not started again")


def _number(note: Mapping[str, Any], name: str) -> int:
    value = note.get(name)
    return value if isinstance(value, int) and value > 0 else 0
