"""The fake engine's bytes: OpenAI's bodies and SSE events, framed for HTTP/1.1 and built once where they repeat."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any, Literal

import orjson

Kind = Literal["chat", "completion"]
CREATED = 1_700_000_000
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 500: b"Internal Server Error", 503: b"Unavailable"}


def response(status: int, body: Any) -> bytes:
    """A whole HTTP response with a JSON body (bytes are taken as they are)."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, _REASONS[status], len(content)) + content


def error(status: int, kind: str, message: str, **facts: int) -> dict[str, Any]:
    """llama.cpp's error body."""
    return {"error": {"code": status, "message": message, "type": kind, **facts}}


def event(value: Any) -> bytes:
    """One SSE event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def frame(content: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def token(index: int) -> str:
    """The text of the ``index``-th token: ``tok0``, `` tok1``, …"""
    return f" tok{index}" if index else "tok0"


class Replies:
    """Everything one model says, for one of the two kinds of request."""

    def __init__(self, model: str, kind: Kind) -> None:
        self._kind = kind
        self._object = "chat.completion" if kind == "chat" else "text_completion"
        self._envelope = {
            "id": "chatcmpl-fake" if kind == "chat" else "cmpl-fake",
            "object": f"{self._object}.chunk" if kind == "chat" else self._object,
            "created": CREATED,
            "model": model,
        }
        probe = self._choice(self._delta("\x01"), None)
        self._before, self._after = event(probe).split(b'"\\u0001"')
        self._events: list[bytes] = []

    def opening(self) -> bytes:
        """The event before the first token; nothing for plain completions."""
        return event(self._choice({"delta": {"role": "assistant", "content": None}}, None)) if self._chat else b""

    def text(self, piece: str) -> bytes:
        """The event that carries ``piece``."""
        return self._before + orjson.dumps(piece) + self._after

    def tokens(self, start: int, end: int) -> bytes:
        """The events of the default tokens ``start`` to ``end``, joined; kept, so that they cost nothing later."""
        known = self._events
        if len(known) < end:
            known.extend(self.text(token(index)) for index in range(len(known), end))
        return b"".join(known[start:end])

    def closing(self, finish: str, usage: dict[str, Any] | None) -> bytes:
        """The last events: finish reason, usage when asked for, ``[DONE]``."""
        out = event(self._choice(self._delta("") if not self._chat else {"delta": {}}, finish))
        if usage is not None:
            out += event({**self._envelope, "choices": [], "usage": usage})
        return out + DONE

    def progress(self, total: int, processed: int, time_ms: float) -> bytes:
        """llama.cpp's event while it reads the prompt."""
        told = {"total": total, "cache": 0, "processed": processed, "time_ms": time_ms}
        delta = {"delta": {"role": "assistant", "content": None}} if self._chat else self._delta("")
        return event({**self._choice(delta, None), "prompt_progress": told})

    def whole(self, text: str, finish: str, usage: dict[str, Any]) -> bytes:
        """The body of a reply that is not streamed."""
        answer = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **answer, "logprobs": None, "finish_reason": finish}
        return orjson.dumps({**self._envelope, "object": self._object, "choices": [choice], "usage": usage})

    @property
    def _chat(self) -> bool:
        return self._kind == "chat"

    def _delta(self, piece: str) -> dict[str, Any]:
        return {"delta": {"content": piece}} if self._chat else {"text": piece}

    def _choice(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {**self._envelope, "choices": [{"index": 0, **delta, "finish_reason": finish}]}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def embeddings(model: str, body: dict[str, Any], width: int) -> dict[str, Any]:
    """Vectors of length 1 that depend on the input alone.

    Raises:
        ValueError: no usable input.
    """
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError("'input' must be a string or a list")
    vectors = [_vector(orjson.dumps(item), width) for item in given]
    packed = body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{width}f", *vector)).decode() if packed else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    count = sum(len(item.split()) if isinstance(item, str) else len(item) for item in given)
    return {
        "object": "list",
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _vector(content: bytes, width: int) -> list[float]:
    raw = hashlib.shake_256(content).digest(width * 2)
    values = [value / 32768 for value in struct.unpack(f"<{width}h", raw)]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / norm for value in values]
