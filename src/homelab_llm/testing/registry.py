"""A registry in memory, a shelf without a store, and ports that are all ours: real parts for tests of slots."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from homelab_llm.core.errors import Cancelled, DatabaseUnavailable, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.inference.controller.seams import Holder, Move, PullProgress
from homelab_llm.inference.controller.snapshot import full_name


class MemoryRegistry:
    """Keeps the state under a lock; ``broken`` makes every call fail as a lost database does.

    Attributes:
        changes: every state that was kept.
    """

    def __init__(self, state: RegistryState | None = None) -> None:
        self._state = state or RegistryState()
        self._lock = threading.Lock()
        self.changes: list[RegistryState] = []
        self.broken = False
        self.edited = ""

    def read(self) -> RegistryState:
        self._check()
        return self._state

    def change(self, move: Move) -> RegistryState:
        self._check()
        with self._lock:
            after = move(self._state)
            if after is not self._state:
                self._state = replace(after, revision=self._state.revision + 1)
                self.changes.append(self._state)
            return self._state

    def revision(self) -> int:
        self._check()
        return self._state.revision

    def file_drift(self) -> str:
        self._check()
        return self.edited

    def _check(self) -> None:
        if self.broken:
            raise DatabaseUnavailable("the database is away", hint="mlxctl doctor")


class MemoryShelf:
    """Models by name; ``remote`` are those that a pull would find, ``pulled`` is asked before one is given."""

    def __init__(self, *models: StoredModel) -> None:
        self._models = {model.name: model for model in models}
        self._changes = 0
        self.remote: dict[str, StoredModel] = {}
        self.pulled: Callable[[str, PullProgress], None] = lambda reference, progress: progress(reference, 1.0)

    def resolve(self, name: str) -> StoredModel:
        try:
            return self._models[full_name(name)]
        except KeyError:
            raise ModelNotFound(f"no model {name} in the store", hint=f"mlxctl pull {name}", model=name) from None

    def models(self) -> Sequence[StoredModel]:
        return list(self._models.values())

    def stamp(self) -> object:
        return self._changes

    async def pull(self, reference: str, progress: PullProgress) -> StoredModel:
        if reference not in self.remote:
            raise ModelNotFound(f"no model {reference} anywhere", model=reference)
        loop, left = asyncio.get_running_loop(), threading.Event()

        def tell(stage: str, done: float) -> None:
            if left.is_set():
                raise Cancelled("nobody waits for it")
            loop.call_soon_threadsafe(progress, stage, done)

        try:
            await asyncio.to_thread(self.pulled, reference, tell)
        finally:
            left.set()
        self.add(self.remote[reference])
        return self.remote[reference]

    def add(self, model: StoredModel) -> None:
        """Put a model under its name; one that is there is replaced."""
        self._models[model.name] = model
        self._changes += 1

    def remove(self, name: str) -> None:
        del self._models[name]
        self._changes += 1


class OwnPorts:
    """Every port is ours, but those in ``foreign``; None: nobody listens there either."""

    def __init__(self) -> None:
        self.foreign: dict[int, Holder | None] = {}

    def unbound(self) -> Collection[int]:
        return self.foreign.keys()

    async def holder(self, port: int) -> Holder | None:
        return self.foreign.get(port)
