"""Moves that take a document into a registry, and the difference between two documents in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from homelab_llm.core.errors import SlotInUse
from homelab_llm.core.registry.document import Document
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.fields import write_entry
from homelab_llm.core.registry.state import Assignment, RegistryState, register_all, rename


def merge(state: RegistryState, document: Document, now_s: float) -> RegistryState:
    """Take in the document's entries and ports; what it does not mention stays.

    A model that is registered by another slug gets that of the document. Only what ports *shall* serve changes; what
    they serve follows when the controller brings it about.

    Raises:
        SlotInUse: a port of the document shall serve a model that the document does not mention.
        AlreadyExists: a slug of the document is that of another model, whose own is another one again.
    """
    state = _renamed(state, document)
    wanted = {port: a.desired for port, a in state.assignments.items() if a.desired not in document.ports}
    for slug, port in document.ports.items():
        if port is None:
            continue
        if holder := wanted.get(port):
            raise SlotInUse(
                f"port {port} shall serve {holder}, which the document does not mention",
                hint=f"mlxctl unload {port}, or import with --replace",
                port=port,
                model=holder,
            )
        wanted[port] = slug
    return want(register_all(state, document.entries.values()), wanted, now_s)


def replace_all(state: RegistryState, document: Document, now_s: float) -> RegistryState:
    """Have the registry say what the document says and nothing else."""
    kept = {port: _without(assignment, document.entries) for port, assignment in state.assignments.items()}
    wanted = {port: slug for slug, port in document.ports.items() if port is not None}
    return want(replace(state, entries=dict(document.entries), assignments=kept), wanted, now_s)


def _renamed(state: RegistryState, document: Document) -> RegistryState:
    """With the document's slugs for models that are known by others."""
    for slug, entry in document.entries.items():
        known = state.by_model(entry.model_id)
        if known is not None and slug not in state.entries and known.slug not in document.entries:
            state = rename(state, known.slug, slug)
    return state


def want(state: RegistryState, wanted: Mapping[int, str], now_s: float) -> RegistryState:
    """Each port shall serve the slug ``wanted`` gives it, and ports it does not name nothing."""
    after = dict(state.assignments)
    for port in {*after, *wanted}:
        before, slug = state.assignment(port), wanted.get(port, "")
        if before.desired != slug:
            foreign = "" if slug else before.foreign
            after[port] = replace(before, desired=slug, foreign=foreign, last_failure="", changed_unix_s=now_s)
    return replace(state, assignments=after)


def differences(before: Document, after: Document) -> list[str]:
    """What ``after`` says other than ``before``, one sentence for each entry, by slug."""
    words = []
    for slug in sorted({*before.entries, *after.entries}):
        old, new = before.entries.get(slug), after.entries.get(slug)
        if new is None:
            words.append(f"{slug} is gone")
        elif old is None:
            port = after.ports.get(slug)
            words.append(f"{slug} is new" + (f", on port {port}" if port else ""))
        else:
            words.extend(_changed(slug, (old, before.ports.get(slug)), (new, after.ports.get(slug, -1))))
    return words


def _changed(slug: str, old: tuple[Entry, int | None], new: tuple[Entry, int | None]) -> list[str]:
    (was, had), (now, has) = old, new
    words = []
    before, after = write_entry(was, {}), write_entry(now, {})
    fields = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    if fields:
        words.append(f"{slug} has another {', '.join(fields)}")
    if has not in (had, -1):
        words.append(f"{slug} is on port {has or 'none'} in place of {had or 'none'}")
    return words


def _without(assignment: Assignment, entries: Mapping[str, Entry]) -> Assignment:
    """The assignment without models that are no longer registered."""
    actual = assignment.actual if assignment.actual in entries else ""
    return replace(assignment, actual=actual, last_good=assignment.last_good if assignment.last_good in entries else "")
