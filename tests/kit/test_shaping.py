"""Shaping: what a worker gets for tools and formats, by template and by what it can enforce."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.core.facts import Capability, ModelFacts
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.kit.bounds import harmless
from homelab_llm.inference.kit.grammar import Grammar
from homelab_llm.inference.kit.shaping import OpenAIShaper

LLAMA_CPP = WorkerTraits(pooled=False, notices_abort=False, progress=True, grammar=True, tools=True)
MLX = WorkerTraits(pooled=True, notices_abort=True, progress=True, grammar=False, tools=False)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "send_mail"}}
QUESTION = {"role": "user", "content": "Weather in Paris?"}
CALLED = [
    QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"},
]


def facts(*, knows: bool = False, template: str = "", capabilities: tuple[Capability, ...] = ("chat",)) -> ModelFacts:
    return ModelFacts(
        "gguf", "llama", 1, template_knows_tools=knows, chat_template=template, capabilities=capabilities
    )  # fmt: skip


def shaped(
    body: dict[str, Any], about: ModelFacts | None = None, traits: WorkerTraits = LLAMA_CPP
) -> tuple[dict[str, Any], Any]:
    whole = {"messages": [QUESTION], **body}
    before = copy.deepcopy(whole)
    result = OpenAIShaper().shape(whole, about or facts(), traits)
    assert whole == before, "the given body stays as it is"
    assert "response_format" not in result.body
    json.dumps(result.body)
    return result.body, result.reply


def test_a_plain_request_passes_unchanged() -> None:
    body, reply = shaped({"temperature": 0, "stop": ["x"]})
    assert body == {"messages": [QUESTION], "temperature": 0, "stop": ["x"]}
    assert reply is None


@pytest.mark.requirement("B-15")
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_on_a_template_without_tools_is_described_and_enforced(choice: Any) -> None:
    body, reply = shaped({"tools": [TOOL, OTHER], "tool_choice": choice, "stop": ["}"]})
    assert not body.keys() & {"tools", "tool_choice", "parallel_tool_calls", "stop"}
    assert body["messages"][0]["role"] == "system"
    assert "get_weather" in body["messages"][0]["content"]
    assert ('\\"send_mail\\"' in body["grammar"]) is (choice == "required")
    stream = reply()
    deltas = stream.feed('{"name": "get_weather", "arguments": {"city": "Paris"}}')
    assert deltas[0]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert stream.finish() == ([], "tool_calls")
    assert reply() is not stream, "every choice of an answer has a machine of its own"


@pytest.mark.requirement("B-15")
def test_a_template_that_knows_tools_shows_them_also_when_our_grammar_forces_the_call() -> None:
    body, reply = shaped({"tools": [TOOL], "tool_choice": "required"}, facts(knows=True))
    assert body["tool_choice"] == "none"
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert body["messages"] == [QUESTION]
    assert "grammar" in body
    assert reply is not None


@pytest.mark.requirement("R-I5")
def test_free_calls_are_left_to_an_engine_whose_template_knows_tools() -> None:
    tool = copy.deepcopy(TOOL)
    tool["function"]["parameters"]["properties"]["zip"] = {"type": "string", "pattern": "^(a{1000}){1000}$"}
    body, reply = shaped({"tools": [tool], "parallel_tool_calls": False, "messages": CALLED}, facts(knows=True))
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("auto", False)
    assert body["messages"] == CALLED
    assert body["tools"][0]["function"]["parameters"]["properties"]["zip"] == {"type": "string"}
    assert reply is None


@pytest.mark.requirement("B-15")
@pytest.mark.parametrize("traits", [LLAMA_CPP, MLX])
def test_free_calls_on_a_template_without_tools_are_described_and_found(traits: WorkerTraits) -> None:
    body, reply = shaped({"tools": [TOOL], "tool_choice": "auto"}, traits=traits)
    assert "tools" not in body
    assert "<tool_call>" in body["messages"][0]["content"]
    assert ("grammar" in body) is traits.grammar
    stream = reply()
    assert stream.feed("Hello") == [{"content": "Hello"}]
    assert stream.finish() == ([], "stop")


@pytest.mark.requirement("B-15")
def test_the_history_of_calls_is_told_in_plain_messages() -> None:
    body, _ = shaped({"tools": [TOOL], "messages": [{"role": "system", "content": "Be brief."}, *CALLED, QUESTION]})
    system, question, call, result = body["messages"]
    assert system["content"].startswith("Be brief.\n\n")
    assert question == QUESTION
    assert call["role"] == "assistant"
    assert '"city": "Paris"' in call["content"]
    assert result == {"role": "user", "content": f"get_weather returned: 22 degrees\n{QUESTION['content']}"}


def test_a_template_without_a_system_role_gets_the_tools_in_the_first_message() -> None:
    template = "{{ raise_exception('System role not supported') }}"
    body, _ = shaped({"tools": [TOOL], "tool_choice": "required"}, facts(template=template))
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert message["content"].endswith(QUESTION["content"])
    assert "get_weather" in message["content"]


def test_parts_of_a_message_stay_parts() -> None:
    parts = [{"type": "text", "text": "Be brief."}]
    body, _ = shaped({"tools": [TOOL], "messages": [{"role": "system", "content": parts}, QUESTION]})
    assert body["messages"][0]["content"][0] == parts[0]
    assert "get_weather" in body["messages"][0]["content"][1]["text"]


def test_tool_choice_none_keeps_the_tools_away_and_calls_out_of_the_text() -> None:
    body, reply = shaped({"tools": [TOOL], "tool_choice": "none", "messages": CALLED})
    assert "tools" not in body
    assert "text-0" in body["grammar"]
    assert reply is None
    assert "grammar" not in shaped({"tools": [TOOL], "tool_choice": "none"})[0]


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.requirement("R-I6")
def test_formats_become_grammars(accepts: Callable[[Grammar, str], bool]) -> None:
    body, reply = shaped({"response_format": {"type": "json_object"}})
    assert 'object ::= "{"' in body["grammar"]
    assert reply is None
    body, _ = shaped({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}})
    assert '\\"city\\"' in body["grammar"]
    assert "grammar" not in shaped({"response_format": {"type": "text"}})[0]


@pytest.mark.requirement("R-I6")
def test_a_format_and_free_calls_go_together() -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    for knows in (False, True):
        body, reply = shaped({"tools": [TOOL], "response_format": wanted}, facts(knows=knows))
        assert "tool-calls" in body["grammar"]
        assert "f-1" in body["grammar"]
        assert "text-0" not in body["grammar"]
        assert reply is not None


@pytest.mark.requirement("R-I6")
def test_a_model_that_thinks_does_not_where_an_answer_is_enforced() -> None:
    wanted = {"response_format": {"type": "json_object"}, "chat_template_kwargs": {"x": 1}}
    body, _ = shaped(wanted, facts(capabilities=("chat", "thinking")))
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "x": 1}
    assert body["reasoning_format"] == "none"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_a_worker_cannot_enforce_is_refused_with_the_way_out(given: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        shaped(given, traits=MLX)
    assert caught.value.facts["field"] == field
    assert "llama.cpp" in caught.value.hint


def with_parameters(parameters: Any, **function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters, **function}}]}


TANGLED = {
    "type": "object",
    "properties": {
        "a": {"anyOf": [{"type": "object", "properties": {n: {"$ref": "#/properties/a"}}} for n in ("x", "y")]}
    },
}


@pytest.mark.parametrize("knows", [True, False])
def test_a_tool_whose_schema_is_too_much_is_offered_with_any_arguments(knows: bool) -> None:
    body, _ = shaped(with_parameters(TANGLED), facts(knows=knows))
    if knows:
        assert body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {"a": {}}}
    else:
        assert '"{\\"name\\": \\"f\\", \\"arguments\\": " object "}"' in body["grammar"]
    assert shaped(with_parameters(TANGLED) | {"tool_choice": "required"})[0]["grammar"]
    with pytest.raises(InvalidInput):
        shaped(with_parameters(TANGLED, strict=True) | {"tool_choice": "required"})


def test_a_hundred_large_tools_still_make_a_grammar_within_bounds() -> None:
    large = {"type": "object", "properties": {f"property{n}": {"type": "string"} for n in range(60)}}
    tools = [{"type": "function", "function": {"name": f"tool{n}", "parameters": large}} for n in range(100)]
    body, _ = shaped({"tools": tools})
    assert len(body["grammar"]) < 1_000_000


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ("text", "tools[0].function.parameters"),
        ({"type": "string"}, "tools[0].function.parameters.type"),
        ({"properties": {"a": {"$ref": "#/none"}}}, "tools[0].function.parameters.properties.a.$ref"),
        ({"properties": {"a": {"type": "string", "minLength": 3, "maxLength": 1}}},
         "tools[0].function.parameters.properties.a.maxLength"),
        ({"required": ["a"], "properties": {"a": {"$ref": "#"}}}, "tools[0].function.parameters"),
    ],
)  # fmt: skip
def test_a_tool_that_contradicts_itself_is_refused_with_the_place(parameters: Any, field: str, knows: bool) -> None:
    with pytest.raises(InvalidInput) as caught:
        shaped(with_parameters(parameters), facts(knows=knows))
    assert caught.value.facts["field"] == field


def test_harmless_keeps_names_that_look_like_keywords() -> None:
    schema = {"properties": {"pattern": {"type": "string", "pattern": "x"}, "maxLength": {"maxLength": 10**6}}}
    assert harmless(schema) == {"properties": {"pattern": {"type": "string"}, "maxLength": {}}}
