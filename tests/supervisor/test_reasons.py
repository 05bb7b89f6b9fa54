"""Exit reasons as errors of the tree."""

from __future__ import annotations

from typing import Any

import pytest

from homelab_llm.core.errors import EngineError, LoadFailed, WorkerCrashed, WorkerOutOfMemory
from homelab_llm.inference.fleet.reasons import error_of, last_words


@pytest.mark.parametrize(
    ("reason", "loading", "kind", "text"),
    [
        ({"exit_code": 3, "tail": ""}, True, LoadFailed, "m: the e worker ended with exit code 3"),
        ({"exit_code": 0, "tail": "bye"}, False, WorkerCrashed, "m: the e worker ended with exit code 0: bye"),
        ({"signal": 9, "tail": "tok tok"}, False, WorkerCrashed, "m: the e worker was ended by SIGKILL"),
        (
            {"signal": 99, "tail": "x\nerror: y\nz"},
            True,
            LoadFailed,
            "m: the e worker was ended by signal 99: error: y",
        ),
        ({"exit_code": 1, "stage": "prepare"}, True, LoadFailed, "m: the conversion ended with exit code 1"),
        ({"signal": 6, "out_of_memory": True, "tail": "bad_alloc"}, True, WorkerOutOfMemory, "m ran out of memory"),
        ({"signal": 9, "out_of_memory": True}, False, WorkerOutOfMemory, "m ran out of memory"),
        (None, False, WorkerCrashed, "m: its worker host ended without giving a reason"),
    ],
)
def test_each_end_has_its_error(
    reason: dict[str, Any] | None, loading: bool, kind: type[EngineError], text: str
) -> None:
    error = error_of(reason, model="m", engine="e", log="abc12.log", loading=loading)
    assert type(error) is kind
    assert error.message == text
    assert error.facts["log"] == "abc12.log"
    assert error.hint


def test_last_words_hide_secrets_and_folders_and_are_bounded() -> None:
    said = last_words("error: token=hf_abcdefghijklmnopq not valid for '/home/me/private dir/models/m.gguf'\n\n")
    assert "hf_abc" not in said
    assert "/home" not in said
    assert said.startswith("error: token=***")
    assert len(last_words("error " + "x" * 10_000)) <= 240
    assert last_words("fail\x1b[31m\x00ed") == "fail[31med"


def test_a_telling_line_goes_before_a_later_one() -> None:
    assert last_words("loading\nfatal: no tensor\nbye") == "fatal: no tensor"
    assert last_words("loading\nbye") == "bye"
    assert last_words("loading\nbye", telling_only=True) == ""
