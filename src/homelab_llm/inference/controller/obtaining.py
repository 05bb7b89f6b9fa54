"""Obtaining a model: from what a person wrote to an entry of the registry whose files lie in the store."""

from __future__ import annotations

from functools import partial

from homelab_llm.core.errors import InvalidInput, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.inference.controller.board import Board
from homelab_llm.inference.controller.entries import registered
from homelab_llm.inference.controller.work import Work


async def obtain(board: Board, work: Work, text: str) -> tuple[Entry, StoredModel]:
    """The model of a slug, a name in the store, or a reference to pull; it is pulled and registered if it is not.

    The entry is written after the pull: killed before, the registry never heard of it and the same command goes on.

    Raises:
        InvalidInput, ModelNotFound, TransferError, DiskFull: the pull; the registry is as it was.
        ModelDamaged: it is stored and must be repaired first.
    """
    entry = board.snapshot.find(text)
    try:
        model = board.shelf.resolve(entry.model_id if entry else text)
    except (ModelNotFound, InvalidInput):
        model = await _pull(board, work, text, entry)
    slug = entry.slug if entry else ""
    state = await board.change(partial(registered, model=model, slug=slug))
    known = state.entries.get(slug) or state.by_model(model.name)
    if known is None:
        raise ModelNotFound(f"{model.name} was taken out of the registry meanwhile", hint="mlxctl list")
    return known, model


async def complete(board: Board, reference: str, name: str) -> None:
    """A model was pulled: the intent that asks for this reference, or for a model of this name, is one no more."""
    model = board.find(name)

    def asked(entry: Entry) -> bool:
        wants = {entry.repo_id or entry.model_id, entry.model_id}
        return entry.is_intent and bool(wants & {reference, reference.removeprefix("hf:"), name})

    def move(state: RegistryState) -> RegistryState:
        slug = next((slug for slug, entry in sorted(state.entries.items()) if asked(entry)), "")
        return registered(state, model, slug) if model is not None and slug else state

    if model is not None and any(map(asked, board.snapshot.state.entries.values())):
        await board.change(move)


async def _pull(board: Board, work: Work, text: str, entry: Entry | None) -> StoredModel:
    reference = (entry.repo_id or entry.model_id) if entry else text

    def progress(stage: str, done: float) -> None:
        work.tell("pulling", f"{reference}: {stage}", done=done)

    work.tell("pulling", reference)
    failpoint("controller.before_pull")
    try:
        model = await board.shelf.pull(reference, progress)
    except ModelNotFound as error:
        if entry is not None:
            raise
        raise ModelNotFound(
            f"no model {text[:80]} in the registry, the store or the catalogue",
            hint=error.hint or "mlxctl pull hf:ORG/NAME",
            **error.facts,
        ) from error
    except InvalidInput as error:
        error.hint = error.hint or "mlxctl list"
        raise
    failpoint("controller.after_pull")
    return model
