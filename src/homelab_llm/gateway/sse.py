"""Server-sent events, as bytes. Pure: cut a stream where events end, look into the few events that concern us.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html; events end with an empty line, written
``\\n\\n`` or ``\\r\\n\\r\\n`` by every server we know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from homelab_llm.core.errors import EngineReplyInvalid

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 32 << 20
_ENDS = (b"\n\n", b"\r\n\r\n")
_MARKS = (b'"usage"', b'"prompt_progress"', b'"error"')  # quotes inside of JSON strings are escaped: no text matches


def event(value: Any) -> bytes:
    """One event that carries JSON."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A comment, which every client ignores."""
    return b": " + text.replace("\n", " ").replace("\r", " ").encode() + b"\n\n"


def payload_of(raw: bytes) -> bytes:
    """The data of one event; empty for comments."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2:
        return raw[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in raw.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines)


def events_in(block: bytes) -> Iterator[bytes]:
    """The events of a block that a splitter cut, each with its end."""
    block = block.replace(b"\r\n", b"\n") if b"\r\n" in block else block
    start = 0
    while (end := block.find(b"\n\n", start)) >= 0:
        yield block[start : end + 2]
        start = end + 2
        while block.startswith(b"\n", start):
            start += 1


def decoded(raw: bytes) -> dict[str, Any] | None:
    """The JSON object in an event; None for comments and ``[DONE]``.

    Raises:
        EngineReplyInvalid: something else.
    """
    content = payload_of(raw)
    if not content or content == b"[DONE]":
        return None
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise EngineReplyInvalid("the engine sent an event that is not JSON") from error
    if type(value) is not dict:
        raise EngineReplyInvalid("the engine sent an event that is not a JSON object")
    return value


class EventSplitter:
    """Turns bytes as they arrive into blocks of whole events; what is incomplete waits."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def rest(self) -> bytes:
        """What arrived after the last whole event."""
        return self._rest

    def feed(self, data: bytes) -> bytes:
        """The events that ``data`` completes, joined; empty when it completes none.

        Raises:
            EngineReplyInvalid: one event is larger than any engine sends.
        """
        if self._rest:
            data = self._rest + data
        if data.endswith(b"\n\n"):
            self._rest = b""
            return data
        end = _after_last_end(data, 0, len(data))
        self._rest = data[end:]
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EngineReplyInvalid("the engine sent an event without end")
        return data[:end]


class Passage:
    """A worker's stream on its way to a client of the same dialect: bytes leave as they came.

    Only what the gateway asked for itself is taken out: ``prompt_progress`` events, and ``usage`` unless the
    client wants it. ``usage``, ``progress`` (done, total) and ``error`` (the engine's error object) are read on
    the way; after ``error`` nothing passes any more. ``done`` says that ``[DONE]`` passed.
    """

    __slots__ = ("_keep_usage", "_splitter", "done", "error", "progress", "usage")

    def __init__(self, *, keep_usage: bool) -> None:
        self._splitter = EventSplitter()
        self._keep_usage = keep_usage
        self.usage: dict[str, Any] | None = None
        self.progress: tuple[int, int] | None = None
        self.error: dict[str, Any] | None = None
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """What of ``data``, and of what waited, goes to the client; may be empty."""
        block = self._splitter.feed(data)
        if not block or self.error is not None:
            return b""
        if b"[DONE]" in block[-24:]:
            self.done = True
        if _MARKS[0] in block or _MARKS[1] in block or _MARKS[2] in block:
            return self._sift(block)
        return block

    def _sift(self, block: bytes) -> bytes:
        """Look into the marked events of ``block``; everything between them is kept as it is."""
        kept: list[bytes] = []
        at = 0
        found = {mark: block.find(mark) for mark in _MARKS}
        while self.error is None and (marked := [place for place in found.values() if place >= 0]):
            start, end = _around(block, min(marked), at)
            kept += block[at:start], self._weigh(block[start:end])
            at = end
            for mark, place in found.items():
                if 0 <= place < at:
                    found[mark] = block.find(mark, at)
        if self.error is None:
            kept.append(block[at:])
        return b"".join(kept)

    def _weigh(self, raw: bytes) -> bytes:
        value = decoded(raw)
        if value is None:
            return raw
        if value.get("error"):
            told = value["error"]
            self.error = told if isinstance(told, dict) else {"message": str(told)}
            return b""
        if isinstance(told := value.get("prompt_progress"), dict):
            self.progress = (int(told.get("processed", 0)), int(told.get("total", 0)))
            return b""
        if isinstance(told := value.get("usage"), dict):
            self.usage = told
            if not self._keep_usage:
                del value["usage"]
                return event(value) if value.get("choices") else b""
        return raw


def _after_last_end(block: bytes, start: int, stop: int) -> int:
    """Where the last event that ends within ``block[start:stop]`` ends; ``start`` when none does."""
    found = [(block.rfind(mark, start, stop), len(mark)) for mark in _ENDS]
    return max([start, *(place + length for place, length in found if place >= 0)])


def _around(block: bytes, place: int, at: int) -> tuple[int, int]:
    """Where the event around ``place`` starts and ends."""
    ends = [end + len(mark) for mark in _ENDS if (end := block.find(mark, place)) >= 0]
    return _after_last_end(block, at, place), min(ends, default=len(block))
