"""The registry's state and the moves that change it. Pure: each move takes a state and returns a new one.

Whoever keeps the state runs a move inside one transaction, so that nothing is lost between reading and writing.
One port serves one model and one model is on one port: every move keeps that true, or raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from homelab_llm.core.errors import AlreadyExists, InvalidInput, ModelNotRegistered, SlotInUse
from homelab_llm.core.names import ModelRef
from homelab_llm.core.registry.entry import MAX_SLUG_CHARACTERS, Entry


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
    _by_model: Mapping[str, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_model", {entry.model_id: entry for entry in self.entries.values()})

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
        return self._by_model.get(model_id)

    def find(self, text: str) -> Entry:
        """The entry a person means by its slug or by the model's name in the store.

        Raises:
            ModelNotRegistered: there is none; facts ``closest``.
        """
        if found := self.entries.get(text):
            return found
        with contextlib.suppress(InvalidInput):
            if found := self.by_model(str(ModelRef.parse(text))):
                return found
        import difflib  # for this error only

        closest = difflib.get_close_matches(text, [*self.entries, *self._by_model], n=3)
        shown = text[:60].encode("unicode_escape").decode("ascii")
        hint = f"did you mean {' or '.join(closest)}?" if closest else "mlxctl registry export -"
        raise ModelNotRegistered(f"{shown} is not in the registry", hint=hint, closest=closest or None)

    def port_of(self, slug: str) -> int | None:
        """The port that shall serve the model; None when none does."""
        return next((a.port for a in self.assignments.values() if a.desired == slug), None)

    def assignment(self, port: int) -> Assignment:
        """What is known of a port; an empty assignment when nothing is."""
        return self.assignments.get(port) or Assignment(port)


def register(state: RegistryState, entry: Entry) -> RegistryState:
    """Add an entry, or replace the one of the same slug.

    Raises:
        AlreadyExists: the model has an entry of another slug.
    """
    if state.entries.get(entry.slug) == entry:
        return state
    return register_all(state, [entry])


def register_all(state: RegistryState, entries: Iterable[Entry]) -> RegistryState:
    """Add entries, or replace those of the same slugs.

    Raises:
        AlreadyExists: a model would have two entries.
    """
    after = {**state.entries, **{entry.slug: entry for entry in entries}}
    slugs: dict[str, str] = {}
    for entry in after.values():
        if (other := slugs.setdefault(entry.model_id, entry.slug)) != entry.slug:
            words = f"{entry.model_id} is registered as {other}"
            raise AlreadyExists(words, hint=f"change the entry {other}", model=other)
    return replace(state, entries=after)


def free_slug(state: RegistryState, wanted: str, model_id: str) -> str:
    """The slug of the model's entry; when it has none, ``wanted`` or the first of ``wanted-2``… that is not taken."""
    known = state.by_model(model_id)
    if known is not None:
        return known.slug
    number, slug = 1, wanted
    while slug in state.entries:
        number += 1
        slug = f"{wanted[: MAX_SLUG_CHARACTERS - 6].rstrip('._-')}-{number}"
    return slug


def rename(state: RegistryState, slug: str, new: str) -> RegistryState:
    """Give an entry another slug; ports follow.

    Raises:
        ModelNotRegistered: there is none.
        AlreadyExists: the new slug is taken.
    """
    entry = state.entry(slug)
    if new in state.entries:
        raise AlreadyExists(f"{new} is registered already, as {state.entries[new].model_id}", model=new)

    def named(name: str) -> str:
        return new if name == slug else name

    entries = {named(key): held for key, held in state.entries.items()} | {new: replace(entry, slug=new)}
    assignments = {
        port: replace(held, desired=named(held.desired), actual=named(held.actual), last_good=named(held.last_good))
        for port, held in state.assignments.items()
    }
    return replace(state, entries=entries, assignments=assignments)


def forget(state: RegistryState, slug: str) -> RegistryState:
    """Remove an entry.

    Raises:
        ModelNotRegistered: there is none.
        SlotInUse: a port shall serve it, or serves it.
    """
    state.entry(slug)
    for port, held in state.assignments.items():
        if slug in (held.desired, held.actual):
            raise SlotInUse(f"{slug} is on port {port}", hint=f"mlxctl unload {port}", port=port, model=slug)
    return replace(
        state,
        entries={key: entry for key, entry in state.entries.items() if key != slug},
        assignments={
            port: replace(held, last_good="") if held.last_good == slug else held
            for port, held in state.assignments.items()
        },
    )


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
    failure = before.last_failure if before.desired == slug else ""
    return _put(state, replace(before, desired=slug, foreign="", last_failure=failure), now_s)


def serve(state: RegistryState, port: int, slug: str, now_s: float) -> RegistryState:
    """The model was proven to answer on the port; it becomes desired, actual and last good in one move.

    Raises:
        ModelNotRegistered: no such entry.
    """
    state = assign(state, port, slug, now_s, force=True)
    for held in state.assignments.values():
        if held.actual == slug and held.port != port:  # an import moved it: one model is on one port
            state = _put(state, replace(held, actual=""), now_s)
    return _put(state, replace(state.assignment(port), actual=slug, last_good=slug, last_failure=""), now_s)


def fail(state: RegistryState, port: int, reason: str, now_s: float) -> RegistryState:
    """What was tried on the port failed; what it shall serve and serves stays."""
    failed = replace(state.assignment(port), last_failure=_storable(reason, 2000), failed_unix_s=now_s)
    return replace(state, assignments={**state.assignments, port: failed})


def clear(state: RegistryState, port: int, now_s: float) -> RegistryState:
    """The port shall serve nothing and serves nothing; its last good model stays known."""
    return _put(state, replace(state.assignment(port), desired="", actual="", foreign="", last_failure=""), now_s)


def adopt_foreign(state: RegistryState, port: int, model_id: str, now_s: float) -> RegistryState:
    """A server of another origin keeps the port; ``model_id`` is what it says it serves.

    Raises:
        SlotInUse: the port shall serve a model of ours.
    """
    before = state.assignment(port)
    if before.desired:
        raise SlotInUse(f"port {port} is assigned to {before.desired}", hint=f"mlxctl unload {port}", port=port)
    adopted = replace(before, foreign=_storable(model_id, 512), actual="", last_failure="")
    return _put(state, adopted, now_s)


def duplicates(assignments: Iterable[Assignment]) -> list[str]:
    """Slugs that more than one port shall serve."""
    seen: set[str] = set()
    twice: list[str] = []
    for assignment in assignments:
        if assignment.desired and assignment.desired in seen:
            twice.append(assignment.desired)
        seen.add(assignment.desired)
    return twice


def _put(state: RegistryState, assignment: Assignment, now_s: float) -> RegistryState:
    """With the assignment; what stays as it was keeps its time, so that repeating a move changes nothing."""
    if assignment == state.assignment(assignment.port):
        return state
    changed = replace(assignment, changed_unix_s=now_s)
    return replace(state, assignments={**state.assignments, assignment.port: changed})


def _storable(text: str, limit: int) -> str:
    """Text of another program, cut, without what a database or UTF-8 cannot hold."""
    return text[:limit].encode("utf-8", "replace").decode("utf-8").replace("\0", "")
