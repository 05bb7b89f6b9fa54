"""The chat template of a model: code from a stranger, rendered in jinja2's immutable sandbox, within bounds.

The one place that makes the environment: the MLX worker renders requests with it, the store checks templates with it,
in a process with a memory limit (``store/templates/render_program.py``). The sandbox keeps a template from Python's
internals; a deadline, checked in every loop and macro, and bounds on texts keep it from running away. What is not
bounded here (exotic string methods) is what that process is for; in a worker it ends the worker, not the daemon.

What templates may use is what transformers gives them (its chat templating guide): trimmed blocks, loop controls,
``tojson``, ``raise_exception``, ``strftime_now`` and the ``generation`` tag, which changes nothing here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from homelab_llm.core.errors import InvalidInput, InvalidTemplate

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_REPEATED = 1 << 16
MAX_TEXT_CHARACTERS = 1 << 24
"""The longest text or list that an expression may make."""

_OUTPUT_FACTOR = 16
_OUTPUT_BASE = 1 << 20
_WIDE = re.compile(r"\d{5}|\*")  # of a printf conversion
_OTHER_TEMPLATES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_HINT = "mlxctl template check FILE"
_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)


class _Refusal(Exception):
    """The template itself said no to the conversation; the message is for the caller."""


class _OutOfBounds(Exception):
    """The template took or wrote too much."""


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's text for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 — jinja2 reads it from the class

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with a deadline (``time.monotonic``) and without giant texts."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControlExtension])
        self.deadline_s = 0.0
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > MAX_REPEATED:
                    raise _OutOfBounds("it repeats a text too often")
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _bound(len(left) + len(right))
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise _OutOfBounds("it formats a text too widely")
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole and left.bit_length() * right > MAX_REPEATED:
            raise _OutOfBounds("it raises a number to a power that is too large")
        return super().call_binop(context, operator, left, right)

    def joined(self, *parts: Any) -> str:
        """What ``~`` does."""
        texts = [str(part) for part in parts]
        _bound(sum(map(len, texts)))
        return "".join(texts)

    def tick(self) -> str:
        """Called in every turn of every loop and in every macro."""
        if time.monotonic() > self.deadline_s:
            raise _OutOfBounds("it took too long")
        return ""


def _bound(size: int) -> None:
    if size > MAX_TEXT_CHARACTERS:
        raise _OutOfBounds("it makes a text that is too long")


def _refuse(message: str) -> None:
    raise _Refusal(str(message)[:500])


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # the local date: templates tell it to the model


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """A compiled template.

    Args:
        limit_s: the longest time one rendering may take.

    Raises:
        InvalidTemplate: it is not valid Jinja, or reaches for what a template may not; facts: ``line`` where known.
    """

    def __init__(self, source: str, *, limit_s: float = 2.0) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidTemplate(f"the chat template has more than {MAX_TEMPLATE_CHARACTERS} characters")
        self._environment = _Environment()
        self._limit_s = limit_s
        try:
            tree = self._environment.parse(source)
            _refuse_reaching(tree)
            self._template = self._environment.from_string(_watched(tree))
        except InvalidTemplate:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise InvalidTemplate(
                f"the chat template is not valid Jinja: line {error.lineno}: {error.message}",
                hint=_HINT,
                line=error.lineno,
            ) from error
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise InvalidTemplate(f"the chat template cannot be used: {error}", hint=_HINT) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt, ready for an answer; ``values`` are the special tokens and what the caller set.

        Raises:
            InvalidInput: the template refuses the conversation, or fails on it.
            InvalidTemplate: it took too long, made too much, or reached for what it may not.
        """
        limit = _OUTPUT_BASE + _OUTPUT_FACTOR * sum(len(str(message.get("content", ""))) for message in messages)
        self._environment.deadline_s = time.monotonic() + self._limit_s
        known = {"tools": None, "documents": None, **values, "messages": messages}
        pieces: list[str] = []
        try:
            for piece in self._template.generate(**known, add_generation_prompt=add_generation_prompt):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise _OutOfBounds("it writes without end")
        except _Refusal as error:
            raise InvalidInput(f"the chat template refuses these messages: {error}", field="messages") from error
        except (_OutOfBounds, SecurityError, MemoryError, RecursionError, OverflowError) as error:
            why = str(error) or "it takes too much memory"
            raise InvalidTemplate(f"the chat template was stopped: {why}", hint=_HINT) from error
        except _FAILURES as error:
            raise InvalidInput(f"the chat template fails on these messages: {error}", field="messages") from error
        return "".join(pieces)


def _refuse_reaching(tree: nodes.Template) -> None:
    """Refuse before anything runs what the sandbox or the missing loader would refuse when it runs."""
    for node in tree.find_all(_OTHER_TEMPLATES):
        raise _reaches(node.lineno, "reads another template")
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("_"):
            raise _reaches(attribute.lineno, f"reaches for {attribute.attr[:40]}")
    for item in tree.find_all(nodes.Getitem):
        key = item.arg.value if isinstance(item.arg, nodes.Const) else ""
        if isinstance(key, str) and key.startswith("__"):
            raise _reaches(item.lineno, f"reaches for {key[:40]}")


def _reaches(line: int, what: str) -> InvalidTemplate:
    return InvalidTemplate(f"the chat template {what} (line {line}), which no chat template may", hint=_HINT, line=line)


def _watched(tree: nodes.Template) -> nodes.Template:
    """With the deadline asked in every loop and macro, and ``~`` within bounds."""
    loops: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
        *tree.find_all(nodes.For),
        *tree.find_all(nodes.Macro),
        *tree.find_all(nodes.CallBlock),
    ]
    for loop in loops:
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        loop.body.insert(0, nodes.ExprStmt(tick, lineno=loop.lineno))
    _join_within_bounds(tree)
    return tree


def _join_within_bounds(node: nodes.Node) -> None:
    for name, value in node.iter_fields():
        children = value if isinstance(value, list) else [value]
        for at, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _join_within_bounds(child)
            if isinstance(child, nodes.Concat):
                joined = nodes.Call(
                    nodes.EnvironmentAttribute("joined"), child.nodes, [], None, None, lineno=child.lineno
                )
                if isinstance(value, list):
                    value[at] = joined
                else:
                    setattr(node, name, joined)
