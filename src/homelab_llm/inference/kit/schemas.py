"""JSON Schema as a grammar: every answer the grammar allows is valid against the schema.

The grammar may allow less than the schema: properties come in the order of the schema, and no others unless
``additionalProperties`` says so; ``oneOf`` is read as ``anyOf``. What cannot be enforced is refused (``strict``), or
left unenforced where a schema only describes, as the parameters of a tool do.

Known: true and false as schemas, ``type`` (also a list), ``enum``, ``const``, ``properties``, ``required``,
``additionalProperties``, ``items``, ``prefixItems``, ``minItems``, ``maxItems``, ``minLength``, ``maxLength``,
``pattern`` (see ``patterns``), ``format`` of dates, times and UUIDs, ``minimum`` and its kin, ``anyOf``, ``oneOf``,
``allOf`` of one, ``$ref`` inside the document. Sizes are bounded before anything is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.inference.kit import json_rules as rules
from homelab_llm.inference.kit.ambiguity import Readings
from homelab_llm.inference.kit.bounds import check_bounds
from homelab_llm.inference.kit.formats import FORMATS
from homelab_llm.inference.kit.grammar import (
    MAX_REPEAT,
    NOTHING,
    Alt,
    Expr,
    Grammar,
    Ref,
    Rep,
    Text,
    alt,
    maybe,
    one_of,
    seq,
)
from homelab_llm.inference.kit.patterns import add_pattern
from homelab_llm.inference.kit.ranges import Bounds

_MAX_NESTING = 100  # references followed, besides depth

_SAYS_NOTHING = frozenset(
    {
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "$defs", "definitions", "$anchor", "contentMediaType", "contentEncoding"),
    }
)
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
# Unknown keywords that limit a value of one type only; elsewhere they say nothing.
_UNKNOWN_OF_TYPE = {
    "multipleOf": ("integer", "number"),
    "uniqueItems": ("array",),
    "contains": ("array",),
    "minContains": ("array",),
    "maxContains": ("array",),
    "additionalItems": ("array",),
    "unevaluatedItems": ("array",),
    "patternProperties": ("object",),
    "propertyNames": ("object",),
    "minProperties": ("object",),
    "maxProperties": ("object",),
    "dependentRequired": ("object",),
    "dependentSchemas": ("object",),
    "dependencies": ("object",),
    "unevaluatedProperties": ("object",),
}
_COMBINING = frozenset({"$ref", "const", "enum", "anyOf", "oneOf", "allOf", "type"})


def add_schema(grammar: Grammar, schema: Any, where: str, *, strict: bool, prefix: str = "s") -> Expr:
    """The grammar's part for a value of this schema; rules it needs are added under names with ``prefix``.

    Raises:
        InvalidInput: out of bounds, contradictory, or a ``$ref`` that leads nowhere; ``field`` names the place.
        UnsupportedRequest: ``strict``, and a keyword that cannot be enforced.
    """
    check_bounds(schema, where)
    compiler = _Compiler(grammar, schema, where, strict, prefix)
    found = compiler.value(schema, where)
    compiler.readings.check()
    return found


class _Compiler:
    """One schema document on its way into a grammar."""

    def __init__(self, grammar: Grammar, document: Any, where: str, strict: bool, prefix: str) -> None:
        self._grammar = grammar
        self._document = document
        self._where = where
        self._strict = strict
        self._prefix = prefix
        self._count = 0
        self._depth = 0
        self.readings = Readings(where, lambda pointer: self._resolve(pointer, where))
        self._by_type: dict[str, Callable[[Mapping[str, Any], str], Expr]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda *_: rules.boolean(grammar),
            "null": lambda *_: Text("null"),
        }

    def value(self, schema: Any, where: str) -> Expr:
        """The grammar of one value; comes back here for every part of the schema."""
        if self._depth >= _MAX_NESTING:
            raise InvalidInput(f"'{self._where}' is nested too deeply", field=self._where, limit=_MAX_NESTING)
        self._depth += 1
        try:
            return self._value(schema, where)
        finally:
            self._depth -= 1

    def _value(self, schema: Any, where: str) -> Expr:
        if schema is True or schema == {}:
            return rules.value(self._grammar)
        if schema is False:
            return Alt(())
        if not isinstance(schema, dict):
            raise InvalidInput(f"'{where}' must be a schema: an object, true or false", field=where)
        if "$ref" in schema:
            return self._ref(schema, where)
        if "const" in schema:
            return self._literals([schema["const"]], schema, where)
        if "enum" in schema:
            return self._literals(self._list(schema, "enum", where), schema, where)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._any(schema, word, where)
        if "allOf" in schema:
            return self._all(schema, where)
        return self._typed(schema, where)

    # --- what applies to every type ---

    def _typed(self, schema: Mapping[str, Any], where: str) -> Expr:
        types = self._types(schema, where)
        self._only(schema, {"type", *(word for kind in types for word in _OF_TYPE[kind])}, where, types)
        if not types:
            return rules.value(self._grammar)
        found = [self._by_type[kind](schema, where) for kind in types]
        return found[0] if len(found) == 1 else alt(*found)

    def _types(self, schema: Mapping[str, Any], where: str) -> list[str]:
        """The types it allows; without ``type`` those its other keywords speak of, and none for an open schema."""
        if "type" not in schema:
            return [kind for kind in ("object", "array", "string", "number") if _OF_TYPE[kind] & schema.keys()][:1]
        given = schema["type"]
        kinds = given if isinstance(given, list) else [given]
        if not kinds or not all(isinstance(kind, str) and kind in _OF_TYPE for kind in kinds):
            raise InvalidInput(f"'{where}.type' is not a type of JSON", field=f"{where}.type")
        if "number" in kinds:
            kinds = [kind for kind in kinds if kind != "integer"]
        return list(dict.fromkeys(kinds))

    def _only(self, schema: Mapping[str, Any], known: set[str], where: str, types: Sequence[str] = ()) -> None:
        """In strict mode: nothing but what is enforced or says nothing."""
        if not self._strict:
            return
        every = frozenset().union(*_OF_TYPE.values())
        for word in schema.keys() - known - _SAYS_NOTHING:
            foreign = word in every or word in _UNKNOWN_OF_TYPE
            if foreign and types and not set(_UNKNOWN_OF_TYPE.get(word, ())) & set(types):
                continue  # speaks of another type
            if not word.startswith("x-"):
                raise self._refuse(where, word)

    def _refuse(self, where: str, word: str, why: str = "is not known") -> UnsupportedRequest:
        return UnsupportedRequest(
            f"'{where}.{word}' cannot be enforced: it {why}", field=f"{where}.{word}"[:200], keyword=word[:60]
        )

    def _list(self, schema: Mapping[str, Any], word: str, where: str) -> list[Any]:
        found = schema[word]
        if not isinstance(found, list) or not found:
            raise InvalidInput(f"'{where}.{word}' must be a list that is not empty", field=f"{where}.{word}")
        return found

    def _literals(self, values: Sequence[Any], schema: Mapping[str, Any], where: str) -> Expr:
        self._only(schema, {"const", "enum", "type"}, where, ("null",))
        kinds = set(self._types(schema, where)) if "type" in schema else set()
        fitting = [value for value in values if not kinds or _kinds(value) & kinds]
        if "const" in schema and "enum" in schema:
            fitting = [value for value in fitting if value in schema["enum"]]
        return one_of([json.dumps(value, ensure_ascii=False, allow_nan=False) for value in fitting])

    def _any(self, schema: Mapping[str, Any], word: str, where: str) -> Expr:
        rest = {key: value for key, value in schema.items() if key != word}
        if rest.keys() - _SAYS_NOTHING - {"type"}:
            if self._strict:
                raise self._refuse(where, word, "stands beside other keywords")
            if rest.keys() & (_COMBINING | {"properties", "items"}):
                return self.value(rest, where)
        kinds = set(self._types(rest, where)) if "type" in rest else set()
        kind = {"type": rest["type"]} if kinds else {}
        given = [
            {**kind, **option} if isinstance(option, dict) else option for option in self._list(schema, word, where)
        ]
        with self.readings.alternatives(given):
            options = [self.value(option, f"{where}.{word}[{number}]") for number, option in enumerate(given)]
        return Alt(tuple(options))

    def _all(self, schema: Mapping[str, Any], where: str) -> Expr:
        options = self._list(schema, "allOf", where)
        rest = {key: value for key, value in schema.items() if key != "allOf" and key not in _SAYS_NOTHING}
        if len(options) == 1 and not rest:
            return self.value(options[0], f"{where}.allOf[0]")
        if self._strict:
            raise self._refuse(where, "allOf", "combines several schemas")
        return self.value(rest, where) if rest else rules.value(self._grammar)

    def _ref(self, schema: Mapping[str, Any], where: str) -> Expr:
        self._only(schema, {"$ref"}, where)
        pointer = schema["$ref"]
        name = f"{self._prefix}-ref-{_safe(pointer)}" if isinstance(pointer, str) else ""
        self.readings.refer(name)
        if name not in self._grammar.rules:
            target = self._resolve(pointer, where)
            self._grammar.rules[name] = Alt(())  # taken: a schema may contain itself
            with self.readings.part(name):
                self._grammar.rules[name] = self.value(target, f"{self._where}{pointer[1:].replace('/', '.')}")
        return Ref(name)

    def _resolve(self, pointer: Any, where: str) -> Any:
        """RFC 6901, inside this document only."""
        field = f"{where}.$ref"
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise InvalidInput(f"'{field}' must lead to a place in the same schema (#/…)", field=field)
        found = self._document
        for step in pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise InvalidInput(f"'{field}' leads nowhere: {pointer[:80]}", field=field)
        return found

    def _rule(self, expr: Expr) -> Ref:
        self._count += 1
        return self._grammar.add(f"{self._prefix}-{self._count}", expr)

    # --- strings and numbers ---

    def _string(self, schema: Mapping[str, Any], where: str) -> Expr:
        char = rules.char(self._grammar)
        low, high = self._counts(schema, "minLength", "maxLength", where)
        bounded = low > 0 or high is not None
        if "pattern" in schema:
            return self._pattern(schema, where, bounded)
        if (form := schema.get("format")) in FORMATS and not bounded:
            return seq('"', self._grammar.add(f"format-{form}", FORMATS[str(form)]), '"')
        if not bounded:
            return rules.string(self._grammar)
        return self._rule(seq('"', Rep(char, low, high), '"'))

    def _pattern(self, schema: Mapping[str, Any], where: str, bounded: bool) -> Expr:
        source, field = schema["pattern"], f"{where}.pattern"
        if not isinstance(source, str):
            raise InvalidInput(f"'{field}' must be a string", field=field)
        if bounded and self._strict:
            raise self._refuse(where, "pattern", "stands beside a length")
        try:
            self._count += 1
            return self._rule(
                seq('"', add_pattern(self._grammar, source, field, f"{self._prefix}-{self._count}-p"), '"')
            )
        except InvalidInput:
            if self._strict:
                raise
            return rules.string(self._grammar)

    def _counts(self, schema: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
        """A pair of bounds such as minLength and maxLength."""
        for word in (least, most):
            count = schema.get(word, 0)
            if isinstance(count, float) and count.is_integer():
                count = int(count)
            if type(count) is not int or count < 0:
                raise InvalidInput(f"'{where}.{word}' must be a whole number, not negative", field=f"{where}.{word}")
            if count > MAX_REPEAT and self._strict:
                raise InvalidInput(
                    f"'{where}.{word}' is more than {MAX_REPEAT}", field=f"{where}.{word}", limit=MAX_REPEAT
                )
        low = min(int(schema.get(least, 0)), MAX_REPEAT)
        high = int(schema[most]) if most in schema else None
        if high is not None and high < low:
            raise InvalidInput(f"'{where}.{most}' is less than '{least}'", field=f"{where}.{most}")
        return low, high if high is None or high <= MAX_REPEAT else None

    def _integer(self, schema: Mapping[str, Any], where: str) -> Expr:
        bounds = Bounds.of(schema, where)
        return rules.integer(self._grammar) if bounds.free else self._rule(bounds.whole())

    def _number(self, schema: Mapping[str, Any], where: str) -> Expr:
        bounds = Bounds.of(schema, where)
        if bounds.free:
            return rules.number(self._grammar)
        enforced = bounds.real(rules.fraction(self._grammar))
        if enforced is None and self._strict:
            raise self._refuse(where, "minimum", "(or the maximum) is exclusive or no whole number")
        return rules.number(self._grammar) if enforced is None else self._rule(enforced)

    # --- arrays and objects ---

    def _array(self, schema: Mapping[str, Any], where: str) -> Expr:
        low, high = self._counts(schema, "minItems", "maxItems", where)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise InvalidInput(f"'{where}.prefixItems' must be a list", field=f"{where}.prefixItems")
        if first:
            return self._tuple(schema, first, low, high, where)
        if schema.get("items", True) is False:
            high = 0
        if high == 0:
            return Alt(()) if low else seq("[", rules.space(self._grammar), "]")
        item = self._rule(self.value(schema.get("items", True), f"{where}.items"))
        return self._rule(seq("[", rules.listed(self._grammar, item, low, high), "]"))

    def _tuple(self, schema: Mapping[str, Any], first: Sequence[Any], low: int, high: int | None, where: str) -> Expr:
        """All of ``prefixItems``, then more items only when asked for."""
        ws = rules.space(self._grammar)
        parts: list[Expr] = []
        for number, item in enumerate(first[:high]):
            comma = seq(",", ws) if number else NOTHING
            parts += [comma, self.value(item, f"{where}.prefixItems[{number}]"), ws]
        if (missing := max(0, low - len(first))) or isinstance(schema.get("items"), dict):
            if schema.get("items") is False:
                return Alt(())
            item = self._rule(self.value(schema.get("items", True), f"{where}.items"))
            more = None if high is None else max(0, high - len(first))
            parts.append(Rep(seq(",", ws, item, ws), missing, more) if more != 0 else NOTHING)
        return self._rule(seq("[", ws, *parts, "]"))

    def _object(self, schema: Mapping[str, Any], where: str) -> Expr:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise InvalidInput(f"'{where}.properties' must be an object", field=f"{where}.properties")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise InvalidInput(f"'{where}.required' must be a list of names", field=f"{where}.required")
        other = schema.get("additionalProperties", not properties)
        missing = [name for name in dict.fromkeys(required) if name not in properties]
        if missing and schema.get("additionalProperties") is False:
            raise InvalidInput(f"'{where}' requires {missing[0][:60]!r} and forbids it", field=f"{where}.required")
        extra = True if not isinstance(other, dict) else other
        members = {**properties, **dict.fromkeys(missing, extra)}
        if not members and other in (True, {}):
            return rules.free_object(self._grammar)
        fixed = [(name, self._member(name, item, where), name in required) for name, item in members.items()]
        more = None if other is False else self._others(list(members), extra, where)
        return self._rule(seq("{", rules.space(self._grammar), self._members(fixed, more), "}"))

    def _member(self, name: str, schema: Any, where: str) -> Ref:
        ws = rules.space(self._grammar)
        key = Text(json.dumps(name, ensure_ascii=False))
        return self._rule(seq(key, ws, ":", ws, self.value(schema, f"{where}.properties.{name[:60]}"), ws))

    def _others(self, taken: list[str], schema: Any, where: str) -> Ref:
        self._count += 1
        ws = rules.space(self._grammar)
        key = rules.other_string(self._grammar, taken, f"{self._prefix}-{self._count}-key")
        return self._rule(seq(key, ws, ":", ws, self.value(schema, f"{where}.additionalProperties"), ws))

    def _members(self, fixed: Sequence[tuple[str, Ref, bool]], more: Ref | None) -> Expr:
        """In order, with commas: two chains of rules, before the first member was written and after."""
        ws = rules.space(self._grammar)
        following: Expr = Rep(seq(",", ws, more)) if more else NOTHING
        after = self._rule(following) if more else following
        before: Expr = maybe(seq(more, after)) if more else NOTHING
        for _, member, needed in reversed(fixed):
            start = seq(member, after)
            before = self._rule(start if needed else Alt((start, before)))
            step = seq(",", ws, member, after)
            after = self._rule(step if needed else Alt((step, after)))
        return before


def _kinds(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case _:
            return {"object"}


def _safe(pointer: str) -> str:
    """A pointer as part of a rule's name: letters, digits and hyphens, different for different pointers."""
    return "".join(c if c.isascii() and c.isalnum() else f"-{ord(c):x}-" for c in pointer)
