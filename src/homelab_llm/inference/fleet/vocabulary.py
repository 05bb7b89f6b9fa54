"""The scheduler's words: events in, effects out. Plain values; no clock, no I/O.

Every time is a monotonic second given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from homelab_llm.core.errors import HomelabError

BATCH_PRIORITY = 10
"""Requests of this priority or larger are batch: they leave the reserved slots free."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A model as the scheduler sees it: ``key`` (its manifest digest and options), memory and request slots.

    ``footprint_bytes`` is the estimate; ``measured_bytes`` is what an earlier worker of this key really took,
    0 when none was measured.
    """

    key: str
    name: str
    footprint_bytes: int
    parallel: int
    measured_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator wants for a model. ``pinned``: never evicted, never unloaded for being idle.

    ``keep_alive_s`` holds for requests that bring none: None = the fleet's default, negative = for ever.
    """

    pinned: bool = False
    keep_alive_s: float | None = None


NO_TERMS = Terms()


# --- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """A request wants a lease. ``keep_alive_s``: None = default, negative = for ever, 0 = unload right after.

    ``priority``: smaller is sooner (0 interactive, 10 batch). ``preload`` asks for the model only: it is
    granted, and its lease ended by the caller at once, when the model is loaded.
    """

    request_id: str
    demand: Demand
    keep_alive_s: float | None = None
    priority: int = 0
    preload: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client of a waiting request went away. A running one keeps its slot until its ``LeaseEnd``."""

    request_id: str


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """A granted request ended; harmless when its worker is already gone.

    ``well``: its reply was complete, which shows that the model works.
    """

    request_id: str
    well: bool = True


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A worker tells how far its load is; ``done`` is 0 to 1."""

    worker_id: str
    stage: str
    done: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker answers; ``footprint_bytes`` is measured, 0 when unknown."""

    worker_id: str
    footprint_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """A serving worker was measured again; only a larger footprint than the known one counts (caches grow)."""

    worker_id: str
    footprint_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker ended or gave no answer while loading."""

    worker_id: str
    error: HomelabError


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """The worker's processes are proven dead; ``error`` is None when it was asked to end."""

    worker_id: str
    error: HomelabError | None


@dataclass(frozen=True, slots=True)
class Adopted:
    """A worker of an earlier daemon passed its proof and serves ``demand``, or loads it when it is not ``ready``.

    ``footprint_bytes`` is measured, 0 when unknown. ``unwanted`` says why it must go, empty = it may stay. ``held`` are
    ids for requests that the earlier daemon still answers there: each uses a slot until its ``LeaseEnd``.
    """

    worker_id: str
    demand: Demand
    footprint_bytes: int = 0
    ready: bool = True
    unwanted: str = ""
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """The budget now: what all workers together may take, in bytes."""

    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Unload:
    """The operator wants the model gone: new requests wait for a new worker, running ones end first.

    ``force`` ends running ones with an error and refuses those that wait. A load under way is called off in
    either case, and what waits for it is refused.
    """

    key: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class SetTerms:
    """The operator's terms for a model; they hold for its worker, if it has one, and for the next."""

    demand: Demand
    terms: Terms


@dataclass(frozen=True, slots=True)
class Unquarantine:
    """The operator wants a model that failed several times to be tried again."""

    key: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Another daemon takes the fleet: who waits is refused, and nothing is started or ended until ``Resume``."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The other daemon did not come up: go on."""


@dataclass(frozen=True, slots=True)
class Condemn:
    """The worker does not answer any more and must end at once; who waits for it gets another one."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; the loop sends one at the moment ``next_wake_s`` asked for."""


Event = (
    Submit | Cancel | LeaseEnd | LoadProgress | Loaded | Measured | LoadFailed | WorkerExit | Adopted | Memory
    | Unload | SetTerms | Unquarantine | HandOver | Resume | Condemn | Tick
)  # fmt: skip

NotifyKind = Literal[
    "queued", "loading", "progress", "loaded", "adopted", "evicted", "unloaded", "refused", "failed", "crashed",
    "quarantined",
]  # fmt: skip

# --- effects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker for ``demand``; answered by ``Loaded`` or ``LoadFailed``."""

    worker_id: str
    demand: Demand


@dataclass(frozen=True, slots=True)
class Drain:
    """No lease is left or will come: end the worker in order (TERM, then KILL)."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the worker at once."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may use the worker."""

    request_id: str
    worker_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request ends with this error."""

    request_id: str
    error: HomelabError


@dataclass(frozen=True, slots=True)
class Notify:
    """Something people may want to see; never sent for a request that is granted at once.

    ``text`` is for people: the stage of a load, the place in a queue, the reason of an end.
    """

    kind: NotifyKind
    model: str
    text: str = ""
    done: float = 0.0
    request_id: str = ""
    worker_id: str = ""
    error: HomelabError | None = None


Effect = Start | Drain | Kill | Grant | Refuse | Notify
