"""What the gateway needs from the rest of the house: protocols it owns, tied to real parts in ``node``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.shaping import ReplyShape, Shaped
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.core.waits import Wait

__all__ = ["Catalogue", "Fleet", "KeyGrant", "Keys", "Lease", "Recorder", "ReplyShape", "RequestRow", "Shaped"]
__all__ += ["Shaper", "Wait"]


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


class Lease(Protocol):
    """The right to send one request to a worker; ``release`` ends it, exactly once, whatever happened."""

    @property
    def socket(self) -> Path: ...
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


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """Who a key belongs to and what it may do: ``inference``, ``admin``."""

    name: str
    scopes: frozenset[str]


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
    """One finished request, for the record. Never holds content."""

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


class Recorder(Protocol):
    """Takes rows off the hot path; never blocks, never raises."""

    def record(self, row: RequestRow) -> None: ...
