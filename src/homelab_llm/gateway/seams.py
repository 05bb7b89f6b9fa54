"""What the gateway needs from the rest of the house: protocols it owns, tied to real parts in ``node``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.jobs import Job, JobState
from homelab_llm.core.keys import KeyGrant, Priority
from homelab_llm.core.routing import Target
from homelab_llm.core.shaping import ReplyShape, Shaped
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.core.waits import Wait

__all__ = [
    "Catalogue",
    "Controller",
    "Fleet",
    "Jobs",
    "KeyGrant",
    "Keys",
    "Lease",
    "Priority",
    "Recorder",
    "ReplyShape",
]
__all__ += ["RequestRow", "Router", "Shaped", "Shaper", "Target", "Wait"]


class Catalogue(Protocol):
    """The models that can be served."""

    def resolve(self, name: str) -> StoredModel:
        """The model of that name; must be fast (a dictionary look-up when nothing changed).

        Raises:
            InvalidName: outside the grammar.
            ModelNotFound: with ``closest`` names.
        """
        ...

    def models(self) -> Sequence[StoredModel]:
        """All of them, by name."""
        ...

    def stamp(self) -> object:
        """Changes whenever ``models()`` would answer something else; cheap."""
        ...


class Router(Protocol):
    """From the name in a request to a model: aliases and slots first, then the store."""

    def route(self, name: str, port: int = 0) -> Target:
        """Where a request for ``name`` goes; on a slot ``port`` the name does not count. As fast as a look-up.

        Raises:
            SlotEmpty: the slot or alias serves nothing.
            InvalidName, ModelNotFound: as ``Catalogue.resolve``.
        """
        ...

    async def settled(self, target: Target) -> bool:
        """After ``target`` could not be loaded: whether its alias points to another model by now.

        Waits for a swap of that alias that is under way, which may put back the model from before.
        """
        ...

    def listed(self) -> Sequence[tuple[str, StoredModel]]:
        """Aliases that serve a model now, with it."""
        ...

    def stamp(self) -> object:
        """Changes whenever ``listed`` or ``route`` would answer something else; cheap."""
        ...


class Controller(Protocol):
    """What the operator can do with slots and models; every value is plain JSON (``docs/reference/endpoints.md``).

    The iterators yield steps ``{"stage", "done", "place", "text"}``; the last has ``stage`` ready or done and the
    result's fields. They raise ``HomelabError``; closing one early calls the work off where that is safe.
    """

    async def slots(self) -> dict[str, Any]:
        """``{"slots": [...], "drift": bool}``: one row per slot, see ``inference/controller/status.py``."""
        ...

    def load(self, model: str, slot: str, *, force: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Load a model into a slot (port, alias or ``auto``); pulls and registers a missing one."""
        ...

    def swap(self, slot: str, model: str) -> AsyncIterator[dict[str, Any]]:
        """Put another model behind a slot without a failed request."""
        ...

    async def unload(self, slot: str) -> dict[str, Any]:
        """Empty a slot; the model's process is proven ended when it returns."""
        ...

    async def unload_all(self) -> dict[str, Any]: ...

    def reconcile(self, *, apply: bool) -> AsyncIterator[dict[str, Any]]:
        """What would bring the fleet in line with the registry, one step per action; carried out with ``apply``."""
        ...

    async def verify(self) -> dict[str, Any]:
        """``{"ok": bool, "problems": [{"port", "text", "hint"}]}``; changes nothing."""
        ...

    async def pin(self, model: str, *, pinned: bool) -> dict[str, Any]:
        """A pinned model is never evicted, nor unloaded for being idle."""
        ...

    async def fit(self, model: str, context_tokens: int | None = None) -> dict[str, Any]:
        """Whether and how a model fits into memory, with all numbers; loads nothing."""
        ...

    async def explain(self, request: Mapping[str, Any], port: int = 0) -> dict[str, Any]:
        """Where a request would go and why."""
        ...

    async def unquarantine(self, model: str) -> dict[str, Any]: ...

    async def adopt(self, slot: str) -> dict[str, Any]:
        """Take the server of another origin on a slot's port into the registry."""
        ...

    async def refresh(self) -> None:
        """The registry was changed by another process: read it again."""
        ...


