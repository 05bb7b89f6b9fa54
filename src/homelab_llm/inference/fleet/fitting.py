"""Fitting: whether and how a model fits into memory now, with all numbers. Pure."""

from __future__ import annotations

from typing import Any

from homelab_llm.inference.fleet.seams import Planned
from homelab_llm.inference.fleet.state import Outlook


def fit(planned: Planned, room: Outlook, own_context_tokens: int) -> dict[str, Any]:
    """Plain JSON for ``mlxctl fit``.

    ``fits``: it can be loaded, maybe after others went. ``evicts``: who would go now. ``waits_for``: busy models that
    must become idle first. ``weights_bytes`` and the other parts are of the estimate; ``needed_bytes`` is ``measured``
    where the model ran before. ``largest_context_tokens``: 0 = not even the weights fit.

    Args:
        own_context_tokens: what the model was made for; 0 = it does not say.
    """
    parts = planned.footprint
    needed_bytes = planned.demand.measured_bytes or planned.demand.footprint_bytes
    return {
        "model": planned.demand.name,
        "engine": planned.engine,
        "fits": needed_bytes <= room.reachable_bytes,
        "loaded": room.loaded,
        "needed_bytes": needed_bytes,
        "measured": bool(planned.demand.measured_bytes),
        "weights_bytes": parts.weights_bytes if parts else 0,
        "kv_bytes": parts.kv_bytes if parts else 0,
        "overhead_bytes": parts.overhead_bytes if parts else 0,
        "free_bytes": room.free_bytes,
        "evictable_bytes": room.evictable_bytes,
        "pinned_bytes": room.pinned_bytes,
        "budget_bytes": room.budget_bytes,
        "evicts": list(room.evicts),
        "waits_for": list(room.waits_for),
        "context_tokens": planned.context_tokens,
        "largest_context_tokens": largest_context_tokens(planned, room.reachable_bytes, own_context_tokens),
        "parallel": planned.demand.parallel,
        "warning": planned.warning,
    }


def largest_context_tokens(planned: Planned, bytes_: int, own_context_tokens: int) -> int:
    """The context of one request for which weights, cache and overhead together stay within ``bytes_``.

    The cache grows with the context, the rest does not.
    """
    parts, tokens = planned.footprint, planned.context_tokens
    if parts is None or not parts.kv_bytes or not tokens:
        return own_context_tokens or tokens
    left_bytes = bytes_ - parts.weights_bytes - parts.overhead_bytes
    largest = max(0, left_bytes * tokens // parts.kv_bytes)
    return min(largest, own_context_tokens) if own_context_tokens else largest
