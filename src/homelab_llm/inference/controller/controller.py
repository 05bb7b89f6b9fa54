"""Controller: routes requests to slots and models, and carries out what the operator wants of them.

Meets ``gateway.seams.Router`` and ``gateway.seams.Controller`` by its shape. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from homelab_llm.core.clock import Clock, SystemClock
from homelab_llm.core.errors import Conflict, HomelabError, UnsupportedRequest
from homelab_llm.core.events import Event
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.registry.state import RegistryState, adopt_foreign, register
from homelab_llm.core.routing import Target
from homelab_llm.inference.controller import boot, explaining, loading, reconciling, status
from homelab_llm.inference.controller.board import Board
from homelab_llm.inference.controller.entries import options, registered
from homelab_llm.inference.controller.obtaining import complete
from homelab_llm.inference.controller.seams import Fleet, Ports, Registry, Shelf
from homelab_llm.inference.controller.snapshot import full_name
from homelab_llm.inference.controller.work import Work
from homelab_llm.inference.engines.base import ModelOptions

T = TypeVar("T")


class Controller:
    """One node's slots.

    The node calls ``start`` before it listens, ``boot`` after the workers were adopted, ``close`` at the end.

    Args:
        slots: ports and their names.
        publish: gets every event; must not block.
        foreign: who holds ports that this daemon does not.
        default_model: serves slots without a model; empty = they are empty.
        auto_load: load at boot what the registry assigns.
        host: where clients on this machine reach slot ports, for addresses that are shown and for adopted servers.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        shelf: Shelf,
        fleet: Fleet,
        slots: SlotTable,
        publish: Callable[[Event], None],
        foreign: Ports,
        default_model: str = "",
        auto_load: bool = True,
        host: str = "127.0.0.1",
        clock: Clock | None = None,
    ) -> None:
        self._board = Board(
            registry=registry,
            shelf=shelf,
            fleet=fleet,
            table=slots,
            ports=foreign,
            publish=publish,
            clock=clock or SystemClock(),
            default_model=default_model,
            host=host,
        )
        self._auto_load = auto_load
        self._watch = boot.Watch(self._board)
        self._watching: asyncio.Task[None] | None = None
        self._works: set[Work] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the registry, so that requests find their slots; loads nothing."""
        await boot.read_or_tell(self._board)

    async def boot(self) -> None:
        """Bring up what the registry assigns, and watch from then on. Adopted workers are kept."""
        self._watching = asyncio.create_task(self._watch.run())
        work = Work(lambda work: boot.boot(self._board, work, auto_load=self._auto_load), self._works)
        try:
            async for _ in work.steps():
                pass
        except HomelabError as error:  # requests are served all the same; the watch goes on trying
            self._board.tell("boot_failed", error.message, level="error", code=error.code)

    async def close(self) -> None:
        """Call off what is under way; models stay as they are."""
        if self._watching is not None:
            self._watching.cancel()
        for work in list(self._works):
            await work.stop()
        for task in list(self._tasks):
            task.cancel()
        waited = [task for task in (self._watching, *self._tasks) if task is not None]
        await asyncio.gather(*waited, return_exceptions=True)

    @property
    def busy(self) -> bool:
        """Whether a command is under way that another daemon could not go on with."""
        return bool(self._works or self._tasks)

    def chosen(self, model: StoredModel) -> ModelOptions:
        """What the registry says about how a model is run, for the planner; a look-up."""
        entry = self._board.snapshot.by_model.get(full_name(model.name))
        return ModelOptions() if entry is None else options(entry)

    async def pulled(self, reference: str, name: str) -> None:
        """A model came into the store: the registry's wish for it, if there is one, is fulfilled."""
        await self._whole(complete(self._board, reference, name))

    # --- gateway.seams.Router -------------------------------------------------------------------------------

    def route(self, name: str, port: int = 0) -> Target:
        return self._board.router.route(name, port)

    def listed(self) -> Sequence[tuple[str, StoredModel]]:
        return self._board.router.listed()

    def stamp(self) -> object:
        return self._board.router.stamp()

    async def settled(self, target: Target) -> bool:
        """Whether a request for ``target`` that failed shall be routed again; waits while its slot is being changed."""
        board = self._board
        pointer = board.pointers.named(target.alias)
        if pointer is None:
            return False
        if pointer.target is target and (turn := board.busy.get(pointer.slot.port)) is not None:
            await turn.final.wait()
        if pointer.slot.port not in board.busy:
            board.point_all()
        return board.pointers.of(pointer.slot).target is not target

    # --- gateway.seams.Controller ---------------------------------------------------------------------------

    async def slots(self) -> dict[str, Any]:
        return await status.status(self._board)

    def load(self, model: str, slot: str, *, force: bool = False) -> AsyncIterator[dict[str, Any]]:
        return Work(lambda work: loading.load(self._board, work, model, slot, force=force), self._works).steps()

    def swap(self, slot: str, model: str) -> AsyncIterator[dict[str, Any]]:
        return Work(lambda work: loading.swap(self._board, work, slot, model), self._works).steps()

    def reconcile(self, *, apply: bool) -> AsyncIterator[dict[str, Any]]:
        return Work(lambda work: reconciling.reconcile(self._board, work, apply=apply), self._works).steps()

    async def unload(self, slot: str) -> dict[str, Any]:
        return await self._whole(loading.unload(self._board, slot))

    async def unload_all(self) -> dict[str, Any]:
        return await self._whole(loading.unload_all(self._board))

    async def verify(self) -> dict[str, Any]:
        return await status.verify(self._board)

    async def pin(self, model: str, *, pinned: bool) -> dict[str, Any]:
        """Pin or free a model; one that only lies in the store is registered for that."""
        board = self._board
        entry = board.snapshot.find(model)
        stored = None if entry else board.known(model)[1]

        def move(state: RegistryState) -> RegistryState:
            if stored is not None:
                state = registered(state, stored)
            found = state.entry(entry.slug) if entry else state.by_model(stored.name if stored else "")
            return state if found is None else register(state, replace(found, pinned=pinned))

        await board.change(move)
        found = board.snapshot.find(model)
        return {"model": found.model_id if found else model, "slug": found.slug if found else "", "pinned": pinned}

    async def fit(self, model: str, context_tokens: int | None = None) -> dict[str, Any]:
        return explaining.fit(self._board, model, context_tokens)

    async def explain(self, request: Mapping[str, Any], port: int = 0) -> dict[str, Any]:
        return explaining.explain(self._board, request, port)

    async def unquarantine(self, model: str) -> dict[str, Any]:
        """Try a model again that failed too often; ``released`` is False when it was not in quarantine."""
        _, stored = self._board.known(model)
        return {"model": stored.name, "released": self._board.fleet.unquarantine(stored)}

    async def adopt(self, slot: str) -> dict[str, Any]:
        """Take over the model server that holds a slot's port.

        Raises:
            Conflict: nobody holds the port, or we do. UnsupportedRequest: it is no model server.
            SlotInUse: the slot shall serve a model of ours.
        """
        board, place = self._board, self._board.table.find(slot)
        async with board.hold(place.port):
            ours = place.port not in board.ports.unbound()
            holder = None if ours else await board.ports.holder(place.port)
            if holder is None:
                raise Conflict(f"no server of another origin holds port {place.port}", hint="mlxctl status",
                               port=place.port)  # fmt: skip
            if not holder.models:
                raise UnsupportedRequest(
                    f"process {holder.pid or '?'} ({holder.name or '?'}) on port {place.port} lists no model",
                    hint="stop it and run: mlxctl daemon restart",
                    port=place.port,
                )
            move = partial(adopt_foreign, port=place.port, model_id=holder.model, now_s=board.clock.unix_s())
            await self._whole(board.change(move))
        board.tell("foreign", f"{place.alias}: adopted {holder.model}", slot=place, model=holder.model, pid=holder.pid)
        return {"port": place.port, "alias": place.alias, "model": holder.model, "pid": holder.pid or None,
                "name": holder.name}  # fmt: skip

    async def refresh(self) -> None:
        await self._board.read()
        await self._watch.look()

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish it even when the caller leaves: half of it would be worse."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)
