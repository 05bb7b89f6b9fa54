"""Link: what the application may ask of the connection that a request came on, beyond ASGI.

It exists for speed: over plain ASGI the same costs a task for each request and two messages for each reply. An
application under another server does without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

Headers = list[tuple[bytes, bytes]]


class WholeReply(Protocol):
    """Sends a whole reply; False when it must go the usual way. Header names are lower case, values one line."""

    def __call__(self, status: int, headers: Headers, content: bytes) -> bool: ...


class JoiningTransport:
    """A transport that can hold one write back and send it together with the next: one system call less a reply."""

    __slots__ = (
        "_held",
        "_holds",
        "_inner",
        "abort",
        "get_extra_info",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner = inner
        self._held = b""
        self._holds = False
        self.abort = inner.abort
        self.get_extra_info = inner.get_extra_info
        self.is_closing = inner.is_closing
        self.pause_reading = inner.pause_reading
        self.resume_reading = inner.resume_reading

    def hold(self) -> None:
        """Hold back the next write."""
        self._holds = True

    def write(self, data: bytes) -> None:
        """Write, after what was held back."""
        if self._holds:
            self._holds = False
            self._held += data
            return
        if self._held:
            data, self._held = self._held + data, b""
        self._inner.write(data)

    def close(self) -> None:
        """Send what was held back, and close."""
        if self._held:
            self._inner.write(self._held)
            self._held = b""
        self._inner.close()


class Link:
    """What the application may ask of the connection its request came on; in ``scope["state"]["link"]``.

    ``departed`` is called when the client leaves: ASGI tells it only to a task that waits for it, and a task for
    each request would cost as much as parsing one. ``close_after_reply()``: this reply is the connection's last.
    ``arrived_body(limit)``: the request's body if all of it is here and within the limit, else None.
    ``reply``: send a whole reply at once, instead of ASGI's messages.
    """

    __slots__ = ("_transport", "arrived_body", "close_after_reply", "departed", "reply")

    def __init__(
        self,
        transport: JoiningTransport,
        *,
        arrived_body: Callable[[int], bytes | None],
        close_after_reply: Callable[[], None],
        reply: WholeReply,
    ) -> None:
        self.departed: Callable[[], None] | None = None
        self.arrived_body = arrived_body
        self.close_after_reply = close_after_reply
        self.reply = reply
        self._transport = transport

    def hold_head(self) -> None:
        """The next thing written is a reply's head; it leaves together with what follows."""
        self._transport.hold()
