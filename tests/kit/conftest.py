"""Things for the kit's tests: a reader and a writer of grammars, and a judge of JSON Schema written for them alone."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from homelab_llm.inference.kit.grammar import Alt, Chars, Expr, Grammar, Ref, Rep, Seq, Text

Accepts = Callable[[Grammar, str], bool]
Write = Callable[[Grammar, int], str]
Judge = Callable[[Any, Any], bool]
_IMPOSSIBLE = 10**9


def _in_class(expr: Chars, character: str) -> bool:
    return any(low <= character <= high for low, high in expr.ranges) is not expr.negated


class Reader:
    """Whether a grammar allows a text: all ends of every part, remembered."""

    def __init__(self, grammar: Grammar, text: str) -> None:
        self.rules = grammar.rules
        self.text = text
        self.known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, expr: Expr, start: int) -> frozenset[int]:
        key = (id(expr), start)
        if key not in self.known:
            self.known[key] = frozenset()
            self.known[key] = frozenset(self._ends(expr, start))
        return self.known[key]

    def _ends(self, expr: Expr, start: int) -> set[int]:
        match expr:
            case Text(value):
                return {start + len(value)} if self.text.startswith(value, start) else set()
            case Chars():
                fits = start < len(self.text) and _in_class(expr, self.text[start])
                return {start + 1} if fits else set()
            case Ref(name):
                return set(self.ends(self.rules[name], start))
            case Seq(items):
                reached = {start}
                for item in items:
                    reached = {end for one in reached for end in self.ends(item, one)}
                return reached
            case Alt(options):
                return {end for option in options for end in self.ends(option, start)}
            case Rep(item, least, most):
                return self._repeated(item, least, most, start)

    def _repeated(self, item: Expr, least: int, most: int | None, start: int) -> set[int]:
        found = {start} if least == 0 else set()
        reached, count = {start}, 0
        while reached and (most is None or count < most):
            reached = {end for one in reached for end in self.ends(item, one)}
            count += 1
            if count >= least:
                if reached <= found:
                    break
                found |= reached
        return found


class Writer:
    """Random texts of a grammar; when deep, the way that ends soonest."""

    def __init__(self, grammar: Grammar, chance: random.Random) -> None:
        self.rules = grammar.rules
        self.chance = chance
        self.heights: dict[str, int] = dict.fromkeys(self.rules, _IMPOSSIBLE)
        changed = True
        while changed:
            changed = False
            for name, rule in self.rules.items():
                if (height := self._height(rule) + 1) < self.heights[name]:
                    self.heights[name] = height
                    changed = True

    def _height(self, expr: Expr) -> int:
        match expr:
            case Ref(name):
                return self.heights[name]
            case Seq(items):
                return max((self._height(item) for item in items), default=0)
            case Alt(options):
                return min((self._height(option) for option in options), default=_IMPOSSIBLE)
            case Rep(item, least):
                return self._height(item) if least else 0
            case _:
                return 0

    def write(self, expr: Expr, depth: int = 0) -> str:
        match expr:
            case Text(value):
                return value
            case Chars():
                return self._character(expr)
            case Ref(name):
                return self.write(self.rules[name], depth + 1)
            case Seq(items):
                return "".join(self.write(item, depth) for item in items)
            case Alt(options):
                possible = [option for option in options if self._height(option) < _IMPOSSIBLE]
                if depth > 25:
                    return self.write(min(possible, key=self._height), depth)
                return self.write(self.chance.choice(possible), depth)
            case Rep(item, least, most):
                spare = 0 if depth > 25 or self._height(item) >= _IMPOSSIBLE else self.chance.choice((0, 0, 1, 2, 3))
                count = min(least + spare, least + spare if most is None else most)
                return "".join(self.write(item, depth) for _ in range(count))

    def _character(self, expr: Chars) -> str:
        if not expr.negated:
            low, high = self.chance.choice(expr.ranges)
            return chr(self.chance.randint(ord(low), ord(high)))
        return self.chance.choice([c for c in "abz09 _-:,{}[]<>/éß漢🙂\u00a0" if _in_class(expr, c)])


def _is_type(kind: str, value: Any) -> bool:
    match kind:
        case "integer":
            return not isinstance(value, bool) and (
                isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            )
        case "number":
            return not isinstance(value, bool) and isinstance(value, int | float)
        case "null":
            return value is None
        case _:
            kinds: Mapping[str, type] = {"object": dict, "array": list, "string": str, "boolean": bool}
            return isinstance(value, kinds[kind])


def _judge_object(schema: Any, value: dict[str, Any]) -> bool:
    properties = schema.get("properties", {})
    other = schema.get("additionalProperties", True)
    return set(schema.get("required", ())) <= value.keys() and all(
        judge_value(properties.get(name, other), item) for name, item in value.items()
    )


def _judge_array(schema: Any, value: list[Any]) -> bool:
    first = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    return (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
        and all(judge_value(one, item) for one, item in zip(first, value, strict=False))
        and all(judge_value(rest, item) for item in value[len(first) :])
    )


def judge_value(schema: Any, value: Any) -> bool:
    """Whether a value is valid; JSON Schema 2020-12, the keywords the kit knows, no references."""
    if isinstance(schema, bool):
        return schema
    kinds = schema.get("type", [])
    if kinds and not any(_is_type(kind, value) for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if any(word in schema and not any(judge_value(one, value) for one in schema[word]) for word in ("anyOf", "oneOf")):
        return False
    if isinstance(value, str):
        fits = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        return fits and ("pattern" not in schema or bool(re.search(schema["pattern"], value, re.ASCII)))
    if _is_type("number", value):
        fits = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        return fits and bool(
            schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
        )
    if isinstance(value, dict):
        return _judge_object(schema, value)
    return _judge_array(schema, value) if isinstance(value, list) else True


@pytest.fixture(scope="session")
def accepts() -> Accepts:
    """Whether the grammar's root allows the whole text."""

    def read(grammar: Grammar, text: str) -> bool:
        return len(text) in Reader(grammar, text).ends(grammar.rules["root"], 0)

    return read


@pytest.fixture(scope="session")
def write() -> Write:
    """A random text that the grammar's root allows, the same for the same seed."""

    def random_text(grammar: Grammar, seed: int) -> str:
        return Writer(grammar, random.Random(seed)).write(grammar.rules["root"])  # noqa: S311

    return random_text


@pytest.fixture(scope="session")
def judge() -> Judge:
    """A validator of JSON Schema that shares nothing with the kit."""
    return judge_value
