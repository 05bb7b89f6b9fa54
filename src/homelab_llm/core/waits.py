"""Where a waiting request stands: told by the fleet, shown by the gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wait:
    """Where a waiting request stands, for progress: ``stage`` is verify, queued, loading, convert,
    ready.

    ``done`` is 0 to 1 within the stage; ``place`` is 1 for the next in line, 0 when no queue is ahead.
    """

    stage: str
    done: float = 0.0
    place: int = 0
