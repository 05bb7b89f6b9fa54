"""Explaining: where a request would go and why, and whether a model would fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homelab_llm.core.errors import HomelabError, InvalidInput
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.routing import Target
from homelab_llm.inference.controller.board import Board

_NOT_PARAMETERS = ("messages", "prompt", "input", "model", "tools")


def explain(board: Board, request: Mapping[str, Any], port: int = 0) -> dict[str, Any]:
    """Follow a request as the front door would, and tell each step; nothing is loaded.

    Raises:
        InvalidInput: no model is named and no slot given.
        SlotEmpty, ModelNotFound, InvalidName: as the request itself would be answered.
    """
    name = request.get("model", "")
    if not port and not (isinstance(name, str) and name):
        raise InvalidInput("the request names no model", hint='{"model": "NAME"}', field="model")
    target = board.router.route(str(name), port)
    entry = board.snapshot.find(target.model.name)
    own = {key: value for key, value in request.items() if key not in _NOT_PARAMETERS}
    registered = set(entry.request_params) if entry else set()
    told: dict[str, Any] = {
        "asked": str(name),
        "model": target.model.name,
        "alias": target.alias,
        "port": board.table.find(target.alias).port if target.alias else 0,
        "slug": entry.slug if entry else "",
        "digest": str(target.model.digest),
        "params": {**target.params, **own},
        "from_registry": sorted(registered - set(own)),
        "from_model": sorted(set(target.params) - registered - set(own)),
        "max_output_tokens": target.max_output_tokens,
        "keep_alive_s": board.snapshot.keep_alive_s(entry) if entry else None,
        "foreign": f"{target.foreign[0]}:{target.foreign[1]}" if target.foreign else "",
    }
    steps = list(target.why)
    if target.foreign is None:
        told |= _where(board, target, steps)
    told["why"] = steps
    return told


def _where(board: Board, target: Target, steps: list[str]) -> dict[str, Any]:
    row = board.fleet.loaded(str(target.model.digest))
    if row is not None:
        free = row["parallel"] - row["leases"]
        steps.append(f"it is loaded with {row['engine']}; {max(0, free)} of {row['parallel']} slots are free")
        if free <= 0:
            steps.append(f"it would wait behind {row['waiting']} others")
        return {"loaded": True, "engine": row["engine"], "in_flight": row["leases"], "waiting": row["waiting"],
                "parallel": row["parallel"], "context_tokens": row["context_tokens"], "fit": None}  # fmt: skip
    try:
        numbers = board.fleet.fit(target.model)
    except HomelabError as error:
        steps.append(f"it cannot be loaded: {error.message}")
        return {"loaded": False, "engine": "", "in_flight": 0, "waiting": 0, "parallel": 0, "context_tokens": 0,
                "fit": None}  # fmt: skip
    steps.append("it is not loaded: the request would load it" if numbers["fits"] else "it does not fit into memory")
    if numbers["evicts"]:
        steps.append(f"for that would go: {', '.join(numbers['evicts'])}")
    return {"loaded": False, "engine": numbers["engine"], "in_flight": 0, "waiting": 0,
            "parallel": numbers.get("parallel", 0), "context_tokens": numbers.get("context_tokens", 0),
            "fit": numbers}  # fmt: skip


def fit(board: Board, text: str, context_tokens: int | None) -> dict[str, Any]:
    """Whether and how a model fits, with all numbers.

    Raises:
        ModelNotFound: it is not in the store.
        EngineUnavailable: nothing here runs it.
    """
    entry, model = board.known(_meant(board, text))
    numbers = board.fleet.fit(model, context_tokens)
    return {**numbers, "model": model.name, "slug": entry.slug if entry else ""}


def _meant(board: Board, text: str) -> str:
    """An alias or a port stands for what it serves."""
    model: StoredModel | None = None
    for pointer in board.pointers:
        if text in (pointer.slot.alias, str(pointer.slot.port)):
            model = pointer.model
    return model.name if model is not None else text
