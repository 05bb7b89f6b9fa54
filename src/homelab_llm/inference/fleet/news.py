"""News: what the scheduler tells, as events for people and records. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.events import Event, Level
from homelab_llm.inference.fleet.vocabulary import Notify, NotifyKind

_LIFE = frozenset({"loading", "loaded", "adopted"})
_LEVELS: Mapping[NotifyKind, Level] = {
    "queued": "debug",
    "progress": "debug",
    "refused": "warning",
    "failed": "error",
    "crashed": "error",
    "quarantined": "error",
}


def event_of(notice: Notify, worker: Mapping[str, Any]) -> Event:
    """The event of a notice; facts hold the numbers of its error, the part of a load that is done, ids.

    Args:
        worker: what is known of the worker it concerns; told where its life changes.
    """
    facts: dict[str, Any] = dict(notice.error.facts) if notice.error else {}
    if notice.kind in _LIFE:
        facts |= {name: value for name, value in worker.items() if value}
    if notice.error is not None:
        facts["code"] = notice.error.code
    if notice.kind == "progress":
        facts |= {"stage": notice.text, "done": notice.done}
    if notice.request_id:
        facts["request_id"] = notice.request_id
    return Event(
        notice.kind,
        _sentence(notice),
        level=_level(notice),
        service=f"worker:{notice.worker_id}" if notice.worker_id else "mlxserve",
        model=notice.model,
        facts=facts,
    )


def _level(notice: Notify) -> Level:
    if notice.error is not None and notice.error.code == "queue_full":
        return "debug"  # a crowd that is sent away shall not fill the records, which have every request anyway
    return _LEVELS.get(notice.kind, "info")


def _sentence(notice: Notify) -> str:
    error: HomelabError | None = notice.error
    if error is not None:
        return error.message
    if notice.kind == "progress":
        return f"{notice.model}: {notice.text} {notice.done:.0%}"
    return f"{notice.model}: {notice.text}" if notice.text else f"{notice.model} {notice.kind}"
