"""Every error of the product has a status, a type and headers at the front door."""

from __future__ import annotations

import pytest

from homelab_llm.core import errors
from homelab_llm.core.errors import HomelabError, error_classes
from homelab_llm.gateway.engine_errors import error_from, error_of
from homelab_llm.gateway.errors import STATUSES, body_of, headers_of, status_of, type_of


@pytest.mark.requirement("R-G3")
@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.__name__)
def test_every_class_of_the_tree_has_a_status_of_its_own_in_the_table(cls: type[HomelabError]) -> None:
    assert cls in STATUSES
    assert 400 <= status_of(cls) <= 599
    body = body_of(cls("it failed", hint="do this"))["error"]
    assert body["code"] == cls.code
    assert body["type"] == type_of(status_of(cls))
    assert body["hint"] == "do this"


def test_param_is_the_field_at_fault() -> None:
    assert body_of(errors.InvalidInput("no", field="top_p"))["error"]["param"] == "top_p"
    assert body_of(errors.InvalidInput("no"))["error"]["param"] is None


@pytest.mark.requirement("B-6")
@pytest.mark.parametrize(("told", "sent"), [(7.2, b"8"), (0, b"1"), (None, b"2"), (10**9, b"3600"), (1e400, b"2")])
def test_an_overload_says_when_to_come_back(told: float | None, sent: bytes) -> None:
    headers = dict(headers_of(errors.QueueFull("full", queue_length=9, retry_after_s=told)))
    assert headers[b"retry-after"] == sent
    assert headers[b"x-should-retry"] == b"true"


def test_clients_are_told_not_to_repeat_what_cannot_succeed() -> None:
    assert dict(headers_of(errors.InsufficientMemory("no room")))[b"x-should-retry"] == b"false"
    assert dict(headers_of(errors.InvalidInput("no"))) == {}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BodyTooLarge("long", limit_bytes=9), 413),
        (errors.BodyTooLarge("deep", limit=9), 400),
        (errors.BodyTooLarge("heads", limit_bytes=9, field="headers"), 431),
        (errors.EndpointNotFound("none"), 404),
        (errors.EndpointNotFound("not so", allowed="GET"), 405),
    ],
)
def test_facts_refine_the_status(error: HomelabError, status: int) -> None:
    assert status_of(error) == status


@pytest.mark.requirement("B-1")
@pytest.mark.parametrize(
    ("body", "prompt", "context"),
    [
        (
            b'{"error":{"code":400,"message":"request (3031 tokens) exceeds the available context size (512 tokens), '
            b'try increasing it","type":"exceed_context_size_error","n_prompt_tokens":3031,"n_ctx":512}}',
            3031,
            512,
        ),
        (
            b'{"error":{"code":500,"message":"input (812 tokens) is too large to process. increase the physical batch '
            b'size (current batch size: 512)","type":"server_error"}}',
            812,
            512,
        ),
        (b'{"error":{"code":400,"message":"too many tokens: 700","type":"invalid_request_error"}}', 700, 256),
    ],
    ids=["chat", "embedding", "count only"],
)
def test_a_prompt_that_is_too_long_is_the_same_error_from_every_engine(body: bytes, prompt: int, context: int) -> None:
    error = error_of(400, body, 256)
    assert error.code == "context_overflow"
    assert error.facts == {"prompt_tokens": prompt, "context_tokens": context}
    assert "maximum context length" in error.message


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (501, b'{"error":{"code":501,"message":"no embeddings","type":"not_supported_error"}}', "unsupported_request"),
        (400, b'{"error":{"code":400,"message":"bad grammar","type":"invalid_request_error"}}', "invalid_input"),
        (500, b'{"error":{"code":500,"message":"boom","type":"server_error"}}', "engine_error"),
        (500, b'{"error":"boom"}', "engine_error"),
        (502, b"<html>", "engine_reply_invalid"),
        (
            400,
            b'{"error":{"code":"unsupported_request","message":"no","hint":"h","retryable":false,"facts":{"field":"n"}}}',
            "unsupported_request",
        ),
    ],
)
def test_an_engines_own_error_is_translated(status: int, body: bytes, code: str) -> None:
    assert error_of(status, body, 100).code == code


@pytest.mark.requirement("R-S1")
def test_an_engines_words_are_bounded_and_name_no_folder() -> None:
    error = error_from({"message": "cannot open /home/me/models/x.gguf " + "y" * 5000}, 100)
    assert "/home/me" not in error.message
    assert "x.gguf" in error.message
    assert len(error.message) <= 400
