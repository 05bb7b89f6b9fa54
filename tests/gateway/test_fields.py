"""The fields of OpenAI's requests: what is taken, what is refused and by which name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, InvalidInput, UnknownField, UnsupportedRequest
from homelab_llm.gateway.dialects.openai import CHAT, parse_chat, parse_completion, parse_embedding

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HI, **fields}


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_k": 40, "min_p": 0.1, "repeat_penalty": 1.1}, {"top_k": 40, "min_p": 0.1, "repeat_penalty": 1.1}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"seed": -1}, {"seed": -1}),
        ({"seed": 2**63 - 1}, {"seed": (2**63 - 1) % (2**32 - 1)}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"temperature": None, "stop": None}, {}),
        ({"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"reasoning_effort": "low"}, {"chat_template_kwargs": {"reasoning_effort": "low"}}),
        ({"modalities": ["text"]}, {}),
    ],
)
def test_what_a_worker_gets_is_rebuilt_from_checked_fields(fields: dict[str, Any], passed: dict[str, Any]) -> None:
    assert parse_chat(chat(**fields)).body == {**chat(), **passed}


def test_what_concerns_the_gateway_stays_here() -> None:
    ask = parse_chat(chat(stream=True, stream_options={"include_usage": True}, n=3, keep_alive="5m"))
    assert (ask.stream, ask.include_usage, ask.choices, ask.keep_alive_s, ask.parts) == (True, True, 3, 300.0, 3)
    assert ask.body == chat()


def test_text_parts_become_one_text_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    ask = parse_chat(chat(messages=[{"role": "developer", "content": parts}]))
    assert ask.body["messages"] == [{"role": "system", "content": "one\ntwo"}]


def test_a_clients_own_earlier_answer_can_be_sent_back() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {
        "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": [call],
    }  # fmt: skip
    ask = parse_chat(chat(messages=[*HI, answer, {"role": "tool", "tool_call_id": "a", "content": "7"}]))
    assert ask.shaped
    assert ask.body["messages"][1] == {"role": "assistant", "content": None, "tool_calls": [call]}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature_": 1}, "unknown_field", "temperature_"),
    ({"temperature": 2.5}, "invalid_input", "temperature"),
    ({"temperature": -1}, "invalid_input", "temperature"),
    ({"temperature": "0.7"}, "invalid_input", "temperature"),
    ({"temperature": True}, "invalid_input", "temperature"),
    ({"temperature": math.nan}, "invalid_input", "temperature"),
    ({"top_p": math.inf}, "invalid_input", "top_p"),
    ({"max_tokens": 0}, "invalid_input", "max_tokens"),
    ({"max_tokens": -1}, "invalid_input", "max_tokens"),
    ({"max_tokens": 2**31}, "invalid_input", "max_tokens"),
    ({"max_tokens": 1.5}, "invalid_input", "max_tokens"),
    ({"n": 17}, "invalid_input", "n"),
    ({"n": 10**6}, "invalid_input", "n"),
    ({"top_k": -1}, "invalid_input", "top_k"),
    ({"seed": 2**63}, "invalid_input", "seed"),
    ({"stop": ""}, "invalid_input", "stop"),
    ({"stop": ["x"] * 17}, "body_too_large", "stop"),
    ({"stop": [1]}, "invalid_input", "stop[0]"),
    ({"logit_bias": {"a": 1}}, "invalid_input", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "invalid_input", "logit_bias.1"),
    ({"logit_bias": {str(i): 1 for i in range(2000)}}, "body_too_large", "logit_bias"),
    ({"top_logprobs": 3}, "invalid_input", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_input", "top_logprobs"),
    ({"stream": "yes"}, "invalid_input", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_input", "stream_options"),
    ({"keep_alive": "soon"}, "invalid_input", "keep_alive"),
    ({"keep_alive": math.inf}, "invalid_input", "keep_alive"),
    ({"model": None}, "invalid_input", "model"),
    ({"model": ""}, "invalid_input", "model"),
    ({"model": 7}, "invalid_input", "model"),
    ({"model": "m" * 10_000}, "body_too_large", "model"),
    ({"messages": []}, "invalid_input", "messages"),
    ({"messages": "hi"}, "invalid_input", "messages"),
    ({"messages": HI * 5000}, "body_too_large", "messages"),
    ({"messages": ["hi"]}, "invalid_input", "messages[0]"),
    ({"messages": [{"content": "x"}]}, "invalid_input", "messages[0].role"),
    ({"messages": [{"role": "king", "content": "x"}]}, "invalid_input", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "invalid_input", "messages[0].content"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "invalid_input", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "invalid_input", "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_request",
     "messages[0].content[0]"),
    ({"messages": [{"role": "tool", "content": "7"}]}, "invalid_input", "messages[0].tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "tol_calls": []}]}, "unknown_field", "messages[0].tol_calls"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_input", "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "invalid_input", "tools"),
    ({"tools": [{"type": "function", "function": {"name": f"a{i}"}} for i in range(1000)]}, "body_too_large", "tools"),
    ({"tool_choice": "required"}, "invalid_input", "tool_choice"),
    ({"response_format": {"type": "xml"}}, "invalid_input", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "invalid_input", "response_format.json_schema"),
    ({"functions": []}, "unsupported_request", "functions"),
    ({"audio": {}}, "unsupported_request", "audio"),
]  # fmt: skip


@pytest.mark.requirement("R-I3", "R-S1")
@pytest.mark.parametrize(("fields", "code", "field"), BAD, ids=[f"{f}:{i}" for i, (_, _, f) in enumerate(BAD)])
def test_a_wrong_field_is_refused_by_its_name(fields: dict[str, Any], code: str, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_chat(chat(**fields))
    assert caught.value.code == code
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    ("given", "closest"), [("temperature_", "temperature"), ("max_token", "max_tokens"), ("Stream", "stream")]
)
def test_an_unknown_field_names_the_closest(given: str, closest: str) -> None:
    with pytest.raises(UnknownField) as caught:
        parse_chat(chat(**{given: 1}))
    assert caught.value.facts["closest"] == [closest]
    assert closest in caught.value.hint


def test_an_unknown_field_is_echoed_short_and_escaped() -> None:
    with pytest.raises(UnknownField) as caught:
        parse_chat(chat(**{"\x1b[31m\r\n" + "x" * 100_000: 1}))
    assert len(caught.value.message) < 120
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_tool_schema_is_bounded() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(6000)}}
    with pytest.raises(InvalidInput) as caught:
        parse_chat(chat(tools=[{"type": "function", "function": {"name": "a", "parameters": schema}}]))
    assert caught.value.facts["field"] == "tools[0].function.parameters"


@pytest.mark.parametrize(
    ("body", "prompts", "prompt"),
    [
        ({"prompt": "x"}, [], "x"),
        ({"prompt": ["x"]}, [], "x"),
        ({"prompt": [1, 2, 3]}, [], [1, 2, 3]),
        ({"prompt": ["x", "y"]}, ["x", "y"], ["x", "y"]),
        ({"prompt": [[1], [2]]}, [[1], [2]], [[1], [2]]),
    ],
)
def test_a_completion_takes_one_prompt_or_several(body: dict[str, Any], prompts: list[Any], prompt: Any) -> None:
    ask = parse_completion({"model": "m", **body})
    assert ask.prompts == prompts
    assert ask.body["prompt"] == prompt


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_input"),
        ({"prompt": []}, "invalid_input"),
        ({"prompt": [1, "x"]}, "invalid_input"),
        ({"prompt": [-1]}, "invalid_input"),
        ({"prompt": [2**31]}, "invalid_input"),
        ({"prompt": ["x"] * 17}, "body_too_large"),
        ({"prompt": ["x"] * 9, "n": 2}, "invalid_input"),
        ({"prompt": "x", "echo": True}, "unsupported_request"),
        ({"prompt": "x", "suffix": "y"}, "unsupported_request"),
        ({"prompt": "x", "best_of": 4}, "unsupported_request"),
        ({"prompt": "x", "messages": HI}, "unknown_field"),
    ],
)
def test_a_completion_that_cannot_be_served_is_refused(body: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_completion({"model": "m", **body})
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_input"),
        ({"input": ""}, "invalid_input"),
        ({"input": []}, "invalid_input"),
        ({"input": [""]}, "invalid_input"),
        ({"input": ["x"] * 2049}, "body_too_large"),
        ({"input": 5}, "invalid_input"),
        ({"input": "x", "encoding_format": "hex"}, "invalid_input"),
        ({"input": "x", "dimensions": 0}, "invalid_input"),
        ({"input": "x", "temperature": 1}, "unknown_field"),
    ],
)
def test_an_embedding_that_cannot_be_made_is_refused(body: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_embedding({"model": "m", **body})
    assert caught.value.code == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(CHAT.fields)), JSON, max_size=6))
def test_any_json_is_either_checked_or_refused_with_a_typed_error(given_fields: dict[str, Any]) -> None:
    body = {**chat(), **given_fields}
    try:
        ask = parse_chat(body)
    except HomelabError as error:
        assert error.facts.get("field")
    else:
        json.dumps(ask.body, allow_nan=False)
        assert set(ask.body) <= set(CHAT.fields)


def test_old_fields_are_refused_with_what_to_use() -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        parse_chat(chat(function_call="auto"))
    assert caught.value.hint == "use tool_choice"
