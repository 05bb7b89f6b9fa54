"""Answers: the event stream, errors in the middle of it, and what becomes of a request's options."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.errors import EngineReplyInvalid, InvalidInput, UnsupportedRequest, WorkerCrashed
from homelab_llm.core.facts import Capability, StoredModel
from homelab_llm.interface.cli.answering import (
    Answer,
    Target,
    endpoint_for,
    request_body,
    request_options,
    response_format,
    server_events,
    stream_answer,
)
from homelab_llm.interface.cli.chat import Conversation, command
from homelab_llm.interface.cli.output import Output
from homelab_llm.interface.daemon_client import DaemonClient
from homelab_llm.testing.models import stored_fake_model, write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import ScriptedDaemon

CHAT = "/v1/chat/completions"


def piece(text: str, finish: str | None = None) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def target(daemon: ScriptedDaemon) -> Target:
    return Target(DaemonClient(daemon.path), "m:1", CHAT)


def test_pieces_are_shown_as_they_are_and_counted(daemon: ScriptedDaemon) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    daemon.streams(
        CHAT,
        ": a comment",
        piece("Good "),
        "",
        piece("day", "stop"),
        "data: " + json.dumps({"choices": [], "usage": usage}),
        "data: [DONE]",
    )
    out, answer = io.StringIO(), Answer()
    stream_answer(target(daemon), {"model": "m:1"}, Output(out, io.StringIO(), json=False, environ={}), answer)
    assert out.getvalue() == answer.text == "Good day"
    assert (answer.finish_reason, answer.usage) == ("stop", usage)
    assert daemon.asked[-1][1]["stream"] is True


def test_an_error_in_the_middle_is_raised_and_what_was_said_is_kept(daemon: ScriptedDaemon) -> None:
    error = {"error": {"code": "worker_crashed", "message": "gone", "hint": "mlxctl logs abc12"}}
    daemon.streams(CHAT, piece("Good "), "event: error", "data: " + json.dumps(error))
    answer = Answer()
    with pytest.raises(WorkerCrashed) as caught:
        stream_answer(target(daemon), {}, Output(io.StringIO(), io.StringIO(), json=False, environ={}), answer)
    assert answer.text == "Good "
    assert caught.value.hint == "mlxctl logs abc12"


def test_a_stream_that_is_no_json_is_a_typed_error() -> None:
    with pytest.raises(EngineReplyInvalid):
        list(server_events(["data: {"]))


def test_the_format_option_is_json_or_a_schema_file(tmp_path: Path) -> None:
    assert response_format("json") == {"type": "json_object"}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    made = response_format(str(tmp_path / "s.json"))
    assert made["type"] == "json_schema"
    assert made["json_schema"]["schema"] == schema
    for content in ("[]", "{"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InvalidInput):
            response_format(str(tmp_path / "bad.json"))
    with pytest.raises(InvalidInput):
        response_format(str(tmp_path / "none.json"))


def test_options_that_were_not_given_are_not_sent() -> None:
    assert (
        request_options(temperature=None, repeat_penalty=None, max_tokens=None, seed=None, keep_alive=None, form=None)
        == {}
    )
    assert request_options(
        temperature=0.0, repeat_penalty=None, max_tokens=5, seed=0, keep_alive=-1.0, form="json"
    ) == {
        "temperature": 0.0,
        "max_tokens": 5,
        "seed": 0,
        "keep_alive": -1.0,
        "response_format": {"type": "json_object"},
    }


@pytest.fixture
def stored(tmp_path: Path) -> StoredModel:
    return stored_fake_model(write_fake_model(tmp_path / "m.gguf"), "m:1")


@pytest.mark.parametrize(
    ("kinds", "path"),
    [(("chat", "completion"), CHAT), (("completion",), "/v1/completions"), ((), "/v1/completions")],
)
def test_each_kind_of_model_is_asked_where_it_answers(
    stored: StoredModel, kinds: tuple[Capability, ...], path: str
) -> None:
    from dataclasses import replace

    model = replace(stored, facts=replace(stored.facts, capabilities=kinds))
    assert endpoint_for(model) == path


def test_an_embedding_model_is_not_asked_for_text(stored: StoredModel) -> None:
    from dataclasses import replace

    model = replace(stored, facts=replace(stored.facts, capabilities=("embedding",)))
    with pytest.raises(UnsupportedRequest) as caught:
        endpoint_for(model)
    assert "/v1/embeddings" in caught.value.hint


def test_a_completion_model_gets_the_conversation_as_text(daemon: ScriptedDaemon) -> None:
    asked = Target(DaemonClient(daemon.path), "m:1", "/v1/completions")
    body = request_body(asked, [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {"seed": 1})
    assert body == {"model": "m:1", "seed": 1, "prompt": "a\n\nb"}


def test_commands_of_a_chat_change_the_conversation_and_are_not_sent() -> None:
    said: list[str] = []
    talk = Conversation("be kind", [{"role": "user", "content": "hi"}])
    assert talk.messages()[0] == {"role": "system", "content": "be kind"}
    assert command("/system be brief", talk, said.append)
    assert talk.system == "be brief"
    assert command("/clear", talk, said.append)
    assert talk.turns == []
    assert command("/system", talk, said.append)
    assert talk.messages() == []
    assert command("/nonsense", talk, said.append)
    assert "no such command: /nonsense" in said[-1]
    assert not command("what is 1/2?", talk, said.append)
