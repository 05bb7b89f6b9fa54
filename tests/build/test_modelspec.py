"""ModelSpecs in YAML: what is read, what is refused with which line, and that writing and reading are inverse."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, InvalidModelSpec
from homelab_llm.core.parameters import PARAMETERS, check_parameter, request_parameters
from homelab_llm.gateway.dialects.openai import PRESET
from homelab_llm.store.build import modelspec
from homelab_llm.store.build.modelspec import json_schema, parse_modelspec, write_modelspec
from homelab_llm.store.build.spec import ROLES, ModelSpec

pytestmark = pytest.mark.requirement("R-M6")

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "modelspec.yaml"
PRINTED = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
LONG = st.text(PRINTED, min_size=1, max_size=60).filter(str.strip)
SHORT = st.from_regex(r"[A-Za-z0-9_./:@#-]{1,30}", fullmatch=True)


def _value(name: str) -> st.SearchStrategy[Any]:
    parameter = PARAMETERS[name]
    if parameter.kind == "word":
        return st.sampled_from(parameter.words)
    if parameter.kind == "whole":
        return st.integers(int(parameter.low), int(parameter.high))
    return st.floats(parameter.low, parameter.high)


PARAMETER_SETS = st.fixed_dictionaries({}, optional={n: _value(n) for n in PARAMETERS if n != "stop"})
SPECS = st.builds(
    ModelSpec,
    base=SHORT,
    name=st.just("") | SHORT,
    revision=st.just("") | SHORT,
    quantization=st.just("") | SHORT,
    template=st.just("") | LONG,
    parameters=PARAMETER_SETS,
    system=st.just("") | LONG,
    stop=st.lists(st.text(PRINTED, min_size=1, max_size=8), max_size=4, unique=True).map(tuple),
    messages=st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": LONG}), max_size=3).map(tuple),
    tool_call_parser=st.just("") | SHORT,
    adapters=st.lists(SHORT, max_size=3).map(tuple),
    licence=st.just("") | LONG,
    metadata=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), LONG, max_size=3),
    requires=st.sampled_from(("", "homelab-llm>=0.1", "ollama>=0.14.0")),
)


@given(SPECS)
def test_a_spec_that_was_written_reads_the_same(spec: ModelSpec) -> None:
    assert parse_modelspec(write_modelspec(spec).encode()) == spec


def test_the_example_of_the_docs_is_read() -> None:
    spec = parse_modelspec(EXAMPLE.read_bytes())
    assert (spec.name, spec.base, spec.stop) == ("pirate", "smollm2:135m", ("THE END",))
    assert spec.parameters == {"num_ctx": 2048, "max_tokens": 100, "temperature": 0.2, "repeat_penalty": 1.1}


def test_the_schema_that_is_shipped_is_the_one_of_the_code() -> None:
    shipped = Path(modelspec.__file__).with_name("modelspec.schema.json")
    assert json.loads(shipped.read_text()) == json_schema()
    assert set(json_schema()["properties"]) == set(ModelSpec.__dataclass_fields__)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "mapping"),
        ("just words", 1, "mapping"),
        ("- base: x", 1, "mapping"),
        ("system: hello", 0, "needs a base"),
        ("base: x\nbase: y", 2, "twice"),
        ("base: x\nlicense: mit", 2, "did you mean licence"),
        ("base: x\nparameters:\n  temperatur_x: 1", 3, "did you mean temperature"),
        ("base: x\nparameters:\n  temperature: hot", 3, "a number from 0 to 2"),
        ("base: x\nparameters:\n  temperature: 3", 3, "a number from 0 to 2"),
        ("base: x\nparameters:\n  top_k: 1.5", 3, "a whole number"),
        ("base: x\nparameters:\n  num_gpu: 99", 3, "num_gpu has no effect here"),
        ("base: x\nparameters:\n  stop: a", 3, "beside parameters"),
        ("base: x\nparameters: {num_predict: 1, max_tokens: 2}", 2, "same parameter"),
        ("base: x\nparameters: [1]", 2, "mapping"),
        ("base: yes", 1, "quotes"),
        ("base: null", 1, "quotes"),
        ("base: [x]", 1, "quotes"),
        ("base: ''", 1, "empty"),
        ("base: |\n  a\n  b", 1, "one line"),
        ("base: x\nstop: []", 2, "list of 1 to 16"),
        ("base: x\nstop: ['']", 2, "1 to 512"),
        ("base: x\nmessages:\n- {role: bot, content: hi}", 3, "one of system"),
        ("base: x\nmessages:\n- {role: user}", 3, "role: user"),
        ("base: x\nmetadata: {'a b': c}", 2, "key of metadata"),
        ("base: x\nrequires: soon", 2, "least version"),
        ("base: &a x\nsystem: *a", 2, "aliases"),
        ("base: !!python/object/apply:os.system [ls]", 1, "tags"),
        ("base: x\n<<: {system: y}", 2, "a word"),
        ("base: x\n---\nbase: y", 2, "one small document"),
        ("base: {a: {b: {c: {d: {e: {f: g}}}}}}", 1, "one small document"),
        ("base: x\n" + "a: [" * 5000, 2, "one small document"),
        ("base: x\n\tsystem: y", 2, "not YAML"),
        ("base: 'x", 1, "not YAML"),
        ("base: \x07", 0, "not YAML"),
        ("base: x\nsystem: " + "y" * (1 << 20), 0, "at most"),
    ],
)
def test_a_bad_spec_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(InvalidModelSpec) as refused:
        parse_modelspec(text.encode())
    assert said in refused.value.message
    assert refused.value.facts["line"] == line


def test_a_billion_laughs_are_refused_before_anybody_laughs() -> None:
    laughs = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
    with pytest.raises(InvalidModelSpec, match="aliases"):
        parse_modelspec(laughs.encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_make_anything_but_a_spec_or_a_typed_error(content: bytes) -> None:
    with contextlib.suppress(InvalidModelSpec):
        assert isinstance(parse_modelspec(content), ModelSpec)


def test_every_parameter_of_a_model_is_one_of_a_request() -> None:
    properties = PRESET.schema()["properties"]
    for name, parameter in PARAMETERS.items():
        if name in ("num_ctx", "stop", "seed") or parameter.kind == "word":
            continue
        assert (properties[name]["minimum"], properties[name]["maximum"]) == (parameter.low, parameter.high), name
    assert set(PARAMETERS) - {"num_ctx"} <= set(properties)


@given(PARAMETER_SETS)
def test_what_a_model_says_never_breaks_a_request(parameters: dict[str, Any]) -> None:
    PRESET(request_parameters(parameters), "")
    for name, value in parameters.items():
        assert check_parameter(name, value) == (name, value)


@given(st.dictionaries(st.sampled_from(["num_gpu", "temperature", "stop", "num_ctx", "x"]), st.text() | st.integers()))
def test_what_another_runtime_left_in_a_model_is_passed_over(parameters: dict[str, Any]) -> None:
    try:
        PRESET(request_parameters(parameters), "")
    except HomelabError as error:  # pragma: no cover
        raise AssertionError(parameters) from error
