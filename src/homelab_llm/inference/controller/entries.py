"""Entries: how a model of the store is registered. Pure."""

from __future__ import annotations

from dataclasses import replace

from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import slug_of
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState, free_slug, register
from homelab_llm.inference.engines.base import ModelOptions


def registered(state: RegistryState, model: StoredModel, slug: str = "") -> RegistryState:
    """With an entry for ``model``: the one of that slug or of its name is completed, else a new one is made."""
    known = state.entries.get(slug) or state.by_model(model.name)
    path = _main_file(model)
    if known is None:
        slug = free_slug(state, slug_of(model.name), model.name)
        return register(state, Entry(slug, model.name, model.source, path, format=model.facts.format))
    return register(state, replace(known, model_id=model.name, cache_path=path, format=model.facts.format))


def options(entry: Entry) -> ModelOptions:
    """What an entry says about how its model is run."""
    return ModelOptions(
        engine=entry.engine,
        context_tokens=entry.context_length,
        chat_template=entry.chat_template,
        draft_model=entry.draft_model,
        flags=entry.flags,
        tool_call_parser=entry.tool_call_parser,
        reasoning_parser=entry.reasoning_parser,
    )


def _main_file(model: StoredModel) -> str:
    """The only file, or the folder of the first one."""
    paths = [str(path) for path in model.files.values()]
    if len(paths) == 1:
        return paths[0]
    return str(next(iter(model.files.values())).parent) if paths else ""
