"""Tool calls out of streams: the same message at every split, and never a tag in it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.inference.kit.grammar import Grammar
from homelab_llm.inference.kit.tool_calls import ToolCallStream, new_call_id
from homelab_llm.inference.kit.tools import auto_grammar, describe, forced_grammar, text_grammar, tools_of

Accepts = Callable[[Grammar, str], bool]
Write = Callable[[Grammar, int], str]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MAIL = {"type": "function", "function": {"name": "send_mail"}}
NAMES = ("get_weather", "send_mail")


def merged(pieces: Iterable[str], *, forced: bool, reason: str = "stop") -> tuple[dict[str, Any], str]:
    """The whole message that the deltas make, as a client puts them together."""
    counter = itertools.count()
    stream = ToolCallStream(NAMES, forced=forced, new_id=lambda: f"call_{next(counter)}")
    deltas = [delta for piece in pieces for delta in stream.feed(piece)]
    last, told = stream.finish(reason)
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    for delta in [*deltas, *last]:
        assert delta.keys() <= {"content", "tool_calls"}
        message["content"] += delta.get("content", "")
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(message["tool_calls"]):
                assert part["type"] == "function"
                call = {"id": part["id"], "name": part["function"]["name"], "arguments": ""}
                message["tool_calls"].append(call)
            message["tool_calls"][part["index"]]["arguments"] += part["function"]["arguments"]
    return message, told


def calls(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(call["name"], json.loads(call["arguments"])) for call in message["tool_calls"]]


def texts() -> st.SearchStrategy[str]:
    """What models write: text, calls in usual and unusual spelling, broken ones, and pieces of tags."""
    arguments = st.dictionaries(st.text('ab"\\{<', max_size=3), st.text('x"}\\</>é', max_size=5), max_size=2)
    inner = st.one_of(
        st.builds(lambda n, a: json.dumps({"name": n, "arguments": a}), st.sampled_from(NAMES), arguments),
        st.builds(lambda n, a: json.dumps({"arguments": a, "name": n}), st.sampled_from(NAMES), arguments),
        st.builds(lambda a: f' \n{{"name":"send_mail" , "parameters" : {json.dumps(a)} }}\n', arguments),
        st.builds(lambda a: json.dumps({"name": "get_weather", "arguments": json.dumps(a)}), arguments),
        st.sampled_from(
            ["", "junk", '{"name": "unknown", "arguments": {}}', '{"name": "send_mail", "arguments": {"a": 1', "[1]"]
        ),
    )
    call = inner.map(lambda text: f"<tool_call>{text}</tool_call>")
    return st.lists(
        st.one_of(st.text("ab <\n", max_size=8), call, st.sampled_from(["<tool", "<", "tool_call>", "\n"]))
    ).map("".join)


@pytest.mark.requirement("R-I5")
@settings(max_examples=300, deadline=None)
@given(text=texts(), data=st.data(), reason=st.sampled_from(["stop", "length"]))
def test_the_same_text_gives_the_same_message_at_every_split(text: str, data: st.DataObject, reason: str) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = merged([text], forced=False, reason=reason)
    assert merged(pieces, forced=False, reason=reason) == whole
    assert merged(list(text), forced=False, reason=reason) == whole
    assert "<tool_call>" not in whole[0]["content"]
    assert "</tool_call>" not in whole[0]["content"]


@pytest.mark.requirement("R-I5")
@pytest.mark.parametrize(
    ("text", "content", "found"),
    [
        ("Paris.", "Paris.", []),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>', "",
         [("get_weather", {"city": "Paris"})]),
        ('Sure.\n<tool_call>\n{"name": "send_mail", "arguments": {}}\n</tool_call>\n', "Sure.", [("send_mail", {})]),
        ('<tool_call>{"name": "send_mail", "arguments": {"a": "}</tool_call>"}}</tool_call> <tool_call>'
         '{"name": "get_weather", "arguments": {"city": "\\"{"}}</tool_call>', "",
         [("send_mail", {"a": "}</tool_call>"}), ("get_weather", {"city": '"{'})]),
        ('<tool_call>{"arguments": "{\\"city\\": 1}", "name": "get_weather"}</tool_call>', "",
         [("get_weather", {"city": 1})]),
        ('A<tool_call>{"name": "send_mail", "arguments": {}}</tool_call>B', "A\nB", [("send_mail", {})]),
        ("<<tool_call></tool_call>tool_call></tool_call>", "<\ntool_call>", []),
        ("<tool_call>none of these</tool_call>", "none of these", []),
        ("a < b <tool", "a < b <tool", []),
    ],
)  # fmt: skip
def test_calls_and_text_come_apart(text: str, content: str, found: list[tuple[str, Any]]) -> None:
    message, reason = merged([text], forced=False)
    assert message["content"] == content
    assert calls(message) == found
    assert reason == ("tool_calls" if found else "stop")


@pytest.mark.requirement("R-I5")
def test_a_forced_call_streams_its_arguments_as_they_are_written() -> None:
    stream = ToolCallStream(NAMES, forced=True, new_id=lambda: "call_1")
    assert stream.feed('{"name": "get_weath') == []
    (begin,) = stream.feed('er", "arguments": {')[:1]
    assert begin["tool_calls"][0]["id"] == "call_1"
    assert begin["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ""}
    (piece,) = stream.feed('"city": "Par')
    assert piece == {"tool_calls": [{"index": 0, "function": {"arguments": '"city": "Par'}}]}
    (end,) = stream.feed('is"}}\n')
    assert end["tool_calls"][0]["function"]["arguments"] == 'is"}'
    assert stream.finish() == ([], "tool_calls")


def test_a_forced_call_that_ran_out_of_tokens_says_so_and_one_that_broke_off_is_an_error() -> None:
    message, reason = merged(['{"name": "get_weather", "arguments": {"city": "Par'], forced=True, reason="length")
    assert reason == "length"
    assert message["tool_calls"][0]["arguments"] == '{"city": "Par'
    with pytest.raises(EngineReplyInvalid):
        merged(['{"name": "get_weather", "arguments": {"city": "Par'], forced=True)
    with pytest.raises(EngineReplyInvalid):
        merged(["I would rather not."], forced=True)
    with pytest.raises(EngineReplyInvalid):
        merged([], forced=True)


def test_ids_of_calls_differ() -> None:
    assert new_call_id().startswith("call_")
    assert new_call_id() != new_call_id()


@pytest.mark.requirement("B-15")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), many=st.booleans())
def test_whatever_the_grammar_of_free_calls_allows_comes_apart_into_whole_calls(
    seed: int, many: bool, write: Write, accepts: Accepts
) -> None:
    grammar = auto_grammar(tools_of({"tools": [WEATHER, MAIL]}), many=many)
    text = write(grammar, seed)
    message, _ = merged([text], forced=False)
    assert len(message["tool_calls"]) == text.count('{"name": ')
    assert many or len(message["tool_calls"]) <= 1
    assert all(name == "send_mail" or isinstance(arguments["city"], str) for name, arguments in calls(message))
    assert "tool_call" not in message["content"]
    assert accepts(grammar, text)


@pytest.mark.requirement("B-15")
def test_free_text_may_be_anything_but_half_a_call(accepts: Accepts) -> None:
    tools = tools_of({"tools": [WEATHER]})
    grammar = auto_grammar(tools, many=True)
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    for text in (
        "",
        "Paris <b>is</b> <<nice>> <tool> 3 < 4 </tool",
        "<tool_kit>",
        call,
        f"One moment.\n{call}\n{call}",
    ):
        assert accepts(grammar, text), text
    for text in (
        "<tool_call>",
        "<tool_call>Paris",
        call[:-3],
        call.replace("city", "town"),
        "a <tool_call b",
        f"{call}x",
    ):
        assert not accepts(grammar, text), text
    assert accepts(text_grammar(), "Paris < x")
    assert not accepts(text_grammar(), call)


@pytest.mark.requirement("B-15")
def test_a_forced_call_is_one_of_the_tools_with_valid_arguments(accepts: Accepts) -> None:
    grammar = forced_grammar(tools_of({"tools": [WEATHER, MAIL]}))
    assert accepts(grammar, '{"name": "get_weather", "arguments": {"city": "Paris"}}')
    assert accepts(grammar, '{"name": "send_mail", "arguments": {}}')
    for text in ("Paris", '{"name": "get_weather", "arguments": {}}', '{"name": "other", "arguments": {}}', "{}"):
        assert not accepts(grammar, text), text


def test_the_description_names_every_tool_and_how_to_call_it() -> None:
    tools = tools_of({"tools": [WEATHER, MAIL]})
    for forced in (True, False):
        text = describe(tools, forced=forced)
        assert all(name in text for name in NAMES)
        assert ("<tool_call>" in text) is not forced
