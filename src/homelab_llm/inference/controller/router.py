"""Router: from the name in a request to a model. Slot port before alias before store name; nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from homelab_llm.core.errors import SlotEmpty
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.slots import Slot
from homelab_llm.core.routing import Target, opening_of, own_parameters
from homelab_llm.inference.controller.seams import Shelf
from homelab_llm.inference.controller.slots import Pointer, Pointers
from homelab_llm.inference.controller.snapshot import Snapshot

_REMEMBERED = 4096  # names in use; a client that asks for ever new names costs time, not memory


class Router:
    """Answers every request's first question (``gateway.seams.Router``); the routes of known names are kept.

    Args:
        snapshot: the registry as last read.
        moved: called when the store has changed since the last route; it points the slots anew.
    """

    def __init__(
        self, pointers: Pointers, shelf: Shelf, snapshot: Callable[[], Snapshot], moved: Callable[[], None]
    ) -> None:
        self._pointers = pointers
        self._shelf = shelf
        self._snapshot = snapshot
        self._moved = moved
        self._known: dict[str, Target] = {}
        self._seen: object = None

    def forget(self) -> None:
        """What was known of names may be different now."""
        self._known.clear()

    def route(self, name: str, port: int = 0) -> Target:
        """Where a request goes; on a slot's port the name does not count.

        Raises:
            SlotEmpty: the slot serves nothing; the hint fills it.
            InvalidName, ModelNotFound: as ``Shelf.resolve``.
        """
        self._look()
        pointer = self._pointers.at(port) if port else self._pointers.named(name)
        if pointer is not None:
            if pointer.target is None or (port and pointer.target.foreign is not None):
                raise nothing_on(pointer)  # who reaches us there does not reach the server that was adopted
            return pointer.target
        target = self._known.get(name)
        if target is None:
            target = target_of(self._shelf.resolve(name), self._snapshot())
            if len(self._known) < _REMEMBERED:
                self._known[name] = target
        return target

    def listed(self) -> Sequence[tuple[str, StoredModel]]:
        """Aliases that serve a model now, with it."""
        self._look()
        return [(p.slot.alias, p.target.model) for p in self._pointers if p.target is not None]

    def stamp(self) -> object:
        """Changes whenever another call would answer something else."""
        return self._shelf.stamp(), self._snapshot().state.revision, self._pointers.version

    def _look(self) -> None:
        """Notice a change of the store: one system call."""
        stamp = self._shelf.stamp()
        if stamp != self._seen:
            self._seen = stamp
            self._known.clear()
            self._moved()


def target_of(model: StoredModel, snapshot: Snapshot, slot: Slot | None = None, *, why: str = "") -> Target:
    """The target of a model with what the registry says about it, and below that what the model itself says."""
    entry = snapshot.by_model.get(model.name)
    steps = [why] if why else [f"{model.name} is a model of the store"]
    own, opening = own_parameters(model), opening_of(model)
    if own or opening is not None:
        steps.append("the model brings defaults of its own")
    if entry is None:
        return Target(model, slot.alias if slot else "", params=own, why=tuple(steps), opening=opening)
    steps.append(f"the registry's entry {entry.slug} applies")
    return Target(
        model=model,
        alias=slot.alias if slot else "",
        params={**own, **entry.request_params} if own else entry.request_params,
        max_output_tokens=entry.max_output_tokens,
        keep_alive_s=entry.keep_alive_s,
        why=tuple(steps),
        opening=opening,
    )


def slot_target(slot: Slot, entry: Entry, model: StoredModel, snapshot: Snapshot) -> Target:
    """The target of requests that come by a slot's port or alias."""
    return target_of(model, snapshot, slot, why=f"{slot.alias} (port {slot.port}) serves {entry.slug}")


def nothing_on(pointer: Pointer) -> SlotEmpty:
    """The error of a slot without a model, with the command that fills it."""
    slot = pointer.slot
    if pointer.target is not None:
        return SlotEmpty(
            f"the server that was adopted on slot {slot.port} ({slot.alias}) is gone",
            hint=f"mlxctl unload {slot.port}",
            port=slot.port,
            alias=slot.alias,
        )
    if pointer.missing:
        return SlotEmpty(
            f"slot {slot.port} ({slot.alias}) shall serve {pointer.missing}, which is not in the store",
            hint="mlxctl reconcile --apply",
            port=slot.port,
            alias=slot.alias,
        )
    return SlotEmpty(
        f"slot {slot.port} ({slot.alias}) serves no model",
        hint=f"mlxctl load MODEL {slot.port}",
        port=slot.port,
        alias=slot.alias,
    )
