"""The chat template of a model: code from a stranger, rendered in jinja2's immutable sandbox, within bounds.

The sandbox keeps it from Python's internals; a deadline, checked in every loop and macro, and a bound on the text
keep it from running away. Memory is bounded only where it is cheap to do (repetition of strings, output): a
template that eats memory otherwise ends this worker, not the daemon.

What templates may use is what transformers gives them (its chat templating guide): trimmed blocks, loop controls,
``tojson``, ``raise_exception``, ``strftime_now`` and the ``generation`` tag, which changes nothing here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from homelab_llm.core.errors import BadModelFile, InvalidInput

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_REPEATED = 1 << 16
_OUTPUT_FACTOR = 16
_OUTPUT_BASE = 1 << 20


class TemplateRefusal(Exception):
    """The template itself said no, or ran out of its bounds; the message is for the caller."""


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's text for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 — jinja2 reads it from the class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a deadline (``time.monotonic``) and without giant repetitions."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControlExtension])
        self.deadline_s = 0.0
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > MAX_REPEATED:
                raise TemplateRefusal("it repeats a text too often")
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole and left.bit_length() * right > MAX_REPEATED:
            raise TemplateRefusal("it raises a number to a power that is too large")
        return super().call_binop(context, operator, left, right)

    def tick(self) -> str:
        """Called in every turn of every loop and in every macro."""
        if time.monotonic() > self.deadline_s:
            raise TemplateRefusal("it took too long")
        return ""


def _refuse(message: str) -> None:
    raise TemplateRefusal(str(message)[:500])


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # the local date: templates tell it to the model


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


class ChatTemplate:
    """A compiled template.

    Raises:
        BadModelFile: it is not valid jinja.
    """

    def __init__(self, source: str, *, limit_s: float = 2.0) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise BadModelFile("the chat template is too long")
        self._environment = _Environment()
        self._limit_s = limit_s
        try:
            tree = self._environment.parse(source)
            loops: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
                *tree.find_all(nodes.For),
                *tree.find_all(nodes.Macro),
                *tree.find_all(nodes.CallBlock),
            ]
            for loop in loops:
                tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
                loop.body.insert(0, nodes.ExprStmt(tick, lineno=loop.lineno))
            self._template = self._environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError, MemoryError) as error:
            raise BadModelFile(f"the chat template cannot be used: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> str:
        """The prompt, ready for an answer; ``values`` are the special tokens and what the caller set.

        Raises:
            InvalidInput: the template refuses the conversation, or fails on it.
        """
        limit = _OUTPUT_BASE + _OUTPUT_FACTOR * sum(len(str(message.get("content", ""))) for message in messages)
        self._environment.deadline_s = time.monotonic() + self._limit_s
        pieces: list[str] = []
        try:
            known = {"tools": None, "documents": None, **values, "messages": messages, "add_generation_prompt": True}
            for piece in self._template.generate(**known):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise TemplateRefusal("it writes without end")
        except TemplateRefusal as error:
            raise InvalidInput(f"the chat template refuses these messages: {error}", field="messages") from error
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise InvalidInput(f"the chat template fails on these messages: {error}", field="messages") from error
        return "".join(pieces)


def read_template(folder: Path) -> str:
    """The source of a model folder's chat template; empty when it has none.

    Raises:
        BadModelFile: a file that should hold it is not JSON.
    """
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_object(folder / name).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return ""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file.

    Raises:
        BadModelFile: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise BadModelFile(f"{path.name} is not a JSON object")
    return value
