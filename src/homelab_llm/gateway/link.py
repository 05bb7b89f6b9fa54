"""Link: what the application may ask of the connection that a request came on, beyond ASGI.

An application under another server does without: a task of its own then waits for the client's leaving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


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
    """

    __slots__ = ("_transport", "close_after_reply", "departed")

    def __init__(self, transport: JoiningTransport, close_after_reply: Callable[[], None]) -> None:
        self.departed: Callable[[], None] | None = None
        self.close_after_reply = close_after_reply
        self._transport = transport

    def hold_head(self) -> None:
        """The next thing written is a reply's head; it leaves together with what follows."""
        self._transport.hold()
