"""Text as it leaves: whole characters, stop strings, log probabilities; the same however it is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.inference.workers.mlx.answer import Answer
from homelab_llm.inference.workers.mlx.detokenizer import Detokenizer
from homelab_llm.inference.workers.mlx.events import Token
from homelab_llm.inference.workers.mlx.stops import StopScanner

END = 256


def bytes_to_text(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes, and one special token that shows nothing."""
    return bytes(i for i in ids if i != END).decode("utf-8", "replace")


def said(text: str, stops: Sequence[str], *, finish: str = "stop") -> tuple[str, str]:
    answer = Answer(bytes_to_text, stops)
    out = []
    for i, byte in enumerate(raw := text.encode()):
        last = finish == "length" and i == len(raw) - 1
        out.append(answer.feed(Token(byte, "length" if last else None)).text)
        if answer.over():
            break
    else:
        out.append(answer.feed(Token(END, "stop")).text)
    return "".join(out), answer.finish


@given(st.text())
def test_bytes_fed_one_by_one_give_the_text_and_never_half_a_character(text: str) -> None:
    detokenizer = Detokenizer(bytes_to_text)
    pieces = [detokenizer.feed(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=200))
def test_broken_bytes_wait_a_little_and_are_then_replaced(raw: bytes) -> None:
    detokenizer = Detokenizer(bytes_to_text)
    text = "".join(detokenizer.feed(byte) for byte in raw) + detokenizer.flush()
    assert text.replace("\ufffd", "") == raw.decode("utf-8", "ignore")


def test_special_tokens_show_nothing_and_leave_no_trace() -> None:
    detokenizer = Detokenizer(bytes_to_text)
    assert [detokenizer.feed(i) for i in (END, ord("a"), END, END, ord("b"))] == ["", "a", "", "", "b"]
    assert detokenizer.flush() == ""


@pytest.mark.requirement("R-I3")
def test_the_real_tokenizer_streams_what_it_decodes_at_once(smollm2_mlx: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(smollm2_mlx / "tokenizer.json"))
    text = "Grüße, 世界! 👩‍👩‍👧‍👦 naïve\n\n  indented <|im_end|> 12.5"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(lambda some: str(tokenizer.decode(some, skip_special_tokens=True)))
    assert "".join(map(detokenizer.feed, ids)) + detokenizer.flush() == tokenizer.decode(ids)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4), st.data())
def test_stop_strings_are_found_however_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    results = set()
    for borders in (cuts, [0, len(text)], list(range(len(text) + 1))):
        scanner = StopScanner(stops)
        out = "".join(scanner.feed(text[a:b]) for a, b in itertools.pairwise(borders))
        results.add((out + scanner.flush(), scanner.matched))
    ((shown, matched),) = results
    assert text.startswith(shown)
    assert (matched == "") == (shown == text and not any(stop in text for stop in stops))


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", [" th", "two"], "one "),
        ("one two", ["twofold"], "one two"),
        ("naïve é", ["ïv"], "na"),
        ("twtwo", ["two"], "tw"),
        ("two", ["two"], ""),
    ],
)
def test_an_answer_ends_before_its_stop_string(text: str, stops: list[str], expected: str) -> None:
    assert said(text, stops) == (expected, "stop")


def test_text_that_waited_for_a_stop_string_comes_when_the_length_is_reached() -> None:
    assert said("one tw", ["two"], finish="length") == ("one tw", "length")
    assert said("one two", ["two"], finish="length") == ("one ", "stop")


def test_a_character_cut_off_by_the_length_is_replaced() -> None:
    answer = Answer(bytes_to_text, [])
    assert answer.feed(Token(ord("a"))).text == "a"
    assert answer.feed(Token("é".encode()[0], "length")).text == "\ufffd"


def test_log_probabilities_come_with_the_text_their_tokens_begin_in() -> None:
    def describe(token: int, logprob: float) -> dict[str, Any]:
        return {"id": token, "logprob": logprob}

    answer = Answer(bytes_to_text, ["two"], describe)
    pieces = [answer.feed(Token(byte, None, -1.0, ((byte, -1.0), (0, -2.0)))) for byte in b"one two"]
    ids = [entry["id"] for piece in pieces for entry in piece.logprobs]
    assert bytes(ids) == b"one "
    assert pieces[0].logprobs[0]["top_logprobs"] == [{"id": ord("o"), "logprob": -1.0}, {"id": 0, "logprob": -2.0}]
    assert [piece.text for piece in pieces] == ["o", "n", "e", " ", "", "", ""]
