"""The history of a conversation for a template that knows no tools: calls and results as plain messages. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from homelab_llm.inference.kit.tools import CLOSE, OPEN

Message = dict[str, Any]
_NO_SYSTEM = re.compile(r"system role (?:is )?not supported", re.IGNORECASE)


def speaks_of_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a call or a result is among them."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def plain(messages: Sequence[Message]) -> list[Message]:
    """Calls become text of the assistant, results text of the user; neighbours of one role become one message."""
    names: dict[str, str] = {}
    out: list[Message] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            names |= {call.get("id", ""): call["function"]["name"] for call in calls}
            message = {"role": "assistant", "content": _calls(message.get("content"), calls)}
        elif message["role"] == "tool":
            message = {"role": "user", "content": _result(message, names)}
        previous = out[-1] if out else None
        if previous and previous["role"] == message["role"] == "user" and _texts(previous, message):
            out[-1] = {"role": "user", "content": f"{previous['content']}\n{message['content']}"}
        else:
            out.append(message)
    return out


def with_instructions(messages: Sequence[Message], text: str, template: str) -> list[Message]:
    """The messages with ``text`` in the system message; in the first one of the user where the template has none."""
    role = "user" if _NO_SYSTEM.search(template) else "system"
    first = messages[0] if messages else None
    if first is None or first["role"] != role:
        return [{"role": role, "content": text}, *messages] if role == "system" else list(messages)
    content = first["content"]
    if isinstance(content, list):
        content = (
            [*content, {"type": "text", "text": text}]
            if role == "system"
            else [{"type": "text", "text": text}, *content]
        )
    elif role == "system":
        content = f"{content}\n\n{text}" if content else text
    else:
        content = f"{text}\n\n{content}"
    return [{**first, "content": content}, *messages[1:]]


def _texts(*messages: Message) -> bool:
    return all(isinstance(message["content"], str) for message in messages)


def _calls(content: Any, calls: Sequence[Mapping[str, Any]]) -> str:
    written = [f"{OPEN}{_call(call['function'])}{CLOSE}" for call in calls]
    return "\n".join([*([_text(content)] if content else []), *written])


def _call(function: Mapping[str, Any]) -> str:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = function["arguments"]
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


def _result(message: Message, names: Mapping[str, str]) -> str:
    # In plain words: a small model that sees tags it was not trained on says them back.
    return f"{names.get(message.get('tool_call_id', ''), 'The function')} returned: {_text(message['content'])}"


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""
