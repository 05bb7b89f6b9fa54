"""Strict JSON within bounds, and the line on which a field stands. Pure.

Refused beside what is no JSON: a key twice, NaN and Infinity, and text that a database or UTF-8 cannot hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from homelab_llm.core.errors import RegistryInvalid

MAX_BYTES = 8_000_000
MAX_DEPTH = 32
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|\n', re.DOTALL)
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")

Path = tuple[str | int, ...]


class _Twice(ValueError):
    """A key stands twice in one object."""


def decode(content: bytes) -> tuple[str, Any]:
    """The text and the value of a document.

    Raises:
        RegistryInvalid: facts ``line`` and ``field`` where they are known.
    """
    if len(content) > MAX_BYTES:
        raise RegistryInvalid(
            f"the document has {len(content):,} bytes, more than {MAX_BYTES:,}", limit_bytes=MAX_BYTES
        )
    text = _text(content)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_number)
    except json.JSONDecodeError as error:
        raise _not_json(text, error) from error
    except _Twice as error:
        raise _duplicate(text) from error
    except RecursionError as error:
        raise RegistryInvalid(f"the document is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise RegistryInvalid(f"the document has a number that cannot be kept: {str(error)[:80]}") from error
    check(value, text)
    return text, value


def check(value: Any, text: str = "", path: Path = ()) -> None:
    """Refuse what is nested too deep and text that cannot be kept.

    Raises:
        RegistryInvalid: names the field.
    """
    if len(path) > MAX_DEPTH:
        raise invalid(text, path[:2], f"is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if _UNSTORABLE.search(key):
                raise invalid(text, (*path, key), "has a character in its name that cannot be kept")
            check(inner, text, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            check(inner, text, (*path, index))
    elif isinstance(value, str) and _UNSTORABLE.search(value):
        raise invalid(text, path, "has a character that cannot be kept")


def invalid(text: str, path: Path, words: str, *, hint: str = "") -> RegistryInvalid:
    """The error about the field at ``path``, with its line when the text has it."""
    line = line_of(text, path)
    where = f"line {line}: " if line else ""
    return RegistryInvalid(f"{where}{dotted(path)} {words}", hint=hint, field=dotted(path), line=line)


def dotted(path: Path) -> str:
    """``models.smollm2.port``; control characters are escaped and long keys cut."""
    parts = [str(part) if len(str(part)) <= 80 else f"{str(part)[:77]}..." for part in path]
    return ".".join(parts).encode("unicode_escape").decode("ascii") or "the document"


def line_of(text: str, path: Path) -> int | None:
    """The line of the key at ``path``, or of the nearest one around it; None when there is none."""
    lines: dict[Path, int] = {}
    for found, line in _keys(text):
        if found == path[: len(found)]:
            lines[found] = line
            if found == path:
                break
    return max(lines.items(), key=lambda item: len(item[0]))[1] if lines else None


def _text(content: bytes) -> str:
    if content.count(0) == len(content):
        kind = "filled with zeros; what it held is lost" if content else "empty"
        raise RegistryInvalid(f"the document is {kind}", hint="mlxctl registry export writes a new one", line=1)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RegistryInvalid(f"line {line}: not UTF-8 text", line=line) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(digits)
    return value


def _not_json(text: str, error: json.JSONDecodeError) -> RegistryInvalid:
    ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
    words = "the document ends in the middle" if ended else f"not JSON: {error.msg}"
    return RegistryInvalid(
        f"line {error.lineno}: {words}",
        hint="mlxctl registry export writes a new one" if ended else "",
        line=error.lineno,
        column=error.colno,
    )


def _duplicate(text: str) -> RegistryInvalid:
    seen: set[Path] = set()
    for path, line in _keys(text):
        if path in seen:
            words = f"line {line}: {dotted(path)} is there twice"
            return RegistryInvalid(words, hint="keep one of them", field=dotted(path), line=line)
        seen.add(path)
    return RegistryInvalid("a key is there twice")


def _keys(text: str) -> Iterator[tuple[Path, int]]:
    """Path and line of each key, in the order of a text that is JSON up to where the caller stops."""
    frames: list[str | int] = []
    line = key_line = 1
    last = ""
    for match in _TOKEN.finditer(text):
        piece = match[0]
        if piece == "\n":
            line += 1
        elif piece in "{[":
            frames.append("" if piece == "{" else 0)
            if len(frames) > MAX_DEPTH:
                return
        elif piece in "}]":
            frames.pop()
        elif piece == ",":
            if isinstance(frames[-1], int):
                frames[-1] += 1
        elif piece == ":":
            frames[-1] = json.loads(last)
            yield tuple(frames), key_line
        else:
            last, key_line = piece, line
