"""Aggregate: one whole reply from the events of a stream, as the engine itself would have sent it. Pure."""

from __future__ import annotations

from typing import Any

from homelab_llm.core.errors import EngineReplyInvalid

_ENVELOPE = ("id", "created", "model", "system_fingerprint", "service_tier")


class _Parts:
    """A text that grows by pieces."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def text(self) -> str:
        return "".join(self.pieces)


class _Choice:
    """One choice while it is put together: texts, tool calls, logprobs, finish reason."""

    __slots__ = ("calls", "finish", "logprobs", "role", "texts")

    def __init__(self) -> None:
        self.role = "assistant"
        self.texts: dict[str, _Parts] = {}
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, list[Any]] | None = None
        self.finish: str | None = None

    def add(self, choice: dict[str, Any]) -> None:
        for name, value in (choice.get("delta") or {"text": choice.get("text")}).items():
            if isinstance(value, str):
                if name == "role":
                    self.role = value
                else:
                    self.texts.setdefault(name, _Parts()).pieces.append(value)
            elif name == "tool_calls" and isinstance(value, list):
                for position, call in enumerate(value):
                    self._add_call(call, position)
        if isinstance(found := choice.get("logprobs"), dict):
            self._add_logprobs(found)
        self.finish = choice.get("finish_reason") or self.finish

    def _add_call(self, call: dict[str, Any], position: int) -> None:
        known = self.calls.setdefault(
            call.get("index", position), {"id": "", "type": "function", "name": "", "arguments": _Parts()}
        )
        known["id"] = call.get("id") or known["id"]
        known["type"] = call.get("type") or known["type"]
        function = call.get("function") or {}
        known["name"] += function.get("name") or ""
        known["arguments"].pieces.append(function.get("arguments") or "")

    def _add_logprobs(self, found: dict[str, Any]) -> None:
        self.logprobs = self.logprobs or {}
        for name, values in found.items():
            if isinstance(values, list):
                self.logprobs.setdefault(name, []).extend(values)

    def message(self) -> dict[str, Any]:
        texts = {name: parts.text() for name, parts in self.texts.items()}
        message: dict[str, Any] = {"role": self.role, "content": None if self.calls else "", **texts}
        if self.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": call["type"],
                    "function": {"name": call["name"], "arguments": call["arguments"].text()},
                }
                for _, call in sorted(self.calls.items())
            ]
        return message

    def whole(self, index: int, chat: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"message": self.message()} if chat else {"text": self.message().get("text", "")}
        return {"index": index, **said, "logprobs": self.logprobs, "finish_reason": self.finish}


class Aggregate:
    """Takes a stream's chunks one by one; ``reply()`` is the whole.

    Other fields an engine adds to its chunks (such as llama.cpp's ``timings``) are kept from the last chunk that
    has them, because the engine's own whole reply has them too. ``usage`` is set by whoever counts it.
    """

    __slots__ = ("_chat", "_choices", "_envelope", "_extra")

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._choices: dict[int, _Choice] = {}
        self._envelope: dict[str, Any] = {}
        self._extra: dict[str, Any] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """One chunk.

        Raises:
            EngineReplyInvalid: it is not shaped like one.
        """
        try:
            for choice in chunk.get("choices") or ():
                self._choices.setdefault(choice.get("index", 0), _Choice()).add(choice)
        except (AttributeError, TypeError) as error:
            raise EngineReplyInvalid("the engine sent a chunk that cannot be read") from error
        for name, value in chunk.items():
            if name in _ENVELOPE:
                self._envelope.setdefault(name, value)
            elif name not in {"choices", "object", "usage"}:
                self._extra[name] = value

    def reply(self, usage: dict[str, Any] | None) -> dict[str, Any]:
        """The whole reply.

        Raises:
            EngineReplyInvalid: no choice came.
        """
        if not self._choices:
            raise EngineReplyInvalid("the engine sent no answer")
        return {
            **self._envelope,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [choice.whole(index, self._chat) for index, choice in sorted(self._choices.items())],
            **({"usage": usage} if usage is not None else {}),
            **self._extra,
        }
