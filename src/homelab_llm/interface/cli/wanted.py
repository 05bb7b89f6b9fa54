"""Wanted: the models that the registry names and the store does not have, fetched; their entries are then complete."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from homelab_llm.core.errors import HomelabError, ModelNotRegistered
from homelab_llm.interface.cli.detached import submit
from homelab_llm.interface.cli.fetching import fetch, say_pulled
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.models import resolve_or_none
from homelab_llm.interface.cli.registry import take

if TYPE_CHECKING:
    from homelab_llm.core.registry.entry import Entry
    from homelab_llm.data.registry import Registry


def pull_wanted(invocation: Invocation, slot: str | None, *, detached: bool) -> None:
    """Fetch what a slot shall serve, or with None all that is wanted; one that fails does not stop the others.

    Raises:
        SlotNotFound, ModelNotRegistered: the slot, or nothing is assigned to it.
        HomelabError: the first of what failed, after all were tried.
    """
    with invocation.registry() as kept:
        entries = _chosen(invocation, kept, slot)
        if detached:
            _order(invocation, entries)
            return
        failed = [error for entry in entries if (error := _pull(invocation, kept, entry)) is not None]
    if failed:
        raise failed[0]


def _chosen(invocation: Invocation, kept: Registry, slot: str | None) -> list[Entry]:
    state = kept.read()
    if slot is None:
        found = [entry for _, entry in sorted(state.entries.items()) if entry.is_intent]
        if not found:
            invocation.output.result({"models": []}, "every model of the registry is stored")
        return found
    port = invocation.settings.slots.table().find(slot).port
    slug = state.assignment(port).desired
    if not slug:
        raise ModelNotRegistered(f"the registry assigns no model to {slot}", hint=f"mlxctl load MODEL {slot}")
    return [state.entry(slug)]


def _order(invocation: Invocation, entries: list[Entry]) -> None:
    jobs = [submit(invocation, "pull", {"model": entry.repo_id or entry.model_id}) for entry in entries]
    if entries:
        lines = [f"{job['job_id']} is {job['state']}: {entry.slug}" for job, entry in zip(jobs, entries, strict=True)]
        invocation.output.result({"jobs": jobs}, lambda: lines)


def _pull(invocation: Invocation, kept: Registry, entry: Entry) -> HomelabError | None:
    """Fetch one and complete its entry; what failed is said, and returned."""
    from homelab_llm.inference.controller.entries import registered

    try:
        model = resolve_or_none(invocation, entry.model_id)
        model = model or fetch(invocation, entry.repo_id or entry.model_id, events=invocation.output.json)
        take(invocation, kept, partial(registered, model=model, slug=entry.slug))
    except HomelabError as error:
        if error.code == "cancelled":
            raise
        invocation.output.warning(f"{entry.slug}: {error.message}", error.hint)
        return error
    say_pulled(invocation, model)
    return None
