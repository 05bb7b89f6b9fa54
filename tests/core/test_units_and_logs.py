from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core import logs
from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.units import format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("250ms", 0.25), (0, 0), ("-1", -1), ("-1m", -60), ("10", 10), (2.5, 2.5)],
)
def test_durations_read_as_clients_write_them(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "1h-3m", "m5"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_duration(text)


def test_sizes_read_and_print() -> None:
    assert parse_bytes("8 GiB") == 8 * 2**30
    assert parse_bytes("1.5kB") == 1500
    assert format_bytes(98_362_432) == "98.4 MB"
    assert format_bytes(12) == "12 B"
    assert [format_duration(s) for s in (0.25, 75, 7300, -1)] == ["250ms", "1m15s", "2h1m", "never"]
    with pytest.raises(InvalidInput):
        parse_bytes("a lot")


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdef123456",
        "authorization=Basic_zzzSECRETzzz",
        '{"api_key": "zzzSECRETzzz"}',
        "token=zzzSECRETzzz&x=1",
        "hl-zzzSECRETzzzSECRET failed",
        "hf_zzzSECRETzzzSECRET",
    ],
)
def test_credentials_never_reach_a_log(text: str) -> None:
    assert "SECRET" not in logs.redact(text)
    assert "abcdef" not in logs.redact(text)


def test_a_json_line_carries_the_request_and_extra_fields() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    token = logs.request_id.set("req-1")
    try:
        logging.getLogger("homelab_llm.test").info("ready %s", 1, extra={"model": "m"})
    finally:
        logs.request_id.reset(token)
        logging.getLogger("homelab_llm").handlers.clear()
    line = json.loads(stream.getvalue())
    assert line["message"] == "ready 1"
    assert (line["level"], line["request_id"], line["model"]) == ("info", "req-1", "m")


@given(st.text())
def test_redaction_accepts_any_text(text: str) -> None:
    assert isinstance(logs.redact(text), str)
