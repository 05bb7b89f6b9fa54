"""Streams of events: whole events pass byte for byte, however the bytes arrive."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.gateway.sse import DONE, EventSplitter, Passage, comment, decoded, event, events_in, payload_of

ENVELOPE = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(**more: Any) -> bytes:
    return b"data: " + json.dumps({**ENVELOPE, **more}).encode() + b"\n\n"


def said(text: str, finish: str | None = None) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


PROGRESS = chunk(choices=[], prompt_progress={"total": 9, "cache": 0, "processed": 4, "time_ms": 1})
USAGE = chunk(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 2}, timings={"predicted_n": 2})
STREAM = PROGRESS + said("one ") + b": ping\n\n" + said('two "usage" \\"error\\"') + said("", "stop") + USAGE + DONE
KEPT = STREAM.replace(PROGRESS, b"")


@pytest.mark.requirement("R-G1")
def test_a_stream_cut_in_two_at_any_byte_passes_the_same() -> None:
    for at in range(len(STREAM) + 1):
        passage = Passage(keep_usage=True)
        assert passage.feed(STREAM[:at]) + passage.feed(STREAM[at:]) == KEPT
        assert passage.done
        assert passage.usage == {"prompt_tokens": 9, "completion_tokens": 2}
        assert passage.progress == (4, 9)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30), st.booleans(), st.booleans())
def test_a_stream_cut_anywhere_passes_the_same(cuts: list[int], keep: bool, windows: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if windows else STREAM
    wanted = KEPT if keep else KEPT.replace(USAGE, b"")
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    passage = Passage(keep_usage=keep)
    out = b"".join(passage.feed(stream[a:b]) for a, b in pairwise(edges))
    assert out == (wanted.replace(b"\n", b"\r\n") if windows else wanted)


@given(st.text(), st.text())
def test_no_text_of_a_model_is_taken_for_a_field(first: str, second: str) -> None:
    body = said(first) + said(f'"usage": {{}} "error" "prompt_progress" {second}') + said("usage") + said("error")
    passage = Passage(keep_usage=False)
    assert passage.feed(body) == body
    assert passage.error is None


def test_bytes_pass_in_blocks_and_an_open_event_waits() -> None:
    splitter = EventSplitter()
    assert splitter.feed(said("a") + said("b") + b"data: {") == said("a") + said("b")
    assert splitter.rest == b"data: {"
    assert splitter.feed(b"}\n\n") == b"data: {}\n\n"


def test_usage_in_the_event_that_also_ends_the_text_is_taken_out_alone() -> None:
    last = b'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n'
    passage = Passage(keep_usage=False)
    kept = decoded(passage.feed(last))
    assert kept == {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
    assert passage.usage == {"prompt_tokens": 1}


def test_usage_null_stays_as_it_is() -> None:
    raw = chunk(choices=[{"index": 0, "delta": {"content": "x"}}], usage=None)
    assert Passage(keep_usage=False).feed(raw * 50) == raw * 50


@pytest.mark.requirement("R-G3")
def test_after_an_error_nothing_passes() -> None:
    passage = Passage(keep_usage=True)
    failed = event({"error": {"code": 500, "message": "boom", "type": "server_error"}})
    assert passage.feed(said("a") + failed + said("b") + DONE) == said("a")
    assert passage.error == {"code": 500, "message": "boom", "type": "server_error"}
    assert passage.feed(said("c")) == b""


def test_an_event_that_is_not_json_is_an_error_where_it_must_be_read() -> None:
    with pytest.raises(EngineReplyInvalid):
        decoded(b'data: {"choices": [{\n\n')
    with pytest.raises(EngineReplyInvalid):
        decoded(b"data: [1]\n\n")
    assert decoded(b": comment\n\n") is None
    assert decoded(DONE) is None


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homelab_llm.gateway.sse.MAX_EVENT_BYTES", 1000)
    splitter = EventSplitter()
    with pytest.raises(EngineReplyInvalid):
        for _ in range(20):
            splitter.feed(b"data: " + b"x" * 100)


def test_payloads_of_several_lines_are_joined() -> None:
    assert payload_of(b"event: x\ndata: one\ndata:two\n\n") == b"one\ntwo"
    assert list(events_in(b"data: 1\r\n\r\n\ndata: 2\n\n")) == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.requirement("R-S1")
@given(st.text())
def test_a_comment_is_one_line_whatever_it_says(text: str) -> None:
    raw = comment(text)
    assert raw.startswith(b": ")
    assert b"\n" not in raw[:-2]
    assert b"\r" not in raw
