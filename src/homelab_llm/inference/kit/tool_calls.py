"""Tool calls out of text: one streaming machine for forced calls and for calls inside free text.

    TEXT ──<tool_call>──▶ HEAD ──{"name": …, "arguments":──▶ ARGUMENTS ──}──▶ TAIL ──</tool_call>──▶ TEXT

A forced answer begins in HEAD and ends in TAIL, without tags. The same text gives the same message however it is split;
no tag ever leaves. What stands between tags and is no call leaves as text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Any

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.inference.kit.tools import CLOSE, OPEN

Delta = dict[str, Any]

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)', re.DOTALL)
_TAG = re.compile(f"{OPEN}|{CLOSE}")
_STEP = re.compile(r'["{}\[\]<\\]')


def new_call_id() -> str:
    """An id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


class _State(Enum):
    TEXT = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class ToolCallStream:
    """Turns content into OpenAI's deltas; ``core.shaping.ReplyShape``.

    Args:
        names: the tools that may be called.
        forced: the whole answer is one call, as bare JSON.
        new_id: makes the ids of calls.
    """

    def __init__(self, names: Collection[str], *, forced: bool, new_id: Callable[[], str] = new_call_id) -> None:
        self._names = frozenset(names)
        self._forced = forced
        self._new_id = new_id
        self._state = _State.HEAD if forced else _State.TEXT
        self._buffer = ""
        self._calls = 0
        self._complete = 0
        self._depth = 0
        self._in_string = False
        self._spoke = False
        self._fresh = False

    def feed(self, content: str) -> list[Delta]:
        """The deltas that the next piece of content makes certain."""
        self._buffer += content
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def finish(self, reason: str = "stop") -> tuple[list[Delta], str]:
        """What is left, and the reason to give.

        Raises:
            EngineReplyInvalid: a forced call that is not whole although the worker did not run out of tokens.
        """
        deltas: list[Delta] = []
        if self._forced and not self._complete and reason != "length":
            raise EngineReplyInvalid("the model ended before its tool call was whole", hint="try again")
        if self._state is _State.TEXT:
            self._say(deltas, self._buffer)
        elif self._state is _State.HEAD and not self._forced and reason != "length":
            self._whole(deltas, self._buffer)
        self._buffer = ""
        ended = reason == "stop" or (self._forced and self._complete > 0)
        return deltas, "tool_calls" if self._calls and ended else reason

    def _step(self, deltas: list[Delta]) -> bool:
        """One move of the machine; False when it needs more content."""
        if not self._buffer:
            return False
        match self._state:
            case _State.TEXT:
                return self._read_text(deltas)
            case _State.HEAD:
                return self._read_head(deltas)
            case _State.ARGUMENTS:
                return self._read_arguments(deltas)
            case _State.TAIL:
                return self._read_tail()

    def _read_text(self, deltas: list[Delta]) -> bool:
        if tag := _TAG.search(self._buffer):
            self._say(deltas, self._buffer[: tag.start()].rstrip())
            self._buffer, self._fresh = self._buffer[tag.end() :], True
            self._state = _State.HEAD if tag[0] == OPEN else _State.TEXT
            return True
        possible = max(_overlap(self._buffer, OPEN), _overlap(self._buffer, CLOSE))
        certain = self._buffer[: len(self._buffer) - possible].rstrip()  # space before a call is no text
        self._say(deltas, certain)
        self._buffer = self._buffer[len(certain) :]
        return False

    def _say(self, deltas: list[Delta], text: str) -> None:
        """Text, on a line of its own after a call: else pieces around one could make a tag together."""
        if self._fresh:
            text = text.lstrip()
            text = f"\n{text}" if text and self._spoke else text
        if text:
            deltas.append({"content": text})
            self._spoke, self._fresh = True, False

    def _read_head(self, deltas: list[Delta]) -> bool:
        head = _HEAD.match(self._buffer)
        if head and (name := json.loads(head[1], strict=False)) in self._names:
            self._begin(deltas, name)
            self._buffer = self._buffer[head.end() :]
            self._state, self._depth, self._in_string = _State.ARGUMENTS, 0, False
            return True
        inner, tag, after = self._buffer.partition(CLOSE)
        if self._forced or not tag:
            return False
        self._whole(deltas, inner)
        self._buffer, self._state = after, _State.TEXT
        return True

    def _begin(self, deltas: list[Delta], name: str, arguments: str = "") -> None:
        function = {"name": name, "arguments": arguments}
        call = {"index": self._calls, "id": self._new_id(), "type": "function", "function": function}
        deltas.append({"tool_calls": [call]})
        self._calls += 1
        self._fresh = True

    def _whole(self, deltas: list[Delta], inner: str) -> None:
        """A call in an unusual order or spelling, or no call at all."""
        try:
            call = json.loads(inner)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            name, arguments = None, None
        if isinstance(name, str) and name in self._names and isinstance(arguments, dict):
            self._begin(deltas, name, json.dumps(arguments, ensure_ascii=False))
            self._complete += 1
        else:
            self._say(deltas, _TAG.sub("\n", inner).strip())
            self._fresh = True

    def _read_arguments(self, deltas: list[Delta]) -> bool:
        """Pass the object on as it is written, to its last brace."""
        end, ended = self._scan()
        if piece := self._buffer[:end]:
            part = {"index": self._calls - 1, "function": {"arguments": piece}}
            deltas.append({"tool_calls": [part]})
        self._buffer = self._buffer[end:]
        if ended:
            self._state = _State.TAIL
            self._complete += 1
        return ended

    def _scan(self) -> tuple[int, bool]:
        """How much of the buffer belongs to the arguments, and whether they end there."""
        at = 0
        while found := _STEP.search(self._buffer, at):
            at, character = found.end(), found[0]
            if self._in_string:
                if character == "\\":
                    if at == len(self._buffer):
                        return at - 1, False  # what it escapes has not come yet
                    at += 1
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character == "<":
                return at - 1, True  # no JSON: a tag came too early
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at, True
        return len(self._buffer), False

    def _read_tail(self) -> bool:
        if self._forced:
            self._buffer = ""
            return False
        _, tag, after = self._buffer.partition(CLOSE)
        if not tag:
            self._buffer = self._buffer[len(self._buffer) - _overlap(self._buffer, CLOSE) :]
            return False
        self._buffer, self._state = after, _State.TEXT
        return True


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may begin ``tag``."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:size])), 0)
