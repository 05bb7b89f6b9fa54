"""Whole replies from streams, several answers in one, constrained text back to tool calls."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.gateway.sse import DONE, event, events_in, payload_of
from homelab_llm.gateway.weave import Weave

# Recorded from llama.cpp's server (xllamacpp 2026.10) with SmolLM2; ids shortened.
_HEAD = {"created": 7, "id": "chatcmpl-a", "model": "m", "system_fingerprint": "b0", "object": "chat.completion.chunk"}
_TIMINGS = {"cache_n": 32, "prompt_n": 1, "predicted_n": 2}
_LOGPROB_A = {
    "id": 5,
    "token": "Sorry",
    "bytes": [83],
    "logprob": -5.0,
    "top_logprobs": [{"token": "Hi", "logprob": -2.0}],
}
_LOGPROB_B = {"id": 6, "token": ",", "bytes": [44], "logprob": -0.8, "top_logprobs": [{"token": ",", "logprob": -0.8}]}


def _chat(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": finish, "index": 0, "delta": delta, **more}], **_HEAD}


STREAM = [
    {**_chat({"role": "assistant", "content": None}), "prompt_progress": {"total": 33, "processed": 33, "cache": 0}},
    _chat({"role": "assistant", "content": None}),
    _chat({"content": "Sorry"}, logprobs={"content": [_LOGPROB_A]}),
    _chat({"content": ","}, logprobs={"content": [_LOGPROB_B]}),
    _chat({}, "length"),
    {
        "choices": [],
        **_HEAD,
        "usage": {"completion_tokens": 2, "prompt_tokens": 33, "total_tokens": 35},
        "timings": _TIMINGS,
    },
]
OWN_WHOLE = {
    "choices": [
        {
            "finish_reason": "length",
            "index": 0,
            "message": {"role": "assistant", "content": "Sorry,"},
            "logprobs": {"content": [_LOGPROB_A, _LOGPROB_B]},
        }
    ],
    "created": 7,
    "id": "chatcmpl-a",
    "model": "m",
    "system_fingerprint": "b0",
    "object": "chat.completion",
    "usage": {"completion_tokens": 2, "prompt_tokens": 33, "total_tokens": 35},
    "timings": _TIMINGS,
}


def raw(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(map(event, chunks)) + DONE


def weave(**options: Any) -> Weave:
    made = Weave(**{"chat": True, "stream": False, "include_usage": False, **options})
    made.begin(0)
    return made


def sent(content: bytes) -> list[Any]:
    return [orjson.loads(payload_of(one)) for one in events_in(content) if b"[DONE]" not in one]


@pytest.mark.requirement("R-I3")
def test_a_whole_reply_put_together_is_what_the_engine_sends_whole() -> None:
    made = weave()
    assert made.feed(raw(STREAM)) == b""
    assert made.done
    assert made.reply() == OWN_WHOLE
    assert made.progress == (33, 33)


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_how_the_bytes_arrive_makes_no_difference(size: int) -> None:
    made, content = weave(), raw(STREAM)
    for at in range(0, len(content), size):
        made.feed(content[at : at + size])
    assert made.reply() == OWN_WHOLE


def test_tool_calls_and_reasoning_are_put_together_by_index() -> None:
    def call(index: int, **more: Any) -> dict[str, Any]:
        return _chat({"tool_calls": [{"index": index, **more}]})

    made = weave()
    made.feed(
        raw(
            [
                _chat({"role": "assistant", "content": None}),
                _chat({"reasoning_content": "I should "}),
                _chat({"reasoning_content": "call."}),
                call(0, id="a", type="function", function={"name": "get_weather", "arguments": ""}),
                call(1, id="b", type="function", function={"name": "add", "arguments": '{"x"'}),
                call(0, function={"arguments": '{"city":'}),
                call(1, function={"arguments": ":1}"}),
                call(0, function={"arguments": '"Paris"}'}),
                _chat({}, "tool_calls"),
            ]
        )
    )
    choice = made.reply()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "I should call.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}},
            {"id": "b", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}},
        ],
    }


def test_several_answers_share_an_id_and_their_tokens_are_added() -> None:
    made = weave(stream=True, include_usage=True)
    made.begin(0)
    first = made.feed(raw(STREAM))
    made.begin(1, new_prompt=False)
    other = [{**chunk, "id": "chatcmpl-b"} for chunk in STREAM]
    second = made.feed(raw(other))
    assert {chunk["id"] for chunk in sent(first + second)} == {"chatcmpl-a"}
    assert {chunk["choices"][0]["index"] for chunk in sent(second)} == {1}
    assert DONE not in first + second
    (last,) = sent(made.close())
    assert last["choices"] == []
    assert last["usage"] == {"completion_tokens": 4, "prompt_tokens": 33, "total_tokens": 37}
    assert made.close().endswith(DONE)


def test_usage_is_not_sent_unasked() -> None:
    made = weave(stream=True)
    assert b"usage" not in made.feed(raw(STREAM)) + made.close()
    assert made.usage is not None


def test_logprobs_of_text_completions_have_their_old_form() -> None:
    def text(piece: str, found: list[Any]) -> dict[str, Any]:
        choice = {"text": piece, "index": 0, "logprobs": {"content": found}, "finish_reason": None}
        return {"choices": [choice], "object": "text_completion", "id": "c"}

    made = weave(chat=False, old_logprobs=True)
    made.feed(raw([text("Sorry", [_LOGPROB_A]), text(",", [_LOGPROB_B])]))
    choice = made.reply()["choices"][0]
    assert choice["text"] == "Sorry,"
    assert choice["logprobs"] == {
        "tokens": ["Sorry", ","],
        "token_logprobs": [-5.0, -0.8],
        "top_logprobs": [{"Hi": -2.0}, {",": -0.8}],
        "text_offset": [0, 5],
    }


class Shout:
    """A reply shape that turns the text into one tool call, as forced tools do."""

    def __init__(self) -> None:
        self.text = ""

    def feed(self, content: str) -> list[dict[str, Any]]:
        self.text += content
        return [{"content": content.upper()}] if content == "," else []

    def finish(self, _reason: str = "stop") -> tuple[list[dict[str, Any]], str]:
        call = {"index": 0, "id": "x", "type": "function", "function": {"name": "say", "arguments": self.text}}
        return [{"tool_calls": [call]}], "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_shaped_text_leaves_as_tool_calls_streamed_or_not(stream: bool) -> None:
    made = weave(stream=stream, shape=Shout)
    out = made.feed(raw(STREAM))
    if stream:
        chunks = sent(out)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[0] == {"role": "assistant", "content": None}
        assert {"content": ","} in deltas
        assert deltas[-2]["tool_calls"][0]["function"] == {"name": "say", "arguments": "Sorry,"}
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert all("logprobs" not in chunk["choices"][0] for chunk in chunks)
    else:
        (choice,) = made.reply()["choices"]
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "say", "arguments": "Sorry,"}
        assert choice["finish_reason"] == "tool_calls"


@pytest.mark.requirement("R-G3")
@pytest.mark.parametrize(
    "chunk",
    [{"choices": [5]}, {"choices": {"a": 1}}, {"choices": [{"delta": {"tool_calls": [3]}}]}, {"choices": 7}],
    ids=["number", "object", "call", "no list"],
)
def test_a_chunk_that_is_none_is_a_typed_error(chunk: dict[str, Any]) -> None:
    with pytest.raises(EngineReplyInvalid):
        weave().feed(raw([chunk]))


def test_a_stream_without_answer_is_a_typed_error() -> None:
    made = weave()
    made.feed(raw([]))
    with pytest.raises(EngineReplyInvalid):
        made.reply()


def test_an_engines_error_stops_the_weave() -> None:
    made = weave(stream=True)
    assert made.feed(event({"error": {"message": "boom"}}) + raw(STREAM)) == b""
    assert made.error == {"message": "boom"}