class Jobs(Protocol):
    """Long work on models. Who asks may leave; the work goes on."""

    async def submit(self, kind: str, parameters: Mapping[str, Any]) -> Job:
        """Ask for a job; the same work that is not over yet is joined. It is kept when this returns.

        Raises:
            InvalidInput, QueueFull, DatabaseUnavailable.
        """
        ...

    async def find(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            JobNotFound.
        """
        ...

    async def recent(self, limit: int, *, states: Collection[JobState] = (), kind: str = "") -> list[Job]:
        """The newest ones, newest first; of these states and this kind, where they are given."""
        ...

    def watch(self, job_id: str) -> AsyncIterator[Job]:
        """How it stands, several times a second at most, until it is over or the daemon ends. Raises as ``find``."""
        ...

    async def cancel(self, job_id: str) -> Job:
        """Call it off; its program has ended when this returns. Raises as ``find``."""
        ...


class Lease(Protocol):
    """The right to send one request to a worker; ``release`` ends it, exactly once, whatever happened."""

    @property
    def socket(self) -> Path | tuple[str, int]:
        """Where the worker serves HTTP: a Unix socket, or host and port of an adopted server."""
        ...

    @property
    def traits(self) -> WorkerTraits: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def worker_id(self) -> str: ...

    def release(self, *, abandoned: bool = False) -> None:
        """End the lease; ``abandoned`` when the worker's connection was closed in mid-reply."""
        ...

    def condemn(self) -> None:
        """The worker fell silent: end it. Others in it break off too, those that wait get another worker."""
        ...

    async def failure(self) -> HomelabError:
        """Why the worker broke off: waits (bounded, < 1 s) for the typed reason of its death."""
        ...


class Fleet(Protocol):
    """The scheduler's door."""

    async def acquire(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None, priority: int = 0
    ) -> Lease:
        """Wait for a lease; cancelling the call withdraws the request.

        Raises:
            QueueFull, InsufficientMemory, LoadFailed, EngineUnavailable, DeadlineExceeded.
        """
        ...

    def load(self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None) -> AsyncIterator[Wait]:
        """Load without a request; yields progress and ends when the model is loaded. Raises as ``acquire``."""
        ...

    async def unload(self, model: StoredModel, *, force: bool = False) -> bool:
        """End the model's worker and wait until it is gone; False when it was not loaded."""
        ...

    def standing(self, request_id: str) -> Wait | None:
        """Where a waiting request stands; None when it does not wait."""
        ...

    def status(self) -> dict[str, Any]:
        """Plain JSON for ``ps`` and ``status``: budget, workers (model, engine, state, memory, leases), queue."""
        ...


class Shaper(Protocol):
    """Makes tool calls and JSON Schema work on a worker (B-15); pure."""

    def shape(self, body: dict[str, Any], facts: ModelFacts, traits: WorkerTraits) -> Shaped:
        """Rewrite a validated chat body.

        Raises:
            UnsupportedRequest: this worker cannot enforce what was asked for.
            InvalidInput: a tool or schema that cannot be used; ``field`` names it.
        """
        ...


class Keys(Protocol):
    """API keys, hashed at rest."""

    def check(self, token: str) -> KeyGrant | None:
        """The grant of a key in constant time per key, or None."""
        ...

    def any(self) -> bool:
        """Whether at least one key exists."""
        ...


@dataclass(slots=True)
class RequestRow:
    """One finished request, for the record. Never holds content.

    ``alias``: of the slot that served it, empty when it named a model of the store. ``port``: the slot port it came
    in on, 0 = the front address. ``wait_ms``: from its arrival to its lease.
    """

    request_id: str
    started_unix_s: float
    endpoint: str
    model: str = ""
    key: str = ""
    status: int = 0
    error: str = ""
    streamed: bool = False
    wait_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    client: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    alias: str = ""
    port: int = 0
    priority: Priority = "interactive"


class Recorder(Protocol):
    """Takes rows off the hot path; never blocks, never raises."""

    def record(self, row: RequestRow) -> None: ...
