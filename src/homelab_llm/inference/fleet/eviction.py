"""Who must go so that another fits: pure decisions over memory, no state.

Policy: only idle workers go, the longest unused first. A model that has waited for its turn may in addition
claim workers that are busy and have had their turn: those get no new request and go when idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Resident:
    """A worker as seen by these decisions; ``reserved_bytes`` counts until its processes are proven dead.

    ``leaving``: its memory will come back without a further decision. ``idle``: nothing runs in it and
    nothing waits for it. ``turn_over``: busy, but it has served long enough to make room for an overdue model.
    A worker that must stay is neither.
    """

    worker_id: str
    reserved_bytes: int
    last_used_s: float
    leaving: bool = False
    idle: bool = False
    turn_over: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """A model that waits for memory; ``overdue`` when it has waited for its turn."""

    key: str
    needed_bytes: int
    overdue: bool = False


@dataclass(slots=True)
class Room:
    """What to do for the wants: keys to start now, workers to end now, busy workers to hold, each for a key."""

    start: list[str] = field(default_factory=list)
    end: list[tuple[str, str]] = field(default_factory=list)
    hold: list[tuple[str, str]] = field(default_factory=list)


def evictions_for(
    needed_bytes: int, workers: Sequence[Resident], budget_bytes: int, *, overdue: bool = False
) -> list[Resident] | None:
    """The idle workers to end so that ``needed_bytes`` will fit, longest unused first.

    Args:
        overdue: busy workers whose turn is over may be chosen too, after all idle ones.

    Returns:
        An empty list when it fits once those that are leaving have left; None when no choice makes room:
        then nobody is evicted in vain. Never more workers than needed.
    """
    short_bytes = needed_bytes + sum(w.reserved_bytes for w in workers if not w.leaving) - budget_bytes
    if short_bytes <= 0:
        return []
    candidates = [w for w in workers if not w.leaving and (w.idle or (overdue and w.turn_over))]
    candidates.sort(key=lambda w: (not w.idle, w.last_used_s))
    chosen: list[Resident] = []
    for worker in candidates:
        if short_bytes <= 0:
            break
        chosen.append(worker)
        short_bytes -= worker.reserved_bytes
    if short_bytes > 0:
        return None
    # A large one at the end of the list may have made small ones before it unnecessary.
    for worker in reversed(chosen):
        if short_bytes + worker.reserved_bytes <= 0:
            chosen.remove(worker)
            short_bytes += worker.reserved_bytes
    return chosen


def make_room(wants: Sequence[Want], workers: Sequence[Resident], budget_bytes: int) -> Room:
    """Decide for all models that wait for memory, the most urgent first.

    A want for which room is being made claims it: a later one starts only in what is left beyond all claims.
    A want for which no room can be made claims nothing until it is overdue, so that small models may pass it
    for a while but not for ever.
    """
    room = Room()
    known = {worker.worker_id: worker for worker in workers}
    reserved_bytes = sum(worker.reserved_bytes for worker in workers)
    claimed_bytes = 0
    for want in wants:
        need_bytes = want.needed_bytes + claimed_bytes
        victims = evictions_for(need_bytes, list(known.values()), budget_bytes, overdue=want.overdue)
        if victims is None:
            if want.overdue:
                claimed_bytes += want.needed_bytes
            continue
        if not victims and reserved_bytes + want.needed_bytes <= budget_bytes:
            room.start.append(want.key)
            reserved_bytes += want.needed_bytes
            known[f"start {want.key}"] = Resident(f"start {want.key}", want.needed_bytes, 0.0)
            continue
        for victim in victims:
            (room.end if victim.idle else room.hold).append((victim.worker_id, want.key))
            known[victim.worker_id] = Resident(victim.worker_id, victim.reserved_bytes, 0.0, leaving=True)
        claimed_bytes += want.needed_bytes
    return room
