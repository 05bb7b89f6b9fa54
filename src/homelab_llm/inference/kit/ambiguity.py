"""Ambiguity: how many readings of one text a schema allows at once, bounded before an engine has to follow them all.

Readings multiply along nesting: with ``anyOf`` of two arrays of which each holds the same again, ``[[[[`` can be read
in sixteen ways. Alternatives that differ in type, or as objects in the constant value of their first property, cost
nothing: a union with a discriminator may be as deep as it likes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from homelab_llm.inference.kit.grammar import too_complex

MAX_READINGS = 64
_MAX_STEPS = 200
_BY_KEYWORD = {
    "properties": "object",
    "items": "array",
    "prefixItems": "array",
    "pattern": "string",
    "minimum": "number",
}

_Beginning = tuple[str, str, str]  # kind of value, and for an object the first name and its constant value


class Readings:
    """Counts along the way down one schema, and over the references between its parts."""

    def __init__(self, where: str, resolve: Callable[[Any], Any]) -> None:
        self._where = where
        self._resolve = resolve
        self._part = ""
        self._here = 1
        self._steps = 0
        self._edges: dict[tuple[str, str], int] = {}
        self._largest: dict[str, int] = {}

    @contextmanager
    def alternatives(self, options: Sequence[Any]) -> Iterator[None]:
        """Inside the block stands what is below these alternatives."""
        before = self._here
        self._here = min(before * max(1, self._alike(options)), MAX_READINGS * 2)
        self._largest[self._part] = max(self._largest.get(self._part, 1), self._here)
        try:
            yield
        finally:
            self._here = before

    def refer(self, target: str) -> None:
        """A reference to the part called ``target`` stands here."""
        edge = (self._part, target)
        self._edges[edge] = max(self._edges.get(edge, 1), self._here)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside the block stands the part of that name."""
        before, self._part, self._here = (self._part, self._here), name, 1
        try:
            yield
        finally:
            self._part, self._here = before

    def check(self) -> None:
        """Once everything was seen.

        Raises:
            InvalidInput: too many readings, or without end through references.
        """
        reached = {"": 1}
        grown = True
        while grown:
            grown = False
            for (source, target), readings in self._edges.items():
                product = reached.get(source, 0) * readings
                if product > reached.get(target, 0):
                    reached[target] = product
                    grown = True
                    self._bound(product)
        for name, readings in reached.items():
            self._bound(readings * self._largest.get(name, 1))

    def _bound(self, readings: int) -> None:
        if readings > MAX_READINGS:
            raise too_complex(
                f"'{self._where}' has alternatives inside alternatives that begin alike",
                self._where,
                MAX_READINGS,
                hint="give the objects of an anyOf a first, required property with a constant value of its own",
            )

    def _alike(self, options: Sequence[Any]) -> int:
        """The size of the largest group of options that may begin with the same text."""
        self._steps = _MAX_STEPS
        counts: Counter[_Beginning] = Counter()
        for option in options:
            counts.update(self._beginnings(option))
        by_name: Counter[str] = Counter()
        for (kind, name, constant), count in counts.items():
            if kind == "object" and name and constant:
                by_name[name] = max(by_name[name], count)
        for (kind, name, constant), count in counts.items():
            if kind == "object" and name and not constant:
                by_name[name] += count
        objects = counts["object", "", ""] + max(by_name.values(), default=0)
        return counts["anything", "", ""] + max(counts["array", "", ""], objects)

    def _beginnings(self, schema: Any) -> set[_Beginning]:
        """What its values may begin with, of kinds in which something can be nested."""
        self._steps -= 1
        if not isinstance(schema, dict) or self._steps <= 0:
            return {("anything", "", "")}
        if "$ref" in schema:
            return self._beginnings(self._resolve(schema["$ref"]))
        if "const" in schema or "enum" in schema:
            return set()
        for word in ("anyOf", "oneOf", "allOf"):
            if isinstance(inner := schema.get(word), list):
                return set().union(*(self._beginnings(option) for option in inner))
        kinds = schema.get("type", next((kind for word, kind in _BY_KEYWORD.items() if word in schema), "anything"))
        found: set[_Beginning] = set()
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind == "object":
                found.add(("object", *_first(schema)))
            elif kind in ("array", "anything"):
                found.add((kind, "", ""))
        return found


def _first(schema: Mapping[str, Any]) -> tuple[str, str]:
    """The name an object of this schema must begin with, and its value where that is constant; else empty strings."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not properties or not isinstance(required, list):
        return "", ""
    name, value = next(iter(properties.items()))
    if name not in required:
        return "", ""
    constants = [value["const"]] if isinstance(value, dict) and "const" in value else []
    if isinstance(value, dict) and isinstance(value.get("enum"), list) and len(value["enum"]) == 1:
        constants = value["enum"]
    return name or "\0", json.dumps(constants) if constants else ""
