"""Shaping: a checked chat request as the worker must get it, so that tool calls and JSON are enforced (B-15). Pure.

    asked for                            worker gets
    tools, forced (required, or one)     a grammar for the call; its text comes back as ``tool_calls``
    tools, auto; the template knows      the tools, made harmless; the engine's own parser finds the calls
    tools, auto; it does not             the tools in the system message, and a grammar in which ``<tool_call>``
                                         begins a valid call; those come back as ``tool_calls``
    response_format                      a grammar

A template that knows tools shows them also when the call is forced by our grammar: llama.cpp does so for
``tool_choice: none`` (measured; it does not enforce ``required`` itself). For workers that take no grammar calls are
found but not enforced, and forced ones are refused. Stop sequences do not cut a forced call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.shaping import Shaped
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.kit.grammar import Grammar
from homelab_llm.inference.kit.history import plain, speaks_of_tools, with_instructions
from homelab_llm.inference.kit.schemas import add_schema
from homelab_llm.inference.kit.tool_calls import ToolCallStream
from homelab_llm.inference.kit.tools import (
    OPEN,
    Tool,
    auto_grammar,
    describe,
    forced_grammar,
    shown,
    text_grammar,
    tools_of,
)

_TAKEN = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})
_ANY_OBJECT = {"type": "object"}
_REMEMBERED = 16  # grammars, of at most a megabyte each


class OpenAIShaper:
    """``gateway.seams.Shaper`` for OpenAI's chat requests."""

    def shape(self, body: dict[str, Any], facts: ModelFacts, traits: WorkerTraits) -> Shaped:
        """A new body; the given one stays as it is.

        Raises:
            UnsupportedRequest: this worker cannot enforce what was asked for.
            InvalidInput: a tool or schema that cannot be used; ``field`` names it.
        """
        tools = tools_of(body)
        choice: Any = body.get("tool_choice", "auto") if tools else "none"
        told = {key: value for key, value in body.items() if key not in _TAKEN}
        native = traits.tools and facts.template_knows_tools
        if not native and speaks_of_tools(body["messages"]):
            told["messages"] = plain(body["messages"])
        if choice == "none":
            return _without_tools(told, body, facts, traits)
        if choice != "auto":
            chosen = tools if choice == "required" else [t for t in tools if t.name == choice["function"]["name"]]
            return _forced(told, chosen, facts, traits, native=native)
        many = body.get("parallel_tool_calls", True)
        return _auto(told, tools, _wanted_schema(body), facts, traits, native=native, many=many)


def _forced(
    told: dict[str, Any], tools: Sequence[Tool], facts: ModelFacts, traits: WorkerTraits, *, native: bool
) -> Shaped:
    _require(traits, "tool_choice", "tool call")
    if native:
        told |= {"tools": [shown(tool) for tool in tools], "tool_choice": "none"}
    else:
        told["messages"] = with_instructions(told["messages"], describe(tools, forced=True), facts.chat_template)
    told.pop("stop", None)
    _enforce(told, _forced_text(_key(tools)), facts)
    return Shaped(told, partial(ToolCallStream, [tool.name for tool in tools], forced=True))


def _auto(
    told: dict[str, Any],
    tools: Sequence[Tool],
    instead: tuple[Any, str] | None,
    facts: ModelFacts,
    traits: WorkerTraits,
    *,
    native: bool,
    many: bool,
) -> Shaped:
    if instead:
        _require(traits, "response_format", "format")
    if native and not instead:
        told |= {"tools": [shown(tool) for tool in tools], "tool_choice": "auto", "parallel_tool_calls": many}
        return Shaped(told)
    text = _auto_text(_key(tools), many, json.dumps(instead))
    if native:
        told |= {"tools": [shown(tool) for tool in tools], "tool_choice": "none"}
    else:
        told["messages"] = with_instructions(told["messages"], describe(tools, forced=False), facts.chat_template)
    if traits.grammar:
        told["grammar"] = text
    return Shaped(told, partial(ToolCallStream, [tool.name for tool in tools], forced=False))


def _without_tools(told: dict[str, Any], body: dict[str, Any], facts: ModelFacts, traits: WorkerTraits) -> Shaped:
    if wanted := _wanted_schema(body):
        _require(traits, "response_format", "format")
        grammar = Grammar()
        root = add_schema(grammar, wanted[0], wanted[1], strict=True)
        grammar.add("root", root)
        _enforce(told, grammar.text(wanted[1]), facts)
    elif traits.grammar and speaks_of_tools(body["messages"]) and _writes_tags(facts):
        told["grammar"] = text_grammar().text()  # it has seen calls, and might write another one as text
    return Shaped(told)


def _writes_tags(facts: ModelFacts) -> bool:
    return not facts.template_knows_tools or OPEN in facts.chat_template


def _wanted_schema(body: dict[str, Any]) -> tuple[Any, str] | None:
    """The JSON Schema that the answer must fit, and the field it came from."""
    wanted = body.get("response_format") or {"type": "text"}
    if wanted["type"] == "text":
        return None
    if wanted["type"] == "json_object":
        return _ANY_OBJECT, "response_format"
    return wanted["json_schema"]["schema"], "response_format.json_schema.schema"


def _require(traits: WorkerTraits, field: str, what: str) -> None:
    if not traits.grammar:
        raise UnsupportedRequest(
            f"this model's engine cannot enforce a {what}",
            hint="run the model with llama.cpp (a GGUF file)",
            field=field,
        )


def _key(tools: Sequence[Tool]) -> str:
    return json.dumps([asdict(tool) for tool in tools])


# Agents send the same tools with every request; a grammar for twenty of them takes 20 ms.
@lru_cache(maxsize=_REMEMBERED)
def _forced_text(tools: str) -> str:
    return forced_grammar([Tool(**tool) for tool in json.loads(tools)]).text("tools")


@lru_cache(maxsize=_REMEMBERED)
def _auto_text(tools: str, many: bool, instead: str) -> str:
    return auto_grammar([Tool(**tool) for tool in json.loads(tools)], many=many, instead=json.loads(instead)).text(
        "tools"
    )


def _enforce(told: dict[str, Any], grammar: str, facts: ModelFacts) -> None:
    """From the first character on: a model that thinks first must not, and its answer is not searched for thoughts."""
    told["grammar"] = grammar
    if "thinking" in facts.capabilities:
        told["chat_template_kwargs"] = {"enable_thinking": False, **told.get("chat_template_kwargs", {})}
        told["reasoning_format"] = "none"
