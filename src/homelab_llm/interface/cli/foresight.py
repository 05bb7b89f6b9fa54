"""Verbs that say what would happen: ``fit`` before a load, ``explain`` before a request. They change nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.answering import tell_warning
from homelab_llm.interface.cli.completion import model_names, models_and_aliases, slot_names
from homelab_llm.interface.cli.invocation import Invocation, verb

_MAX_REQUEST_BYTES = 24 * 10**6  # below server.max_body_bytes


@verb("fit")
@click.argument("model", shell_complete=model_names)
@click.option("--context", "context_tokens", type=click.IntRange(1), help="Context of one request, in tokens.")
def fit(invocation: Invocation, model: str, context_tokens: int | None) -> int:
    """Say whether MODEL would fit into memory, with all numbers; exit code 1 when it would not. Loads nothing."""
    body = {"model": model} if context_tokens is None else {"model": model, "context_tokens": context_tokens}
    found = invocation.daemon().post("/admin/fit", body)
    invocation.output.result(found, lambda: _fit_lines(model, found))
    if not invocation.output.json:
        tell_warning(invocation, found)
    return exit_codes.OK if found.get("fits") else exit_codes.FAILED


def _fit_lines(model: str, found: Mapping[str, Any]) -> Iterator[str]:
    evicts, waits = (", ".join(map(str, found.get(name) or ())) for name in ("evicts", "waits_for"))
    how = (f", after unloading {evicts}" if evicts else "") + (f", when {waits} is idle" if waits else "")
    yield f"{model} fits{how}" if found.get("fits") else f"{model} does not fit"
    kind = "measured" if found.get("measured") else "estimated"
    for name, words in {
        "needed": f"needed, {kind}",
        "weights": "of that weights",
        "kv": "of that KV cache",
        "overhead": "of that buffers and the engine",
        "free": "free now",
        "evictable": "held by idle models that may go",
        "pinned": "held by pinned models",
        "budget": "budget for all models",
    }.items():
        size = found.get(f"{name}_bytes")
        if size or (size == 0 and name == "free"):
            yield f"{format_bytes(int(size)):>10}  {words}"
    if found.get("context_tokens"):
        yield f"{int(found['context_tokens']):>10,}  tokens of context, with {found.get('engine') or 'its engine'}"
    if largest := found.get("largest_context_tokens"):
        yield f"{int(largest):>10,}  tokens of context at most"


@verb("explain")
@click.argument("request", metavar="MODEL|REQUEST.json|-", shell_complete=models_and_aliases)
@click.option("--slot", default="", shell_complete=slot_names, help="As if it came to this slot's port.")
def explain(invocation: Invocation, request: str, slot: str) -> None:
    """Say where a request would go and why, step by step; nothing is sent or loaded.

    A name stands for a request to that model. A file that ends in .json, or - for standard input, holds the body of
    a request as it would be posted.
    """
    body: dict[str, Any] = {"request": _request(request)}
    if slot:
        body["slot"] = slot
    found = invocation.daemon().post("/admin/explain", body)
    invocation.output.result(found, lambda: _explained(found))


def _request(text: str) -> dict[str, Any]:
    if text != "-" and not text.endswith(".json"):
        return {"model": text}
    content = sys.stdin.buffer.read(_MAX_REQUEST_BYTES + 1) if text == "-" else Path(text).read_bytes()
    if len(content) > _MAX_REQUEST_BYTES:
        raise InvalidInput(f"the request is longer than {_MAX_REQUEST_BYTES} bytes", field="request")
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InvalidInput(f"{text} is not JSON: {error}", field="request") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{text} is not a request: it must be a JSON object", field="request")
    return found


def _explained(found: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{number}. {step}" for number, step in enumerate(found.get("why") or (), 1))
    for name, value in found.items():
        if name == "keep_alive_s" and value:
            yield f"{'keep alive':18}{format_duration(value) if value > 0 else 'for ever'}"
        elif name != "why" and value and isinstance(value, str | int | float):
            yield f"{name.replace('_', ' '):18}{value}"
    if params := found.get("params"):
        yield f"{'parameters':18}{json.dumps(params, ensure_ascii=False)}"
