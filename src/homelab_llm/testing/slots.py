"""Slots for tests of the front door: a router that reads a table, and a controller that notes what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from homelab_llm.core.errors import HomelabError, SlotEmpty, SlotNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.gateway.seams import Catalogue, Target


class TableRouter:
    """A ``Router``: what each alias serves is set by ``point``; a swap is under way while ``swapping`` is set."""

    def __init__(self, catalogue: Catalogue, slots: SlotTable) -> None:
        self._catalogue = catalogue
        self._slots = slots
        self._targets: dict[str, Target] = {}
        self._version = 0
        self.swapping: asyncio.Event | None = None

    def point(self, alias: str, target: Target | None) -> None:
        """``alias`` serves this from now on; None: nothing."""
        self._version += 1
        self._targets.pop(alias, None)
        if target is not None:
            self._targets[alias] = target

    def route(self, name: str, port: int = 0) -> Target:
        """As ``Router.route``."""
        alias = self._slots.find(port).alias if port else name
        if target := self._targets.get(alias):
            return target
        if alias not in self._slots.aliases:
            return Target(self._catalogue.resolve(name))
        number = self._slots.find(alias).port
        raise SlotEmpty(f"{alias} serves nothing", hint=f"mlxctl load MODEL {number}", port=number, alias=alias)

    async def settled(self, target: Target) -> bool:
        """As ``Router.settled``."""
        if self.swapping is not None:
            await self.swapping.wait()
        return self._targets.get(target.alias) is not target

    def listed(self) -> Sequence[tuple[str, StoredModel]]:
        """As ``Router.listed``."""
        return [(alias, target.model) for alias, target in self._targets.items()]

    def stamp(self) -> object:
        """As ``Router.stamp``."""
        return self._version


class NotingController:
    """A ``Controller`` that notes each call and answers with ``answer``, or with ``steps`` where steps are told.

    ``error`` is raised by every call, by those with steps after the first. ``hold`` keeps them waiting after it.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer: dict[str, Any] = {"ok": True}
        self.steps: list[dict[str, Any]] = [{"stage": "loading", "done": 0.5}, {"stage": "ready", "done": 1.0}]
        self.error: HomelabError | None = None
        self.hold: asyncio.Event | None = None
        self.closed_early = 0

    async def _note(self, *call: Any) -> dict[str, Any]:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return self.answer

    async def _tell(self, *call: Any) -> AsyncIterator[dict[str, Any]]:
        self.calls.append(call)
        left = list(self.steps)
        try:
            while left:
                yield left.pop(0)
                if self.hold is not None:
                    await self.hold.wait()
                if self.error is not None:
                    raise self.error
        finally:
            self.closed_early += bool(left) and self.error is None

    async def slots(self) -> dict[str, Any]:
        return await self._note("slots")

    def load(self, model: str, slot: str, *, force: bool = False) -> AsyncIterator[dict[str, Any]]:
        return self._tell("load", model, slot, force)

    def swap(self, slot: str, model: str) -> AsyncIterator[dict[str, Any]]:
        return self._tell("swap", slot, model)

    async def unload(self, slot: str) -> dict[str, Any]:
        if slot.isdigit() and not 8100 <= int(slot) <= 8109:
            raise SlotNotFound(f"no slot {slot}", field="slot")
        return await self._note("unload", slot)

    async def unload_all(self) -> dict[str, Any]:
        return await self._note("unload_all")

    def reconcile(self, *, apply: bool) -> AsyncIterator[dict[str, Any]]:
        return self._tell("reconcile", apply)

    async def verify(self) -> dict[str, Any]:
        return await self._note("verify")

    async def pin(self, model: str, *, pinned: bool) -> dict[str, Any]:
        return await self._note("pin", model, pinned)

    async def fit(self, model: str, context_tokens: int | None = None) -> dict[str, Any]:
        return await self._note("fit", model, context_tokens)

    async def explain(self, request: Mapping[str, Any], port: int = 0) -> dict[str, Any]:
        return await self._note("explain", dict(request), port)

    async def unquarantine(self, model: str) -> dict[str, Any]:
        return await self._note("unquarantine", model)

    async def adopt(self, slot: str) -> dict[str, Any]:
        return await self._note("adopt", slot)

    async def refresh(self) -> None:
        await self._note("refresh")
