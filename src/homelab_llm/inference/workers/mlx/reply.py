"""Replies: the bytes this worker answers with. OpenAI's shapes, and llama.cpp's for errors and progress. Pure.

One shape for both engines: the gateway reads only one.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

import orjson

from homelab_llm.core.errors import (
    ContextOverflow,
    EndpointNotFound,
    HomelabError,
    InvalidInput,
    UnsupportedRequest,
    WorkerStalled,
)
from homelab_llm.inference.workers.mlx.answer import Piece
from homelab_llm.inference.workers.mlx.events import Progress

DONE = b"data: [DONE]\n\n"


def error_body(error: HomelabError) -> tuple[int, dict[str, Any]]:
    """An error as status and body, with llama.cpp's ``type`` names and our ``param`` beside them."""
    status, kind = _kind(error)
    told: dict[str, Any] = {"code": status, "message": error.message, "type": kind}
    if isinstance(error, ContextOverflow):
        told["n_prompt_tokens"] = error.facts["prompt_tokens"]
        told["n_ctx"] = error.facts["context_tokens"]
    if "field" in error.facts:
        told["param"] = error.facts["field"]
    return status, {"error": told}


def _kind(error: HomelabError) -> tuple[int, str]:
    if isinstance(error, ContextOverflow):
        return 400, "exceed_context_size_error"
    if isinstance(error, UnsupportedRequest):
        return 400, "not_supported_error"
    if isinstance(error, InvalidInput):
        return 400, "invalid_request_error"
    if isinstance(error, EndpointNotFound):
        return 404, "not_found_error"
    if isinstance(error, WorkerStalled):
        return 503, "unavailable_error"
    return 500, "server_error"


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's counts. This worker keeps no prompts, so none is cached."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


class Reply:
    """The shapes of one reply; ``model`` is the name it carries."""

    __slots__ = ("_chat", "_envelope", "_id")

    def __init__(self, kind: Literal["chat", "completion"], model: str) -> None:
        self._chat = kind == "chat"
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12)
        self._envelope = {"id": self._id, "created": int(time.time()), "model": model}

    def opening(self) -> bytes:
        """The first event of a chat; a completion has none."""
        return self._event({"delta": {"role": "assistant", "content": None}}) if self._chat else b""

    def piece(self, piece: Piece) -> bytes:
        """The event of new text."""
        text: dict[str, Any] = {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
        if piece.logprobs:
            text["logprobs"] = {"content": piece.logprobs}
        return self._event(text)

    def progress(self, progress: Progress, took_ms: float) -> bytes:
        """llama.cpp's event while the prompt is read."""
        told = {"total": progress.total, "cache": 0, "processed": progress.processed, "time_ms": round(took_ms)}
        choice: dict[str, Any] = {"delta": {"role": "assistant", "content": None}} if self._chat else {"text": ""}
        return self._event(choice, prompt_progress=told)

    def closing(self, finish: str, counts: dict[str, Any] | None) -> bytes:
        """The last events: why it ended, the counts when asked for, and the end mark."""
        out = self._event({"delta": {}} if self._chat else {"text": ""}, finish)
        if counts is not None:
            out += event({**self._envelope, "object": self._object(stream=True), "choices": [], "usage": counts})
        return out + DONE

    def whole(self, text: str, finish: str, logprobs: list[dict[str, Any]] | None, counts: dict[str, Any]) -> bytes:
        """The body of a reply that is not streamed."""
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        listed = None if logprobs is None else {"content": logprobs}
        choice = {"index": 0, **said, "logprobs": listed, "finish_reason": finish}
        return orjson.dumps(
            {**self._envelope, "object": self._object(stream=False), "choices": [choice], "usage": counts}
        )

    def _object(self, *, stream: bool) -> str:
        return ("chat.completion.chunk" if stream else "chat.completion") if self._chat else "text_completion"

    def _event(self, choice: dict[str, Any], finish: str | None = None, **extra: Any) -> bytes:
        choices = [{"index": 0, **choice, "finish_reason": finish}]
        return event({**self._envelope, "object": self._object(stream=True), "choices": choices, **extra})
