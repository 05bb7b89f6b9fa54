"""Board: what the controller knows and points to, kept in step with registry, store and fleet. The verbs work on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from homelab_llm.core.clock import Clock
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, InvalidInput, ModelDamaged, ModelNotFound
from homelab_llm.core.events import Event, Level
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.slots import Slot, SlotTable
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.core.routing import Target
from homelab_llm.inference.controller.entries import options
from homelab_llm.inference.controller.router import Router, slot_target, target_of
from homelab_llm.inference.controller.seams import Fleet, Move, Ports, Registry, Shelf, Terms
from homelab_llm.inference.controller.slots import Pointer, Pointers
from homelab_llm.inference.controller.snapshot import Snapshot
from homelab_llm.inference.engines.base import ModelOptions

Kind = Literal[
    "load_started", "assigned", "load_failed", "swap_started", "swapped", "swap_failed", "unassigned", "drift",
    "foreign", "boot_failed", "restore_failed", "record_failed", "registry_unreadable",
]  # fmt: skip
"""What is told of slots; ``docs/reference/events.md`` says when."""


@dataclass(slots=True)
class Turn:
    """A change of one slot under way; ``final`` is set when its pointer will not move any more."""

    kind: Literal["loading", "swapping"]
    model: str
    final: asyncio.Event = field(default_factory=asyncio.Event)


class Board:
    """The controller's state; only the event loop's thread touches it.

    Args:
        default_model: what a slot without a model serves; empty = nothing.
        host: where adopted servers of other origins are reached.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        shelf: Shelf,
        fleet: Fleet,
        table: SlotTable,
        ports: Ports,
        publish: Callable[[Event], None],
        clock: Clock,
        default_model: str,
        host: str,
    ) -> None:
        self.registry = registry
        self.shelf = shelf
        self.fleet = fleet
        self.table = table
        self.ports = ports
        self.clock = clock
        self.default_model = default_model
        self._publish = publish
        self.host = host
        self.snapshot = Snapshot()
        self.pointers = Pointers(table)
        self.router = Router(self.pointers, shelf, lambda: self.snapshot, self.point_all)
        self.busy: dict[int, Turn] = {}
        self.proven: dict[int, str] = {}
        self._locks = {slot.port: asyncio.Lock() for slot in table.slots}
        self._terms: dict[str, Terms] = {}
        self._terms_of: object = None

    # --- the registry ---------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Take over what the registry says now."""
        self._take(await asyncio.to_thread(self.registry.read))

    async def change(self, move: Move) -> RegistryState:
        """Run a move in the registry and take over the result; once begun it is not called off."""
        state = await asyncio.shield(asyncio.to_thread(self.registry.change, move))
        self._take(state)
        return state

    def _take(self, state: RegistryState) -> None:
        before = self.snapshot.state
        if state.revision < before.revision:
            return  # two threads came back in the other order
        self.snapshot = Snapshot.of(state)
        self.router.forget()
        if _run_differently(before, state):
            self.fleet.forget_plans()
        self.point_all()

    # --- pointers -------------------------------------------------------------------------------------------

    def point_all(self) -> None:
        """Point every slot where it belongs, but those that are being changed; tell the fleet its terms."""
        for slot in self.table.slots:
            if slot.port not in self.busy:
                self.pointers.put(self._pointed(slot))
        self._set_terms()

    def flip(self, slot: Slot, entry: Entry, model: StoredModel) -> None:
        """From now on the slot's requests go to this model."""
        self.pointers.put(Pointer(slot, entry.slug, slot_target(slot, entry, model, self.snapshot)))

    def _pointed(self, slot: Slot) -> Pointer:
        """Where a slot belongs: what it serves stays as long as that is loaded, even when the registry moved on."""
        before, assignment = self.pointers.of(slot), self.snapshot.state.assignment(slot.port)
        if assignment.foreign:
            return Pointer(slot, target=self._foreign(slot, assignment.foreign))
        taken = self.snapshot.ports.get(before.slug, slot.port) != slot.port  # one model is on one port
        if before.slug and before.model is not None and not taken and self.fleet.loaded(before.digest):
            entry = self.snapshot.state.entries.get(before.slug)
            return before if entry is None else self._pointer(slot, entry, before.model)
        if assignment.desired:
            wanted = self.snapshot.desired(slot.port)
            model = self.stored(wanted)
            if wanted is None or model is None:
                return Pointer(slot, assignment.desired, missing=assignment.desired)
            return self._pointer(slot, wanted, model)
        default = self.find(self.default_model) if self.default_model else None
        if default is None:
            return Pointer(slot)
        return Pointer(slot, target=target_of(default, self.snapshot, slot, why="no model is assigned: the default"))

    def _pointer(self, slot: Slot, entry: Entry, model: StoredModel) -> Pointer:
        return Pointer(slot, entry.slug, slot_target(slot, entry, model, self.snapshot))

    def _foreign(self, slot: Slot, model_id: str) -> Target:
        facts = ModelFacts(format="gguf", architecture="foreign", size_bytes=0)
        model = StoredModel(model_id, Digest.of(model_id.encode()), facts)
        why = f"{slot.alias} (port {slot.port}) is a server of another origin"
        return Target(model, slot.alias, foreign=(self.host, slot.port), why=(why,))

    # --- models ---------------------------------------------------------------------------------------------

    def find(self, name: str) -> StoredModel | None:
        """The model of a name in the store, or None; None also for one that is damaged."""
        try:
            return self.shelf.resolve(name)
        except (ModelNotFound, ModelDamaged, InvalidInput):
            return None

    def stored(self, entry: Entry | None) -> StoredModel | None:
        """The model of an entry as the store has it now."""
        return None if entry is None else self.find(entry.model_id)

    def known(self, text: str) -> tuple[Entry | None, StoredModel]:
        """The model that a person means by a slug, a name in the store, or an alias's model; and its entry.

        Raises:
            InvalidName, ModelNotFound: there is none in the store.
        """
        entry = self.snapshot.find(text)
        model = self.shelf.resolve(entry.model_id if entry else text)
        return entry or self.snapshot.find(model.name), model

    def _set_terms(self) -> None:
        """Tell the fleet what changed about pins and lifetimes; two names of one model share the kinder terms."""
        seen = self.router.stamp()
        if seen == self._terms_of:
            return
        self._terms_of = seen
        wanted: dict[str, Terms] = dict.fromkeys(self._terms, Terms())
        plain = Terms()
        for entry in self.snapshot.state.entries.values():
            terms = self.snapshot.terms(entry)
            if terms == plain:
                continue
            pointer = self.pointers.at(self.snapshot.ports.get(entry.slug, 0))
            model = pointer.model if pointer is not None and pointer.slug == entry.slug else self.stored(entry)
            if model is not None:
                digest = str(model.digest)
                wanted[digest] = _kinder(terms, wanted.get(digest, plain))
        for digest, terms in wanted.items():
            if self._terms.get(digest, plain) != terms:
                self.fleet.set_terms(digest, terms)
        self._terms = {digest: terms for digest, terms in wanted.items() if terms != plain}

    def pinned(self, digest: str) -> bool:
        """Whether the operator wants this model never to make room."""
        return self._terms.get(digest, Terms()).pinned

    # --- changes --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def hold(self, *ports: int) -> AsyncIterator[None]:
        """Change these slots; others that want to, wait. Taken by port, so that two never wait for each other."""
        async with AsyncExitStack() as stack:
            for port in sorted(set(ports)):
                if (lock := self._locks.get(port)) is not None:
                    await stack.enter_async_context(lock)
            yield

    def held(self, port: int) -> bool:
        """Whether somebody changes the slot."""
        return self._locks[port].locked()

    @asynccontextmanager
    async def turn(self, slot: Slot, kind: Literal["loading", "swapping"], model: str) -> AsyncIterator[Turn]:
        """Mark a slot as being changed; at the end it is pointed where it belongs."""
        turn = self.busy[slot.port] = Turn(kind, model)
        try:
            yield turn
        finally:
            del self.busy[slot.port]
            self.point_all()
            turn.final.set()

    # --- telling --------------------------------------------------------------------------------------------

    def tell(
        self, kind: Kind, text: str, *, slot: Slot | None = None, model: str = "", level: Level = "info", **facts: Any
    ) -> None:
        """Publish an event."""
        service = f"slot:{slot.port}" if slot else "mlxserve"
        port = slot.port if slot else 0
        self._publish(Event(kind, text, level, service, model, port, facts))

    def tell_failure(self, kind: Kind, slot: Slot, model: str, error: HomelabError | OSError) -> None:
        """Publish that something went wrong on a slot."""
        code = error.code if isinstance(error, HomelabError) else "os_error"
        self.tell(kind, f"{slot.port} ({slot.alias}): {error}", slot=slot, model=model, level="error", code=code)


def _kinder(one: Terms, other: Terms) -> Terms:
    lifetimes = [terms.keep_alive_s for terms in (one, other) if terms.keep_alive_s is not None]
    longest = None if not lifetimes else min(lifetimes) if min(lifetimes) < 0 else max(lifetimes)
    return Terms(pinned=one.pinned or other.pinned, keep_alive_s=longest)


def _run_differently(before: RegistryState, after: RegistryState) -> bool:
    """Whether an entry of both says something else about how its model is run, or a new one brings options."""
    plain = ModelOptions()
    for slug, entry in after.entries.items():
        known = before.entries.get(slug)
        if known is not entry and options(entry) != (options(known) if known else plain):
            return True
    return any(options(entry) != plain for slug, entry in before.entries.items() if slug not in after.entries)
