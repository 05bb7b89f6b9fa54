"""Output: what reaches a terminal is safe, what reaches a program is JSON."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import DiskFull, ModelNotFound
from homelab_llm.interface.cli.output import Output, OutputClosed, as_json, escape, escape_line, format_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:  # noqa: ARG002
        raise BrokenPipeError


def make(
    environ: dict[str, str] | None = None, *, json: bool = False, terminal: bool = False
) -> tuple[Output, io.StringIO, io.StringIO]:
    kind = Terminal if terminal else io.StringIO
    out, err = kind(), kind()
    return Output(out, err, json=json, environ=environ or {}), out, err


@given(st.text())
def test_no_control_character_of_a_model_reaches_the_terminal(text: str) -> None:
    shown = escape(text)
    assert all(c in "\n\t" or (ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F) for c in shown)
    shown.encode("utf-8")


@given(st.text())
def test_json_output_has_no_control_character_and_reads_back_the_same(text: str) -> None:
    shown = as_json({"answer": text})
    assert all(ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F for c in shown)
    assert json.loads(shown) == {"answer": text}


def test_an_escape_sequence_in_an_answer_is_shown_and_not_obeyed() -> None:
    output, out, _ = make(terminal=True)
    output.answer("\x1b]0;owned\x07red \x1b[31m\x9b2J text\n")
    assert out.getvalue() == "\\x1b]0;owned\\x07red \\x1b[31m\\x9b2J text\n"


def test_a_table_cell_stays_on_its_line_and_columns_line_up() -> None:
    assert format_table(("NAME", "SIZE"), [("a\nb", "1 B"), ("long-name", "20 GB")]) == [
        "NAME       SIZE",
        "a\\nb       1 B",
        "long-name  20 GB",
    ]
    assert escape_line("a\tb") == "a\\tb"


def test_colours_only_on_a_terminal_and_never_with_no_color() -> None:
    cases: list[tuple[dict[str, str], bool, bool]] = [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
    ]
    for environ, terminal, coloured in cases:
        output, out, err = make(environ, terminal=terminal)
        output.table(("A",), [("b",)], {})
        output.error(ModelNotFound("no such model"), 4)
        assert ("\x1b[" in out.getvalue() + err.getvalue()) is coloured


@pytest.mark.requirement("R-F4")
def test_with_json_an_error_is_an_object_on_standard_output_with_its_facts_and_exit_code() -> None:
    output, out, err = make(json=True)
    output.error(DiskFull("no room", hint="mlxctl prune", needed_bytes=5, free_bytes=3), 7)
    assert json.loads(out.getvalue()) == {
        "error": {
            "code": "disk_full",
            "message": "no room",
            "hint": "mlxctl prune",
            "retryable": False,
            "facts": {"needed_bytes": 5, "free_bytes": 3},
            "exit_code": 7,
        }
    }
    assert err.getvalue() == ""


@pytest.mark.requirement("R-U1")
def test_an_error_says_its_reason_and_the_next_command() -> None:
    output, out, err = make()
    output.error(DiskFull("no room", hint="mlxctl prune"), 7)
    assert out.getvalue() == ""
    assert err.getvalue() == "error: no room\n  try: mlxctl prune\n"


def test_a_reader_that_left_is_told_to_the_caller_and_never_a_traceback() -> None:
    output = Output(Closed(), io.StringIO(), json=False, environ={})
    with pytest.raises(OutputClosed):
        output.answer("text")


def test_a_reader_of_the_notes_that_left_stops_nothing() -> None:
    output = Output(io.StringIO(), Closed(), json=False, environ={})
    output.note("text")
    output.warning("text", "hint")
    assert output.notes_to_terminal is False


@pytest.mark.requirement("R-M3")
def test_a_transfer_without_a_terminal_is_a_line_at_every_tenth() -> None:
    output, out, err = make()
    with output.transfer("pulling x") as progress:
        for done in range(0, 1001):
            progress.update("fetching", done, 1000, "1.0 MB/s")
    assert out.getvalue() == ""
    assert err.getvalue().splitlines()[:2] == ["pulling x: fetching 0 % 1.0 MB/s", "pulling x: fetching 10 % 1.0 MB/s"]
    assert len(err.getvalue().splitlines()) == 11


@pytest.mark.requirement("R-M3")
def test_a_transfer_on_a_terminal_shows_bytes_speed_and_time_left() -> None:
    output, _, err = make({"TERM": "xterm"}, terminal=True)
    with output.transfer("pulling x") as progress:
        progress.update("fetching", 250_000_000, 1_000_000_000, "12.0 MB/s, 5s left")
    shown = err.getvalue()
    assert "pulling x" in shown
    assert "0.2/1.0 GB" in shown
    assert "12.0 MB/s, 5s left" in shown


def test_a_transfer_with_json_says_nothing_by_itself() -> None:
    output, out, err = make(json=True)
    with output.transfer("importing x") as progress:
        progress.update("copy", 1, 2)
    assert out.getvalue() + err.getvalue() == ""


def test_nothing_is_asked_without_a_terminal() -> None:
    output, _, _ = make()
    assert output.can_ask() is False
