"""Slots: which model each alias points to now. The registry says what shall be; this is what is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.registry.slots import Slot, SlotTable
from homelab_llm.core.routing import Target


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a slot serves: the entry's slug (empty for the default model or a foreign server) and where requests go.

    ``missing`` names a model that the slot shall serve and that is not in the store.
    """

    slot: Slot
    slug: str = ""
    target: Target | None = None
    missing: str = ""

    @property
    def model(self) -> StoredModel | None:
        """The model of ours that it points to."""
        return self.target.model if self.target is not None and self.target.foreign is None else None

    @property
    def digest(self) -> str:
        """Of the model, empty when there is none."""
        return str(self.model.digest) if self.model is not None else ""


class Pointers:
    """One pointer per slot, found by port or alias at once. ``version`` grows with each change."""

    def __init__(self, table: SlotTable) -> None:
        self.table = table
        self.version = 0
        self._by_port = {slot.port: Pointer(slot) for slot in table.slots}
        self._by_alias = {slot.alias: slot for slot in table.slots}

    def __iter__(self) -> Iterator[Pointer]:
        return iter(self._by_port.values())

    def at(self, port: int) -> Pointer | None:
        return self._by_port.get(port)

    def of(self, slot: Slot) -> Pointer:
        return self._by_port[slot.port]

    def named(self, alias: str) -> Pointer | None:
        slot = self._by_alias.get(alias)
        return None if slot is None else self._by_port[slot.port]

    def put(self, pointer: Pointer) -> bool:
        """Point a slot elsewhere; False when it points there already, and then nothing at all changes."""
        before = self._by_port[pointer.slot.port]
        if before == pointer:
            return False
        self._by_port[pointer.slot.port] = pointer
        self.version += 1
        return True

    def uses(self, digest: str, *, but: int = 0) -> bool:
        """Whether a slot other than port ``but`` serves this model."""
        return any(pointer.digest == digest and pointer.slot.port != but for pointer in self)
