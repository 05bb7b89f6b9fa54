"""JSON Schema as grammars: what they allow is valid, and what is contradictory or too much is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.inference.kit.grammar import Grammar
from homelab_llm.inference.kit.schemas import add_schema

Accepts = Callable[[Grammar, str], bool]
Write = Callable[[Grammar, int], str]
Judge = Callable[[Any, Any], bool]


def compiled(schema: Any, *, strict: bool = True) -> Grammar:
    grammar = Grammar()
    root = add_schema(grammar, schema, "schema", strict=strict)
    grammar.rules["root"] = root
    assert grammar.text("schema").endswith("\n")
    return grammar


def nested(depth: int) -> st.SearchStrategy[Any]:
    bound = st.integers(-30, 30)
    scalars: st.SearchStrategy[Any] = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.fixed_dictionaries({"type": st.just("string")}, optional={"minLength": st.integers(0, 3)}),
        st.integers(0, 6).map(lambda high: {"type": "string", "maxLength": high}),
        st.tuples(bound, st.integers(0, 200)).map(
            lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}
        ),
        st.tuples(bound, st.integers(0, 9)).map(lambda b: {"type": "number", "minimum": b[0], "maximum": b[0] + b[1]}),
        st.sampled_from(
            [{"type": "integer"}, {"type": "number"}, {"type": ["string", "null"]}, {"type": "string"}, True]
        ),
        st.sampled_from([{"type": "string", "pattern": r"^[a-c]{2,4}\d?$"}, {"type": "string", "pattern": "x|yz"}]),
        st.lists(st.one_of(st.integers(), st.text(max_size=6), st.none()), min_size=1, max_size=4).map(
            lambda e: {"enum": e}
        ),
        st.one_of(st.text(max_size=6), st.integers(), st.booleans()).map(lambda value: {"const": value}),
        bound.map(lambda low: {"type": "integer", "exclusiveMinimum": low}),
    )
    if depth == 0:
        return scalars
    inner = nested(depth - 1)
    objects = st.builds(
        lambda properties, required, other: {
            "type": "object",
            "properties": properties,
            "required": [name for name, needed in zip(properties, required, strict=False) if needed],
            **({} if other is None else {"additionalProperties": other}),
        },
        st.dictionaries(st.text('abc"é', min_size=1, max_size=3), inner, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.sampled_from([None, False, True, {"type": "integer"}]),
    )
    arrays = st.builds(
        lambda item, low, more: {"type": "array", "items": item, "minItems": low, "maxItems": low + more},
        inner, st.integers(0, 2), st.integers(0, 3),
    )  # fmt: skip
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda items: {"type": "array", "prefixItems": items, "minItems": 1}
    )
    either = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(scalars, objects, arrays, tuples, either)


@pytest.mark.requirement("R-I6")
@settings(max_examples=250, deadline=None)
@given(schema=nested(3), seed=st.integers(0, 2**32))
def test_whatever_a_grammar_allows_is_valid_against_its_schema(
    schema: Any, seed: int, write: Write, judge: Judge, accepts: Accepts
) -> None:
    try:
        grammar = compiled(schema)
    except InvalidInput as error:
        assert error.facts.get("too_complex"), error.message
        return
    text = write(grammar, seed)
    value = json.loads(text)
    assert judge(schema, value), text
    assert accepts(grammar, text)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b c"]}},
        "boss": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "boss"],
    "additionalProperties": False,
}


@pytest.mark.requirement("R-I6")
@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"name": "Ada", "boss": null}', True),
        ('{"name":"Ada","age":36,"tags":["a","b c","a"],"boss":{"name":"é \\n \\u00e9","boss":null}}', True),
        ('{\n  "name": "Ada",\n  "boss": null\n}', True),
        ('{"name": "Ada"}', False),
        ('{"boss": null, "name": "Ada"}', False),  # valid JSON Schema, but not in the schema's order
        ('{"name": "Ada", "age": 131, "boss": null}', False),
        ('{"name": "Ada", "age": 036, "boss": null}', False),
        ('{"name": "Ada", "extra": 1, "boss": null}', False),
        ('{"name": "Ada", "tags": ["c"], "boss": null}', False),
        ('{"name": "A\nda", "boss": null}', False),
        ('{"name": "\\ud800", "boss": null}', False),
        ('{"name": "Ada", "boss": null,}', False),
    ],
)
def test_an_object_is_allowed_in_order_and_nothing_else(text: str, allowed: bool, accepts: Accepts) -> None:
    assert accepts(compiled(PERSON), text) is allowed


@pytest.mark.parametrize("key", ["name", "n\\u0061me"])
def test_another_property_never_takes_the_name_of_a_known_one(key: str, accepts: Accepts) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "integer"}}, "additionalProperties": {"type": "string"}}
    grammar = compiled(schema)
    assert accepts(grammar, '{"name": 1, "na": "x", "names": "y", "": "z"}')
    assert not accepts(grammar, f'{{"{key}": "x"}}')


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (-5, 5), (7, 7), (99, 101), (-1234, -17), (0, 999), (13, 8_765), (-1, 10**6)]
)
def test_integer_bounds_are_exact(low: int, high: int, accepts: Accepts) -> None:
    grammar = compiled({"type": "integer", "minimum": low, "maximum": high})
    around = {low - 1, low, low + 1, high - 1, high, high + 1, (low + high) // 2, 10 * high + 1, -low, 0, -1, 1}
    for number in around:
        assert accepts(grammar, str(number)) is (low <= number <= high), number


@pytest.mark.parametrize("text", ["0", "1", "0.5", "1.0"])
def test_a_number_between_whole_bounds_may_have_a_fraction(text: str, accepts: Accepts) -> None:
    grammar = compiled({"type": "number", "minimum": 0, "maximum": 1})
    assert accepts(grammar, text) is (text != "1.0")
    assert not accepts(grammar, "-0.5")
    assert not accepts(grammar, "1.5")


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "string", "minLength": 5, "maxLength": 2}, "schema.maxLength"),
        ({"type": "array", "minItems": -1}, "schema.minItems"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "schema"),
        ({"type": "integer", "minimum": "x"}, "schema.minimum"),
        ({"type": "number", "minimum": float("nan")}, "schema.minimum"),
        ({"type": "foo"}, "schema.type"),
        ({"type": []}, "schema.type"),
        ({"enum": []}, "schema.enum"),
        ({"enum": [1], "type": "string"}, "schema"),
        (False, "schema"),
        ("string", "schema"),
        ([], "schema"),
        ({"properties": {"a": {"items": 5}}}, "schema.properties.a.items"),
        ({"properties": []}, "schema.properties"),
        ({"required": "a"}, "schema.required"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "schema.required"),
        ({"anyOf": {}}, "schema.anyOf"),
        ({"$ref": "#/$defs/none"}, "schema.$ref"),
        ({"$ref": "https://example.com/schema"}, "schema.$ref"),
        ({"$ref": "#"}, "schema"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "schema"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "schema"),
        ({"type": "string", "pattern": 7}, "schema.pattern"),
    ],
)
def test_a_contradictory_schema_is_refused_with_the_place(schema: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compiled(schema)
    assert caught.value.code == "invalid_input"
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True},
        {"type": "integer", "multipleOf": 3},
        {"type": "object", "patternProperties": {"^a": {}}},
        {"type": "number", "minimum": 0.5},
        {"type": "number", "exclusiveMaximum": 3},
        {"type": "string", "pattern": "a(?=b)"},
        {"type": "string", "pattern": "a", "minLength": 3},
        {"allOf": [{"type": "string"}, {"minLength": 3}]},
        {"if": {}, "then": {}},
        {"type": "object", "properties": {"a": {"$dynamicRef": "#x"}}},
    ],
)
def test_what_cannot_be_enforced_is_refused_when_strict_and_passed_over_when_not(schema: Any) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        compiled(schema)
    assert str(caught.value.facts["field"]).startswith("schema.")
    assert compiled(schema, strict=False).rules


def test_keywords_that_say_nothing_or_speak_of_another_type_are_passed_over(accepts: Accepts) -> None:
    grammar = compiled(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "T",
            "type": "integer",
            "description": "d",
            "default": 3,
            "minLength": 4,
            "uniqueItems": True,
            "x-order": 1,
        }
    )
    assert accepts(grammar, "17")


def deep(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(levels: int) -> Any:
    """Every level can be read in two ways, so the readings of ``[[[[`` double with each bracket."""
    below = {
        f"a{n}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/a{n + 1}"}, "maxItems": m} for m in (5, 9)]}
        for n in range(levels)
    }
    return {"$ref": "#/$defs/a0", "$defs": {**below, f"a{levels}": {"type": "null"}}}


@pytest.mark.requirement("R-I6")
@pytest.mark.parametrize(
    "schema",
    [
        deep(60),
        deep(3000),
        {"enum": list(range(1001))},
        {"properties": {f"p{n}": {} for n in range(5000)}},
        {"description": "x" * 70_000},
        {"$ref": "#/$defs/a0", "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(500)} | {"a500": {}}},
        {"type": "array", "minItems": 3000},
        {"type": "string", "pattern": "^(((a{1000}){1000}){1000})$"},
        {"type": "string", "pattern": "a" * 513},
        {"type": "string", "pattern": "^.*a.{20}$"},
        {"type": "string", "pattern": "^" + ".?" * 250 + "$"},
        {"type": "object", "properties": {f"p{n}": {"type": "string", "maxLength": 1990} for n in range(20)}},
        {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#"}},
                {"type": "array", "items": {"$ref": "#"}, "maxItems": 4},
            ]
        },
        doubling(12),
    ],
)
def test_a_schema_beyond_the_bounds_is_refused_before_it_costs_anything(schema: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        compiled(schema)
    assert caught.value.code == "invalid_input"


def test_a_union_with_a_discriminator_may_nest_without_end(accepts: Accepts) -> None:
    kids = {"type": "array", "items": {"$ref": "#"}}
    union = {
        "anyOf": [
            {"type": "object", "properties": {"type": {"const": kind}, "kids": kids}, "required": ["type", "kids"]}
            for kind in ("div", "span", "section")
        ]
    }
    assert accepts(compiled(union), '{"type": "div", "kids": [{"type": "span", "kids": []}]}')
    assert compiled(doubling(5)).rules


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "2023-12-31", "2023-11-31"),
        ("time", "23:59:59Z", "24:00:00Z"),
        ("date-time", "2024-01-05T07:08:09.25+02:00", "2024-01-05 07:08:09Z"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567e89b12d3a456426614174000"),
    ],
)
def test_formats_of_time_are_enforced(form: str, good: str, bad: str, accepts: Accepts) -> None:
    grammar = compiled({"type": "string", "format": form})
    assert accepts(grammar, f'"{good}"')
    assert not accepts(grammar, f'"{bad}"')


def test_other_formats_are_only_descriptions(accepts: Accepts) -> None:
    assert accepts(compiled({"type": "string", "format": "email"}), '"anything"')
