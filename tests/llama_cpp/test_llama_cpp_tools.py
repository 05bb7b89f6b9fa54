"""Tool calls and JSON Schema on the real SmolLM2, whose template knows no tools: shaped, enforced, read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from homelab_llm.core.facts import StoredModel
from homelab_llm.inference.engines.llama_cpp import TRAITS
from homelab_llm.inference.kit.shaping import OpenAIShaper

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
        },
    },
}
MAIL = {
    "type": "function",
    "function": {
        "name": "send_mail",
        "parameters": {
            "type": "object",
            "properties": {
                "to": {"type": "string", "pattern": r"^[a-z]+@[a-z]+\.com$"},
                "priority": {"type": "integer", "minimum": 3, "maximum": 17},
            },
            "required": ["to", "priority"],
        },
    },
}
ASKED = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "temperature": 0,
    "max_tokens": 120,
}


def chat(worker: Any, model: StoredModel, body: dict[str, Any]) -> tuple[str, list[dict[str, Any]], str]:
    """A streamed chat through the shaper, as the gateway does it: text, calls, reason."""
    shaped = OpenAIShaper().shape({**ASKED, **body}, model.facts, TRAITS)
    reply = shaped.reply() if shaped.reply else None
    text, reason = "", ""
    calls: list[dict[str, Any]] = []
    for event in worker.stream(shaped.body):
        for choice in event["choices"]:
            content = choice["delta"].get("content") or ""
            deltas: list[dict[str, Any]] = reply.feed(content) if reply else [{"content": content}]
            reason = choice["finish_reason"] or reason
            if reply and choice["finish_reason"]:
                last, reason = reply.finish(choice["finish_reason"])
                deltas = [*deltas, *last]
            for delta in deltas:
                text += delta.get("content", "")
                for part in delta.get("tool_calls", ()):
                    if "id" in part:
                        calls.append({"name": part["function"]["name"], "arguments": ""})
                    calls[part["index"]]["arguments"] += part["function"]["arguments"]
    return text, [{**call, "arguments": json.loads(call["arguments"])} for call in calls], reason


@pytest.mark.requirement("B-15")
@pytest.mark.requirement("R-I5")
def test_a_forced_call_is_made_by_a_model_that_never_heard_of_tools(chat_worker: Any, smollm2: StoredModel) -> None:
    assert not smollm2.facts.template_knows_tools
    text, calls, reason = chat(chat_worker, smollm2, {"tools": [WEATHER], "tool_choice": "required"})
    assert (text, reason) == ("", "tool_calls")
    assert calls[0]["name"] == "get_weather"
    assert calls[0]["arguments"]["city"] == "Paris"


@pytest.mark.requirement("B-15")
def test_the_named_function_is_called_with_arguments_within_its_schema(chat_worker: Any, smollm2: StoredModel) -> None:
    choice = {"type": "function", "function": {"name": "send_mail"}}
    _, calls, _ = chat(chat_worker, smollm2, {"tools": [WEATHER, MAIL], "tool_choice": choice})
    (call,) = calls
    assert call["name"] == "send_mail"
    assert call["arguments"]["to"].endswith(".com")
    assert 3 <= call["arguments"]["priority"] <= 17


@pytest.mark.requirement("B-15")
def test_offered_tools_leave_room_for_an_answer_in_words(chat_worker: Any, smollm2: StoredModel) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text, calls, reason = chat(chat_worker, smollm2, {"tools": [WEATHER], "messages": question})
    assert "Paris" in text
    assert (calls, reason) == ([], "stop")


@pytest.mark.requirement("B-15")
def test_a_model_that_saw_a_call_may_make_another_and_no_tag_reaches_the_client(
    chat_worker: Any, smollm2: StoredModel
) -> None:
    def turn(city: str, number: int) -> list[dict[str, Any]]:
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        return [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "22 degrees"},
            {"role": "assistant", "content": f"It is 22 degrees in {city}."},
        ]  # fmt: skip

    history = [message for number, city in enumerate(("Rome", "Oslo", "Bern")) for message in turn(city, number)]
    body = {"tools": [WEATHER], "messages": [*history, {"role": "user", "content": "What is the weather in Paris?"}]}
    text, calls, reason = chat(chat_worker, smollm2, body)
    assert "tool_call" not in text
    assert [call["arguments"]["city"] for call in calls] == ["Paris"]
    assert reason == "tool_calls"


@pytest.mark.requirement("R-I6")
def test_an_answer_fits_its_schema(chat_worker: Any, smollm2: StoredModel) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "population": {"type": "integer", "minimum": 1, "maximum": 30},
            "tags": {"type": "array", "items": {"enum": ["big", "small"]}, "minItems": 2, "maxItems": 3},
            "founded": {"type": "string", "format": "date"},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["city", "population", "tags", "founded", "share"],
        "additionalProperties": False,
    }
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}}
    text, calls, reason = chat(chat_worker, smollm2, wanted)
    found = json.loads(text)
    assert list(found) == list(schema["properties"])  # type: ignore[call-overload]
    assert found["city"] == "Paris"
    assert 1 <= found["population"] <= 30
    assert set(found["tags"]) <= {"big", "small"}
    assert 0 <= found["share"] <= 1
    assert (calls, reason) == ([], "stop")


@pytest.mark.requirement("R-I6")
def test_json_mode_gives_an_object(chat_worker: Any, smollm2: StoredModel) -> None:
    body = {"response_format": {"type": "json_object"}, "max_tokens": 400}
    text, _, reason = chat(chat_worker, smollm2, body)
    assert reason == "stop"
    assert isinstance(json.loads(text), dict)


@pytest.mark.requirement("R-I6")
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^" + ".?" * 100 + "$"},
        {"type": "string", "maxLength": 2000},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2000},
        {"enum": [f"value number {number}" for number in range(1000)]},
        {"anyOf": [{"type": "object", "properties": {"kind": {"const": f"k{n}"}, "v": {"type": "string"}},
                    "required": ["kind", "v"]} for n in range(200)]},
        {"type": "object", "properties": {f"property{n}": {"type": "string"} for n in range(500)},
         "additionalProperties": True},
    ],
    ids=["optional parts", "long string", "long array", "large enum", "large union", "many properties"],
)  # fmt: skip
def test_a_schema_at_the_bounds_neither_stops_nor_ends_the_worker(
    schema: dict[str, Any], chat_worker: Any, smollm2: StoredModel
) -> None:
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}, "max_tokens": 12}
    _, _, reason = chat(chat_worker, smollm2, wanted)
    assert reason in ("stop", "length")
    assert chat_worker.call("GET", "/health")[0] == 200
