"""What the controller needs from others: the registry, the store, the fleet, and a look at ports that are not ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet.vocabulary import Terms

__all__ = ["Fleet", "Holder", "Move", "Ports", "PullProgress", "Registry", "Shelf", "Terms"]

Move = Callable[[RegistryState], RegistryState]
PullProgress = Callable[[str, float], None]


class Registry(Protocol):
    """The kept registry. Every call may block; the controller makes them in a thread."""

    def read(self) -> RegistryState: ...

    def change(self, move: Move) -> RegistryState:
        """Run a move in one transaction and keep what it returns; an error of the move changes nothing."""
        ...

    def revision(self) -> int:
        """That of the kept state; cheap."""
        ...

    def file_drift(self) -> str:
        """How the exported file differs from the registry, in words; empty when it does not."""
        ...


class Shelf(Protocol):
    """The models that lie in the store."""

    def resolve(self, name: str) -> StoredModel:
        """The model of that name; a look-up when nothing changed.

        Raises:
            InvalidName, ModelNotFound: as they are named.
        """
        ...

    def models(self) -> Sequence[StoredModel]: ...

    def stamp(self) -> object:
        """Changes whenever ``models()`` would answer something else; cheap."""
        ...

    async def pull(self, reference: str, progress: PullProgress) -> StoredModel:
        """Bring a model into the store; ``progress`` gets the stage and 0 to 1, on the event loop.

        Cancelling the call ends the pull, unless somebody else wants the same.

        Raises:
            InvalidInput, ModelNotFound, TransferError, DiskFull: nothing is in the store that was not before.
        """
        ...


class Fleet(Protocol):
    """What the controller asks of ``FleetLoop``; models are known by their digest (``sha256:…``)."""

    def load(
        self, model: StoredModel, request_id: str, *, keep_alive_s: float | None = None
    ) -> AsyncIterator[Wait]: ...

    async def unload(self, model: StoredModel, *, force: bool = False) -> bool: ...

    def status(self) -> dict[str, Any]: ...

    def loaded(self, digest: str) -> dict[str, Any] | None:
        """The status row of the ready worker of a model; None when there is none."""
        ...

    def set_terms(self, digest: str, terms: Terms) -> None: ...

    def fit(self, model: StoredModel, context_tokens: int | None = None) -> dict[str, Any]:
        """Whether it fits, which idle models would go (``evicts``), and all numbers; loads nothing."""
        ...

    def unquarantine(self, model: StoredModel) -> bool: ...

    def forget_plans(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Holder:
    """Another process on a slot's port. ``pid`` is 0 and ``name`` empty where the system does not tell.

    ``models`` are the ids that its ``GET /v1/models`` lists; None: it does not answer as a model server.
    """

    pid: int = 0
    name: str = ""
    models: tuple[str, ...] | None = None

    @property
    def model(self) -> str:
        """The first model it lists, or empty."""
        return self.models[0] if self.models else ""


class Ports(Protocol):
    """Who listens on the slots' ports."""

    def unbound(self) -> Collection[int]:
        """Slot ports that this daemon does not listen on."""
        ...

    async def holder(self, port: int) -> Holder | None:
        """The other process that listens there; asks for about a second at most. None: nobody listens."""
        ...
