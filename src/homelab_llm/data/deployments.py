"""Deployments: loads of models, written from the fleet's events as these are recorded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, update

from homelab_llm.core.events import Event
from homelab_llm.data.tables import deployments

_READY = ("loaded", "adopted")
_SLOTTED = ("assigned", "swapped")
_ENDS = ("unloaded", "evicted", "failed", "crashed")


def follow_events(connection: Connection, events: Sequence[Event]) -> None:
    """Write what events of workers say: ``loading``, ``loaded`` and ``adopted``, and how a worker ended.

    | event | row of the worker |
    |---|---|
    | loading | begins |
    | loaded | is ready; begins, where the start was not seen |
    | adopted | goes on; begins, where the start was not seen |
    | assigned, swapped | serves a port |
    | unloaded, evicted, failed, crashed | ends, with the event's sentence as the reason |
    """
    for event in events:
        if event.kind in _SLOTTED:
            _slot(connection, event)
        what, _, worker_id = event.service.partition(":")
        if what != "worker" or not worker_id:
            continue
        if event.kind == "loading":
            _begin(connection, event, worker_id)
        elif event.kind in _READY:
            told = {"model": event.model, **_told(event)} | (
                {"ready_unix_s": event.unix_s} if event.kind == "loaded" else {}
            )
            if not _change(connection, worker_id, told):
                _begin(connection, event, worker_id, ready_unix_s=event.unix_s)
        elif event.kind in _ENDS:
            _change(connection, worker_id, {"ended_unix_s": event.unix_s, "reason": event.text})


def end_others(connection: Connection, alive: Collection[str], now_s: float) -> int:
    """After a start: rows of workers that are no more end now; returns how many.

    Args:
        alive: ids of the workers that were adopted.
    """
    gone = update(deployments).where(deployments.c.ended_unix_s.is_(None), deployments.c.worker_id.not_in(alive))
    return connection.execute(gone.values(ended_unix_s=now_s, reason="its daemon ended")).rowcount


def _begin(connection: Connection, event: Event, worker_id: str, **values: Any) -> None:
    row = {"worker_id": worker_id, "model": event.model, "started_unix_s": event.unix_s, **_told(event), **values}
    connection.execute(deployments.insert().values(row))


def _change(connection: Connection, worker_id: str, values: dict[str, Any]) -> bool:
    running = update(deployments).where(deployments.c.worker_id == worker_id, deployments.c.ended_unix_s.is_(None))
    return connection.execute(running.values(values)).rowcount > 0


def _slot(connection: Connection, event: Event) -> None:
    """The running worker of the event's model serves its port from now on."""
    running = update(deployments).where(deployments.c.model == event.model, deployments.c.ended_unix_s.is_(None))
    connection.execute(running.values(port=event.port))


def _told(event: Event) -> dict[str, Any]:
    """What the facts of an event say about the worker, where they do."""
    told = {name: event.facts[name] for name in ("engine", "pid", "footprint_bytes") if event.facts.get(name)}
    return told | ({"port": event.port} if event.port else {})
