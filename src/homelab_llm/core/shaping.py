"""Shaping: a request as a worker must get it, and how its reply becomes OpenAI's again. Shared by gateway and kit.

Only the values and the seam stand here; ``inference.kit.shaping`` does the work, the gateway applies it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


class ReplyShape(Protocol):
    """Turns the content of one choice of one reply into OpenAI deltas. Keeps state; used once.

    The same text gives the same merged message however it is split over ``feed`` calls.
    """

    def feed(self, content: str) -> list[dict[str, Any]]:
        """Delta objects (``{"content": …}`` or ``{"tool_calls": [{"index": 0, …}]}``) for this piece; may be empty."""
        ...

    def finish(self, reason: str = "stop") -> tuple[list[dict[str, Any]], str]:
        """The last deltas and the ``finish_reason`` to send, given the worker's own.

        Raises:
            EngineReplyInvalid: the worker ended normally, but not with what was enforced.
        """
        ...


@dataclass(slots=True)
class Shaped:
    """A request body as the worker must get it, and what to undo in the reply.

    ``reply`` is None when the worker's deltas leave as they are; else it makes one ``ReplyShape`` per choice, and
    every ``delta.content`` (or ``message.content``) of that choice goes through it.
    """

    body: dict[str, Any]
    reply: Callable[[], ReplyShape] | None = None
