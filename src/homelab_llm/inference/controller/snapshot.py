"""Snapshot: the registry as the controller last read it, with dictionaries for what is looked up often. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.names import ModelRef
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.inference.controller.seams import Terms

FOR_EVER_S = -1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of the registry; ``by_model`` finds an entry by the full name of its model in the store."""

    state: RegistryState = field(default_factory=RegistryState)
    by_model: Mapping[str, Entry] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, state: RegistryState) -> Snapshot:
        return cls(
            state,
            {full_name(entry.model_id): entry for entry in state.entries.values()},
            {a.desired: port for port, a in state.assignments.items() if a.desired},
        )

    def desired(self, port: int) -> Entry | None:
        """The entry that the port shall serve; also None when the entry is missing."""
        return self.state.entries.get(self.state.assignment(port).desired)

    def find(self, text: str) -> Entry | None:
        """The entry of a slug, a name in the store, or the place it comes from, as a person wrote it."""
        return (
            self.state.entries.get(text)
            or self.by_model.get(full_name(text))
            or next((entry for entry in self.state.entries.values() if entry.repo_id == text), None)
        )

    def keep_alive_s(self, entry: Entry) -> float | None:
        """How long the model stays loaded when idle: on a slot for ever unless the entry says otherwise."""
        if entry.keep_alive_s is not None or entry.slug not in self.ports:
            return entry.keep_alive_s
        return FOR_EVER_S

    def terms(self, entry: Entry) -> Terms:
        """What the fleet must know of a model before anybody asks for it."""
        return Terms(pinned=entry.pinned, keep_alive_s=self.keep_alive_s(entry))


def full_name(name: str) -> str:
    """A name as the store spells it, with its tag; what is no name of the store stays as it is."""
    try:
        return str(ModelRef.parse(name))
    except InvalidInput:
        return name
