"""The registry's state and the moves that change it. Pure: each move takes a state and returns a new one.

Whoever keeps the state runs a move inside one transaction, so that nothing is lost between reading and writing.
One port serves one model and one model is on one port: every move keeps that true, or raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from homelab_llm.core.errors import ModelNotRegistered, SlotInUse
from homelab_llm.core.registry.entry import Entry


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one port shall serve and did serve; models are named by slug, empty = none.

    ``desired`` is what the operator wants; ``actual`` is what was last proven to answer there, ``last_good`` the
    one before a failure. ``foreign`` is the model id of a server of another origin that was adopted.
    ``last_failure`` is one sentence, empty after a success. Times are Unix seconds, 0 = never.
    """

    port: int
    desired: str = ""
    actual: str = ""
    last_good: str = ""
    foreign: str = ""
    last_failure: str = ""
    failed_unix_s: float = 0.0
    changed_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RegistryState:
    """Everything the registry says. ``revision`` grows by one with each change that was kept."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    assignments: Mapping[int, Assignment] = field(default_factory=dict)
    revision: int = 0

    def entry(self, slug: str) -> Entry:
        """The entry of that slug.

        Raises:
            ModelNotRegistered: there is none.
        """
        try:
            return self.entries[slug]
        except KeyError:
            raise ModelNotRegistered(f"{slug} is not in the registry", hint="mlxctl list", model=slug) from None

    def by_model(self, model_id: str) -> Entry | None:
        """The entry of a name in the store."""
        return next((entry for entry in self.entries.values() if entry.model_id == model_id), None)

    def port_of(self, slug: str) -> int | None:
        """The port that shall serve the model; None when none does."""
        return next((a.port for a in self.assignments.values() if a.desired == slug), None)

    def assignment(self, port: int) -> Assignment:
        """What is known of a port; an empty assignment when nothing is."""
        return self.assignments.get(port) or Assignment(port)


def register(state: RegistryState, entry: Entry) -> RegistryState:
    """Add an entry, or replace the one of the same slug."""
    return replace(state, entries={**state.entries, entry.slug: entry})


def forget(state: RegistryState, slug: str) -> RegistryState:
    """Remove an entry.

    Raises:
        ModelNotRegistered: there is none.
        SlotInUse: a port shall serve it.
    """
    state.entry(slug)
    if (port := state.port_of(slug)) is not None:
        raise SlotInUse(f"{slug} is assigned to port {port}", hint=f"mlxctl unload {port}", port=port)
    return replace(state, entries={key: entry for key, entry in state.entries.items() if key != slug})


def assign(state: RegistryState, port: int, slug: str, now_s: float, *, force: bool = False) -> RegistryState:
    """``port`` shall serve the model; nothing is said of what it serves now.

    Args:
        force: replace another model on the port, and take the model from another port.

    Raises:
        ModelNotRegistered: no such entry.
        SlotInUse: the port shall serve another model, or the model is on another port, and ``force`` is not set.
    """
    state.entry(slug)
    before = state.assignment(port)
    if before.desired not in ("", slug) and not force:
        raise SlotInUse(
            f"port {port} serves {before.desired}",
            hint=f"mlxctl load MODEL {port} --force swaps it; mlxctl unload {port} empties it",
            port=port,
            model=before.desired,
        )
    other = state.port_of(slug)
    if other is not None and other != port:
        if not force:
            raise SlotInUse(f"{slug} is on port {other}", hint=f"mlxctl unload {other}", port=other, model=slug)
        state = clear(state, other, now_s)
    return _put(state, replace(before, desired=slug, foreign="", changed_unix_s=now_s))


def serve(state: RegistryState, port: int, slug: str, now_s: float) -> RegistryState:
    """The model was proven to answer on the port; it becomes desired, actual and last good in one move."""
    assigned = assign(state, port, slug, now_s, force=True)
    return _put(assigned, replace(assigned.assignment(port), actual=slug, last_good=slug, last_failure=""))


def fail(state: RegistryState, port: int, reason: str, now_s: float) -> RegistryState:
    """What was tried on the port failed; what it shall serve and serves stays."""
    return _put(state, replace(state.assignment(port), last_failure=reason[:2000], failed_unix_s=now_s))


def clear(state: RegistryState, port: int, now_s: float) -> RegistryState:
    """The port shall serve nothing; its last good model stays known."""
    return _put(state, replace(state.assignment(port), desired="", actual="", foreign="", changed_unix_s=now_s))


def adopt_foreign(state: RegistryState, port: int, model_id: str, now_s: float) -> RegistryState:
    """A server of another origin keeps the port; ``model_id`` is what it says it serves.

    Raises:
        SlotInUse: the port shall serve a model of ours.
    """
    before = state.assignment(port)
    if before.desired:
        raise SlotInUse(f"port {port} is assigned to {before.desired}", hint=f"mlxctl unload {port}", port=port)
    return _put(state, replace(before, foreign=model_id, actual="", changed_unix_s=now_s))


def duplicates(assignments: Iterable[Assignment]) -> list[str]:
    """Slugs that more than one port shall serve."""
    seen: set[str] = set()
    twice: list[str] = []
    for assignment in assignments:
        if assignment.desired and assignment.desired in seen:
            twice.append(assignment.desired)
        seen.add(assignment.desired)
    return twice


def _put(state: RegistryState, assignment: Assignment) -> RegistryState:
    return replace(state, assignments={**state.assignments, assignment.port: assignment})
