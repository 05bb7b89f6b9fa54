"""Messages of OpenAI's dialect: roles, text parts, earlier tool calls; checked and rebuilt for a worker."""

from __future__ import annotations

from typing import Any

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest
from homelab_llm.gateway.fields import Either, Field, ListOf, NoEffect, OneOf, Only, Record, Text, wrong

MAX_MESSAGES = 4096
NAME = r"[A-Za-z0-9_.-]{1,64}"


def is_text(value: Any) -> bool:
    """A string."""
    return type(value) is str


def is_list(value: Any) -> bool:
    """A list."""
    return type(value) is list


class ContentParts:
    """A list of text parts, joined to one text by newlines: every engine then reads the same prompt."""

    def __call__(self, value: Any, path: str) -> str:
        if len(value) > MAX_MESSAGES:
            raise wrong(path, f"a list with at most {MAX_MESSAGES} parts")
        return "\n".join([self._text(part, f"{path}[{index}]") for index, part in enumerate(value)])

    def _text(self, part: Any, path: str) -> str:
        kind = part.get("type") if type(part) is dict else None
        if kind != "text":
            if type(kind) is str and kind in {"image_url", "input_audio", "file", "video_url", "input_image"}:
                raise UnsupportedRequest(
                    f"{path!r}: {kind} parts are not read; models here take text",
                    hint="send text parts only",
                    field=path,
                )
            raise wrong(path, 'a content part like {"type": "text", "text": "…"}')
        text = part.get("text")
        if type(text) is not str:
            raise wrong(f"{path}.text", "a string")
        return text

    def schema(self) -> dict[str, Any]:
        part = {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        }
        return {"type": "array", "items": part, "maxItems": MAX_MESSAGES}


CONTENT = Either("a string or a list of text parts", ((is_text, Text()), (is_list, ContentParts())))

TOOL_CALL = Record(
    {
        "id": Field(Text(256), required=True),
        "type": Field(OneOf(("function",))),
        "index": Field(NoEffect()),
        "function": Field(
            Record(
                {
                    "name": Field(Text(pattern=NAME), required=True),
                    "arguments": Field(Text(), "JSON, as a string", required=True),
                }
            ),
            required=True,
        ),
    }
)

MESSAGE = Record(
    {
        "role": Field(OneOf(("system", "developer", "user", "assistant", "tool")), required=True),
        "content": Field(CONTENT),
        "name": Field(Text(64)),
        "tool_calls": Field(ListOf(TOOL_CALL, 128)),
        "tool_call_id": Field(Text(256)),
        "reasoning_content": Field(Text(), "earlier reasoning, for templates that read it"),
        "refusal": Field(Text(), "dropped"),
        "annotations": Field(NoEffect(), "dropped"),
        "audio": Field(Only((), "models here take text")),
        "function_call": Field(Only((), "the old form", "use tool_calls")),
    }
)


_PLAIN_ROLES = frozenset({"system", "user", "assistant"})


def _is_plain(message: Any) -> bool:
    """Whether a message is just a known role and a text."""
    if type(message) is not dict or len(message) != 2:
        return False
    role = message.get("role")
    return type(role) is str and role in _PLAIN_ROLES and type(message.get("content")) is str


_LISTED = ListOf(MESSAGE, MAX_MESSAGES, low=1)


class Messages:
    """The conversation: known roles, each with what its role needs. ``developer`` is sent as ``system``."""

    def __call__(self, value: Any, path: str) -> list[dict[str, Any]]:
        if type(value) is list and 0 < len(value) <= MAX_MESSAGES and all(map(_is_plain, value)):
            return value  # nearly every conversation: nothing to rebuild, and long ones are common
        messages: list[dict[str, Any]] = _LISTED(value, path)
        for index, message in enumerate(messages):
            role = message["role"]
            message.pop("refusal", None)
            if role == "developer":
                message["role"] = "system"
            if role == "tool" and "tool_call_id" not in message:
                raise InvalidInput("a tool's message needs 'tool_call_id'", field=f"{path}[{index}].tool_call_id")
            if "tool_calls" in message and role != "assistant":
                raise InvalidInput("only an assistant's message has 'tool_calls'", field=f"{path}[{index}].tool_calls")
            if "content" not in message:
                if role != "assistant":
                    raise InvalidInput(f"'{path}[{index}].content' is required", field=f"{path}[{index}].content")
                message["content"] = None if message.get("tool_calls") else ""
        return messages

    def schema(self) -> dict[str, Any]:
        return _LISTED.schema()
