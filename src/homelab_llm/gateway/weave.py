"""Weave: a worker's stream taken apart event by event, where bytes cannot pass as they are. Pure.

Needed when the client wants one whole reply, when one request makes several answers (each is a stream of its
own; the worker then never runs more than the lease allows), when tool calls are read out of constrained text,
and for the old form of logprobs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.core.shaping import ReplyShape
from homelab_llm.gateway.aggregate import Aggregate
from homelab_llm.gateway.sse import DONE, EventSplitter, decoded, event, events_in

_ENVELOPE = ("id", "object", "created", "model", "system_fingerprint")
Chunk = dict[str, Any]


class Weave:
    """Feeds on one stream after the other (``begin`` before each); same face as ``sse.Passage``.

    ``feed`` returns bytes for the client, or nothing where a whole reply is put together (``stream`` False).
    ``close`` returns the last bytes; ``reply`` the whole reply.
    """

    def __init__(
        self,
        *,
        chat: bool,
        stream: bool,
        include_usage: bool,
        shape: Callable[[], ReplyShape] | None = None,
        old_logprobs: bool = False,
    ) -> None:
        self._stream = stream
        self._include_usage = include_usage
        self._make_shape = shape
        self._old_logprobs = old_logprobs
        self._aggregate = None if stream else Aggregate(chat=chat)
        self._splitter = EventSplitter()
        self._shape: ReplyShape | None = None
        self._index = 0
        self._new_prompt = True
        self._offset = 0
        self._first: Chunk = {}
        self.usage: Chunk | None = None
        self.progress: tuple[int, int] | None = None
        self.error: Chunk | None = None
        self.done = False

    def begin(self, index: int, *, new_prompt: bool = True) -> None:
        """The next bytes are the answer that becomes choice ``index``; ``new_prompt`` counts its prompt tokens."""
        self._index = index
        self._new_prompt = new_prompt
        self._offset = 0
        self._splitter = EventSplitter()
        self._shape = self._make_shape() if self._make_shape else None
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """What of ``data`` goes to the client.

        Raises:
            EngineReplyInvalid: an event is not what the engine's protocol says.
        """
        out: list[bytes] = []
        block = self._splitter.feed(data)
        for raw in events_in(block) if block else ():
            chunk = decoded(raw)
            if chunk is None:
                self.done = self.done or b"[DONE]" in raw
                continue
            try:
                made = self._take(chunk)
            except (AttributeError, TypeError, KeyError) as error:
                raise EngineReplyInvalid("the engine sent a chunk that cannot be read") from error
            if self.error is not None:
                break
            for made_chunk in made:
                if self._aggregate is not None:
                    self._aggregate.add(made_chunk)
                else:
                    out.append(event(made_chunk))
        return b"".join(out)

    def close(self) -> bytes:
        """The end of the stream: one event with the counts where wanted, and ``[DONE]``."""
        if not self._include_usage or self.usage is None:
            return DONE
        return event({**self._envelope(), "choices": [], "usage": self.usage}) + DONE

    def reply(self) -> Chunk:
        """The whole reply.

        Raises:
            EngineReplyInvalid: no answer came.
        """
        if self._aggregate is None:
            raise EngineReplyInvalid("a stream has no whole reply")
        return self._aggregate.reply(self.usage)

    def _envelope(self) -> Chunk:
        return {name: self._first[name] for name in _ENVELOPE if name in self._first}

    def _take(self, chunk: Chunk) -> list[Chunk]:
        if told := chunk.get("error"):
            self.error = told if isinstance(told, dict) else {"message": str(told)}
            return []
        if isinstance(told := chunk.get("prompt_progress"), dict):
            self.progress = (int(told.get("processed", 0)), int(told.get("total", 0)))
            return []
        self._first = self._first or chunk
        if isinstance(told := chunk.pop("usage", None), dict):
            self._count(told)
        choices = chunk.get("choices")
        if not choices:
            return [chunk] if self._aggregate is not None else []
        for choice in choices:
            choice["index"] = self._index
            if self._old_logprobs and isinstance(found := choice.get("logprobs"), dict):
                choice["logprobs"] = self._in_old_form(found)
        if self._index and "id" in self._first:
            chunk["id"] = self._first["id"]
        return self._shaped(chunk) if self._shape is not None else [chunk]

    def _count(self, told: Chunk) -> None:
        if self.usage is None:
            self.usage = dict(told)
            return
        for name in ("prompt_tokens", "completion_tokens"):
            if name == "completion_tokens" or self._new_prompt:
                self.usage[name] = self.usage.get(name, 0) + told.get(name, 0)
        self.usage["total_tokens"] = self.usage.get("prompt_tokens", 0) + self.usage.get("completion_tokens", 0)

    def _shaped(self, chunk: Chunk) -> list[Chunk]:
        """The chunk with its content sent through the shape; its first delta keeps the role."""
        choice = chunk["choices"][0]
        delta = dict(choice.get("delta") or {})
        content = delta.pop("content", None)
        reason = choice.get("finish_reason")
        shape = self._shape
        if shape is None:
            return [chunk]
        deltas = shape.feed(content) if content else []
        if reason:
            last, reason = shape.finish(reason)
            deltas = [*deltas, *last]
        if "role" in delta:
            deltas = [{"content": None, **delta}, *deltas]
        elif delta:
            deltas = [delta, *deltas]
        made = [self._with(chunk, choice, one, None) for one in deltas]
        return [*made, self._with(chunk, choice, {}, reason)] if reason else made

    @staticmethod
    def _with(chunk: Chunk, choice: Chunk, delta: Chunk, reason: str | None) -> Chunk:
        kept = {name: value for name, value in choice.items() if name != "logprobs"}  # they belong to the raw text
        return {**chunk, "choices": [{**kept, "delta": delta, "finish_reason": reason}]}

    def _in_old_form(self, found: Chunk) -> Chunk:
        """``{"content": [...]}`` as text completions have it: parallel lists, offsets in characters."""
        entries = found.get("content")
        if not isinstance(entries, list):
            return found
        offsets: list[int] = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or ()} for entry in entries
            ],
            "text_offset": offsets,
        }
