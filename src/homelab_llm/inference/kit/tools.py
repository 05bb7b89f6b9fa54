"""Tools of a request: what the model may call, told in words and as grammars.

The wording and the tags are those of Hermes and Qwen, which more models have seen in training than any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.inference.kit import json_rules as rules
from homelab_llm.inference.kit.bounds import harmless
from homelab_llm.inference.kit.grammar import (
    MAX_NODES,
    NOTHING,
    Alt,
    Chars,
    Expr,
    Grammar,
    Ref,
    Rep,
    alt,
    seq,
)
from homelab_llm.inference.kit.schemas import add_schema

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 16  # in one answer
_REMEMBERED = 256  # compiled tools


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. ``parameters`` is JSON Schema; ``strict``: all of it must be enforced."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool
    field: str

    def as_dict(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def tools_of(body: Mapping[str, Any]) -> list[Tool]:
    """The tools of a chat request that the gateway has checked.

    Raises:
        InvalidInput: parameters that are not a schema of an object.
    """
    found: list[Tool] = []
    for number, tool in enumerate(body.get("tools") or ()):
        function, field = tool["function"], f"tools[{number}].function.parameters"
        given = function.get("parameters")
        if not isinstance(given, dict | None):
            raise InvalidInput(f"'{field}' must be an object", field=field)
        parameters = {"type": "object", "properties": {}, **(given or {})}
        if parameters["type"] != "object":
            raise InvalidInput(f"'{field}.type' must be object", field=f"{field}.type")
        description = str(function.get("description") or "")
        found.append(Tool(function["name"], description, parameters, function.get("strict") is True, field))
    return found


def describe(tools: Sequence[Tool], *, forced: bool) -> str:
    """What a model is told whose template knows no tools."""
    listed = "\n".join(json.dumps(tool.as_dict(), ensure_ascii=False) for tool in tools)
    shape = '{"name": <function name>, "arguments": <arguments as a JSON object>}'
    text = f"You can call functions. These are the functions, as JSON:\n<tools>\n{listed}\n</tools>\n"
    if forced:
        return text + f"Answer the user by calling one of them, with nothing but JSON of this form:\n{shape}"
    return text + (
        f"To call one, answer with nothing but this:\n{OPEN}{shape}{CLOSE}\n"
        "When no function helps, answer the user in plain words."
    )


def forced_grammar(tools: Sequence[Tool]) -> Grammar:
    """Nothing but one call of one of the tools, as bare JSON."""
    grammar = Grammar()
    grammar.add("root", _call(grammar, tools))
    return grammar


def auto_grammar(tools: Sequence[Tool], *, many: bool, instead: tuple[Any, str] | None = None) -> Grammar:
    """Free text in which every ``<tool_call>`` begins a whole, valid call; after a call there are only more calls.

    Args:
        many: more than one call is allowed.
        instead: a JSON Schema, and the field it came from, that replaces the free text.
    """
    grammar = Grammar()
    ws = rules.space(grammar)
    call = grammar.add("tool-call", seq(OPEN, ws, _call(grammar, tools), ws, CLOSE))
    more = Rep(seq(ws, call), 0, MAX_CALLS - 1) if many else NOTHING
    calls = grammar.add("tool-calls", seq(call, more, ws))
    if instead is None:
        grammar.add("root", Alt((_text(grammar, calls),)))
    else:
        grammar.add("root", alt(calls, add_schema(grammar, instead[0], instead[1], strict=True, prefix="f")))
    return grammar


def text_grammar() -> Grammar:
    """Free text in which no call begins."""
    grammar = Grammar()
    grammar.add("root", Alt((_text(grammar, None),)))
    return grammar


def _call(grammar: Grammar, tools: Sequence[Tool]) -> Expr:
    options: list[Expr] = []
    for number, tool in enumerate(tools):
        arguments = _arguments(grammar, tool, f"t{number}", MAX_NODES // len(tools))
        name = json.dumps(tool.name)
        options.append(grammar.add(f"call-{number}", seq(f'{{"name": {name}, "arguments": ', arguments, "}")))
    return Alt(tuple(options))


def _arguments(grammar: Grammar, tool: Tool, prefix: str, limit: int) -> Expr:
    """The arguments of one tool; any object where that would be too much and nobody insists (``strict``).

    Many schemas of tools are written by programs; a client cannot be told to simplify them.
    """
    text = json.dumps(tool.parameters, ensure_ascii=False)
    own = _compiled(text, tool.field, tool.strict, prefix)
    if own is None or (own.size > limit and not tool.strict):
        return rules.free_object(grammar)
    grammar.rules.update(own.rules)
    return grammar.rules.pop("root")


@lru_cache(maxsize=_REMEMBERED)
def _compiled(parameters: str, field: str, strict: bool, prefix: str) -> Grammar | None:
    """One tool's arguments as a grammar of their own, None when too complex; agents send the same tools every time."""
    own = Grammar()
    try:
        own.rules["root"] = add_schema(own, json.loads(parameters), field, strict=strict, prefix=prefix)
        own.check(field)
    except InvalidInput as error:
        if strict or not error.facts.get("too_complex"):
            raise
        return None
    return own


def shown(tool: Tool) -> dict[str, Any]:
    """The tool for an engine that has its own converter from JSON Schema, without what that may choke on.

    Raises:
        InvalidInput: as ``forced_grammar``.
    """
    simple = _arguments(Grammar(), tool, "t", MAX_NODES) == Ref("object")
    function = {**tool.as_dict()["function"], "parameters": harmless(tool.parameters, flat=simple)}
    return {"type": "function", "function": function}


def _text(grammar: Grammar, calls: Ref | None) -> Ref:
    """Any text that holds neither ``<tool_call`` nor ``</tool_call``; at any place calls may begin instead.

    One rule for every beginning of these words that has just been written. ``<`` stands only at their start, so a
    character that continues none of them leads back to the first rule, and ``<`` always to the second.
    """
    words = (OPEN[:-1], CLOSE[:-1])
    begun = sorted({word[:length] for word in words for length in range(len(word))}, key=lambda text: (len(text), text))
    names = {beginning: f"text-{number}" for number, beginning in enumerate(begun)}
    for beginning in begun:
        following = sorted({word[len(beginning)] for word in words if word.startswith(beginning)} | {"<"})
        options: list[Expr] = [NOTHING, seq(Chars(tuple((c, c) for c in following), negated=True), Ref(names[""]))]
        for character in following:
            target = names.get(beginning + character) or (names["<"] if character == "<" else None)
            if target:  # else the word would be whole
                options.append(seq(character, Ref(target)))
        if calls is not None and not beginning:
            options.append(calls)
        grammar.add(names[beginning], Alt(tuple(options)))
    return Ref(names[""])
