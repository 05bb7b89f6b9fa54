"""Bounds of a schema: what is refused before anything is built from it, because a schema is a stranger's input."""

from __future__ import annotations

from typing import Any

from homelab_llm.core.errors import InvalidInput

MAX_SCHEMA_NODES = 4_000
MAX_SCHEMA_DEPTH = 48
MAX_ENUM = 1_000
MAX_TEXT = 64_000  # characters of all names and values together


def check_bounds(schema: Any, where: str) -> None:
    """Refuse a schema that is too large to look at, walking it once.

    Raises:
        InvalidInput: too many nodes, too deep, an enum too long, too much text.
    """
    stack: list[tuple[Any, int]] = [(schema, 1)]
    nodes = text = 0
    while stack:
        found, depth = stack.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES:
            raise InvalidInput(f"'{where}' has more than {MAX_SCHEMA_NODES} parts", field=where, limit=MAX_SCHEMA_NODES)
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidInput(f"'{where}' is nested too deeply", field=where, limit=MAX_SCHEMA_DEPTH)
        if isinstance(found, dict):
            if isinstance(enum := found.get("enum"), list) and len(enum) > MAX_ENUM:
                raise InvalidInput(f"'{where}' has an enum of {len(enum)} values", field=where, limit=MAX_ENUM)
            stack.extend((item, depth + 1) for key, item in found.items() if key not in ("default", "examples"))
            text += sum(map(len, found))
        elif isinstance(found, list):
            stack.extend((item, depth + 1) for item in found)
        elif isinstance(found, str):
            text += len(found)
        if text > MAX_TEXT:
            raise InvalidInput(f"'{where}' is too long", field=where, limit=MAX_TEXT)


_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_MAX_FOREIGN_COUNT = 256
_BRANCHES = ("anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "if", "then", "else", "not")
_VALUES = ("enum", "const", "default", "examples")


def harmless(schema: Any, *, flat: bool = False) -> Any:
    """The schema without what an engine's own converter may choke on: patterns and large counts.

    Seen in llama.cpp: ``((a{1000}){1000}){1000}`` ends the process. Only for schemas that ``check_bounds`` passed.
    ``flat`` leaves out alternatives and references too.
    """
    if isinstance(schema, list):
        return [harmless(item, flat=flat) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if _harms(key, value) or (flat and key in _BRANCHES):
            continue
        if key == "properties" and isinstance(value, dict):  # names of a stranger, no keywords
            kept[key] = {name: harmless(item, flat=flat) for name, item in value.items()}
        else:
            kept[key] = value if key in _VALUES else harmless(value, flat=flat)
    return kept


def _harms(key: str, value: Any) -> bool:
    return key == "pattern" or (key in _COUNTS and isinstance(value, int | float) and value > _MAX_FOREIGN_COUNT)
