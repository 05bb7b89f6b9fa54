"""OpenAI's own client, unchanged, against real models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from homelab_llm.testing.daemon import Daemon

CHAT = "smollm2:135m"
EMBEDDING = "all-minilm:l6-v2"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.requirement("R-G2", "R-I3")
def test_a_chat_answers_with_text_and_usage(client: Any) -> None:
    reply = client.chat.completions.create(model=CHAT, messages=QUESTION, temperature=0, max_tokens=40)
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens == reply.usage.total_tokens
    assert reply.usage.completion_tokens > 0


@pytest.mark.requirement("R-G2", "R-I3")
def test_a_stream_says_the_same_as_the_whole_reply(client: Any) -> None:
    settings = {"model": CHAT, "messages": QUESTION, "temperature": 0, "max_tokens": 40, "seed": 1}
    whole = client.chat.completions.create(**settings)
    events = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **settings))
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    plain = list(client.chat.completions.create(stream=True, **settings))
    assert all(event.usage is None and event.choices for event in plain)


@pytest.mark.requirement("R-I8", "R-G2", "B-16")
def test_embeddings_are_unit_vectors_that_know_what_is_alike(client: Any) -> None:
    texts = ["A cat sits on the mat.", "A kitten is sitting on a rug.", "The stock market fell sharply."]
    data = client.embeddings.create(model=EMBEDDING, input=texts).data
    vectors = [item.embedding for item in data]
    assert [item.index for item in data] == [0, 1, 2]
    assert all(math.isclose(sum(x * x for x in v), 1, abs_tol=1e-3) and len(v) == 384 for v in vectors)
    alike = sum(a * b for a, b in zip(vectors[0], vectors[1], strict=True))
    unlike = sum(a * b for a, b in zip(vectors[0], vectors[2], strict=True))
    assert alike > unlike + 0.2
    floats = client.embeddings.create(model=EMBEDDING, input=texts[0], encoding_format="float").data[0].embedding
    assert all(math.isclose(a, b, abs_tol=1e-2) for a, b in zip(floats, vectors[0], strict=True))


@pytest.mark.requirement("R-I6", "R-G2")
@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_is_kept(client: Any, stream: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "population": {"type": "integer"}},
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=CHAT, messages=QUESTION, temperature=0, max_tokens=80, stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )  # fmt: skip
    text = (
        "".join(event.choices[0].delta.content or "" for event in reply if event.choices)
        if stream
        else reply.choices[0].message.content
    )
    answer = json.loads(text)
    assert set(answer) == {"city", "population"}
    assert isinstance(answer["city"], str)
    assert isinstance(answer["population"], int)


@pytest.mark.requirement("B-15", "R-I5", "R-G2")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_tool_is_called(client: Any, choice: object, stream: bool) -> None:
    reply = client.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "What is the weather in Paris?"}], temperature=0,
        max_tokens=80, tools=[WEATHER], tool_choice=choice, stream=stream,
    )  # fmt: skip
    if stream:
        deltas = [event.choices[0].delta for event in reply if event.choices]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        name = "".join(call.function.name or "" for call in calls)
        arguments = "".join(call.function.arguments or "" for call in calls)
        text = "".join(delta.content or "" for delta in deltas)
    else:
        (call,) = reply.choices[0].message.tool_calls
        name, arguments, text = call.function.name, call.function.arguments, reply.choices[0].message.content or ""
        assert reply.choices[0].finish_reason in ("tool_calls", "stop")
    assert name == "get_weather"
    assert isinstance(json.loads(arguments)["city"], str)
    assert text == ""


@pytest.mark.requirement("R-G3", "R-G2")
def test_an_unknown_model_raises_the_clients_own_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="smollm2:136m", messages=QUESTION)
    assert CHAT in str(caught.value)


@pytest.mark.requirement("B-1", "R-G3")
def test_a_prompt_beyond_the_context_is_refused_with_both_counts(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "word " * 30_000}])
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["code"] == "context_overflow"
    assert body["facts"]["prompt_tokens"] > body["facts"]["context_tokens"] > 1000


@pytest.mark.requirement("B-1", "R-I8")
def test_a_text_too_long_to_embed_is_refused_and_not_cut(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=EMBEDDING, input="word " * 2_000)
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["code"] == "context_overflow"
