"""The lexer of Go's ``text/template``: text, and the tokens between ``{{`` and ``}}``. Pure.

What it follows: pkg.go.dev/text/template, "Text and spaces" for trim markers and comments, and Go's literals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from homelab_llm.core.errors import InvalidTemplate

Kind = Literal["text", "open", "close", "field", "variable", "dot", "word", "value", "mark"]

MAX_CHARACTERS = 1 << 18
_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<value>"(?:[^"\\\n]|\\.)*"|`[^`]*`|'(?:[^'\\\n]|\\[^\n]+?)'|[+-]?(?:0[xX][0-9a-fA-F_]+|\d[\d_]*(?:\.\d+)?)(?!\w))
    |(?P<field>\.[^\W\d]\w*)
    |(?P<variable>\$\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<mark>:=|=|\||\(|\)|,)
    |(?P<dot>\.)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"\{\{(?:-[ \t\r\n]+)?/\*.*?\*/(?:[ \t\r\n]+-)?\}\}", re.DOTALL)
_ESCAPES = {"a": "\a", "v": "\v", "'": "'", "\\": "\\", "n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"'}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|[abfnrtv'\"\\])")


@dataclass(frozen=True, slots=True)
class Token:
    """``text`` is the name without its dot or dollar; ``value`` that of a literal. ``spaced``: space stands before."""

    kind: Kind
    text: str
    line: int
    spaced: bool = False
    value: str | int | float = ""


def refused(line: int, what: str) -> InvalidTemplate:
    """The error of a Go template that cannot be translated; names the line."""
    return InvalidTemplate(
        f"the Go template cannot be translated: line {line}: {what}",
        hint="write the template in Jinja: mlxctl template list shows examples",
        line=line,
    )


def tokens(source: str) -> list[Token]:
    """All tokens; text is already trimmed as the markers beside it say, empty text is left out.

    Raises:
        InvalidTemplate: an action that does not end, a literal or character that Go does not know either.
    """
    if len(source) > MAX_CHARACTERS:
        raise InvalidTemplate(f"the template has {len(source)} characters; the limit is {MAX_CHARACTERS}")
    return list(_scan(source.replace("\r\n", "\n")))


def _scan(source: str) -> Iterator[Token]:
    position, trim = 0, False
    while (begin := source.find("{{", position)) >= 0:
        line = source.count("\n", 0, begin) + 1
        marked = source[begin + 2 : begin + 3] == "-" and source[begin + 3 : begin + 4] in tuple(_SPACE)
        text = _trimmed(source[position:begin], left=trim, right=marked)
        if text:
            yield Token("text", text, source.count("\n", 0, position) + 1)
        if comment := _COMMENT.match(source, begin):
            position, trim = comment.end(), comment[0].endswith("-}}")
            continue
        inside, position, trim = _action(source, begin + (3 if marked else 2), line)
        yield from (Token("open", "{{", line), *inside, Token("close", "}}", line))
    if text := _trimmed(source[position:], left=trim, right=False):
        yield Token("text", text, source.count("\n", 0, position) + 1)


def _trimmed(text: str, *, left: bool, right: bool) -> str:
    text = text.lstrip(_SPACE) if left else text
    return text.rstrip(_SPACE) if right else text


def _action(source: str, position: int, line: int) -> tuple[list[Token], int, bool]:
    """The tokens of one action, where the text after it begins, and whether that is trimmed."""
    found: list[Token] = []
    spaced = False
    while True:
        if source.startswith("}}", position):
            return found, position + 2, False
        if spaced and source.startswith("-}}", position):
            return found, position + 3, True
        match = _TOKEN.match(source, position)
        if match is None:
            what = "an action does not end" if position >= len(source) else f"unexpected {source[position]!r}"
            raise refused(line, what)
        position, kind = match.end(), match.lastgroup
        if kind == "space":
            spaced = True
            line += match[0].count("\n")
            continue
        found.append(_token(kind or "", match[0], line, spaced))
        spaced = False


def _token(kind: str, text: str, line: int, spaced: bool) -> Token:
    if kind == "value":
        return Token("value", text, line, spaced, _literal(text, line))
    if kind in ("field", "variable"):
        return Token("field" if kind == "field" else "variable", text[1:], line, spaced)
    if kind == "word":
        return Token("word", text, line, spaced)
    return Token("dot" if kind == "dot" else "mark", text, line, spaced)


def _literal(text: str, line: int) -> str | int | float:
    if text[0] == "`":
        return text[1:-1]
    if text[0] in "\"'":
        inside = text[1:-1]
        plain = _ESCAPE.sub("", inside)
        if "\\" in plain:
            raise refused(line, f"{text[:40]} holds an escape that Go does not know")
        told = _ESCAPE.sub(_unescaped, inside)
        if text[0] == '"':
            return told
        if len(told) != 1:
            raise refused(line, f"{text[:40]} is not one character")
        return ord(told)
    try:
        return float(text) if "." in text else int(text.replace("_", ""), 0 if "x" in text.lower() else 10)
    except ValueError as error:
        raise refused(line, f"{text[:40]} is not a number") from error


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPES:
        return _ESCAPES[code]
    number = int(code, 8) if code[0].isdigit() else int(code[1:], 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"


def quoted(text: str) -> str:
    """``text`` as a string literal that Jinja and the Jinja of llama.cpp read alike."""
    inside = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{inside}'"
