"""Requests to the MLX worker: what is taken, what is refused and with which field."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, InvalidInput, UnsupportedRequest
from homelab_llm.inference.workers.mlx.request import parse_chat, parse_completion
from homelab_llm.inference.workers.mlx.sampling import Sampling

HELLO = [{"role": "user", "content": "hello"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "prompt", "messages", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n",
    "presence_penalty", "frequency_penalty", "seed", "stop", "n", "logit_bias", "ignore_eos", "stream",
    "stream_options", "logprobs", "top_logprobs", "tools", "response_format", "chat_template_kwargs", "unknown",
]  # fmt: skip


def test_nothing_asked_for_means_llama_cpps_defaults() -> None:
    ask = parse_completion({"prompt": "x"})
    assert ask.sampling == Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=None)
    assert (ask.max_tokens, ask.stops, ask.logprobs, ask.stream) == (0, (), None, False)


@pytest.mark.requirement("R-I3")
def test_every_setting_arrives() -> None:
    ask = parse_chat(
        {
            "messages": HELLO,
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.5,
            "min_p": 0.25,
            "repeat_penalty": 1.5,
            "repeat_last_n": 9,
            "presence_penalty": 1,
            "frequency_penalty": -1,
            "seed": 3,
            "logit_bias": {"5": -100},
            "max_tokens": 9,
            "max_completion_tokens": 8,
            "stop": ["a", "b", "a"],
            "logprobs": True,
            "top_logprobs": 2,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            "chat_template_kwargs": {"mood": "calm"},
        }
    )
    assert ask.sampling == Sampling(0.5, 7, 0.5, 0.25, 1.5, 9, 1.0, -1.0, 3, ((5, -100.0),))
    assert (ask.max_tokens, ask.stops, ask.logprobs, ask.ignore_end) == (8, ("a", "b"), 2, True)
    assert (ask.stream, ask.include_usage, ask.progress) == (True, True, True)
    assert ask.template_values == (("mood", "calm"),)


def test_text_parts_are_joined_and_an_empty_content_is_empty_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert [m["content"] for m in parse_chat({"messages": messages}).messages] == ["a\nb", ""]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 1e9),
        ("top_p", 1.01),
        ("top_k", 1.5),
        ("min_p", -1),
        ("repeat_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("seed", 1 << 70),
        ("max_tokens", 0),
        ("max_tokens", -2),
        ("max_tokens", 1.0),
        ("stop", ""),
        ("stop", ["x"] * 33),
        ("stop", [1]),
        ("stop", "x" * 1025),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": None}),
        ("logit_bias", [5]),
        ("stream", 1),
        ("stream_options", []),
        ("logprobs", 21),
        ("prompt", ["a", "b"]),
        ("prompt", [-1]),
        ("prompt", [1.5]),
        ("prompt", {}),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_completion({"prompt": "x", field: value})
    assert refused.value.facts["field"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_schema"}),
        ("grammar", 'root ::= "a"'),
        ("typical_p", 0.5),
        ("mirostat", 2),
        ("best_of", 3),
    ],
)
def test_what_this_worker_cannot_do_is_refused_and_not_ignored(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedRequest) as refused:
        parse_chat({"messages": HELLO, field: value})
    assert refused.value.facts["field"] == field


def test_harmless_values_of_those_fields_pass() -> None:
    harmless = {"n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "typical_p": 1.0}
    assert parse_chat({"messages": HELLO, **harmless}).kind == "chat"


@pytest.mark.parametrize(
    "messages",
    [None, [], "x", ["x"], [{}], [{"role": 1}], [{"role": "user", "content": 1}], [{"role": "user", "content": [1]}]],
)
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_chat({"messages": messages})


def test_pictures_are_refused_as_not_supported() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(UnsupportedRequest):
        parse_chat({"messages": [{"role": "user", "content": [part]}]})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_no_body_makes_anything_but_an_ask_or_a_typed_error(body: dict[str, Any], chat: bool) -> None:
    try:
        given_body = orjson.loads(orjson.dumps(body))
    except (orjson.JSONEncodeError, TypeError):
        return
    try:
        ask = parse_chat(given_body) if chat else parse_completion(given_body)
    except HomelabError as error:
        assert isinstance(error, InvalidInput)
    else:
        assert ask.sampling.temperature >= 0
