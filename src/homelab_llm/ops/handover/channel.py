"""The pair of sockets between the old and the new daemon, and the messages on it."""

from __future__ import annotations

import asyncio
import socket

from homelab_llm.ops.handover.dialogue import MAX_LINE_BYTES, Message, decode, encode


class Channel:
    """One end of the pair. ``open`` before the first message, on the event loop that uses it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Begin to read."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=MAX_LINE_BYTES)

    def send(self, message: Message) -> None:
        """Say something; what the other one cannot hear any more is dropped."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def send_now(self, message: Message) -> None:
        """Say something before the event loop runs, or after it ended; never raises for a partner that is gone."""
        try:
            self._socket.setblocking(True)
            self._socket.sendall(encode(message))
        except OSError:
            return

    async def receive(self) -> Message | None:
        """What the other one says next; None when it is gone.

        Raises:
            InvalidInput: something unknown.
        """
        if self._reader is None:
            return None
        try:
            line = await self._reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return None
        return decode(line)

    def close(self) -> None:
        """End it; the other one reads what was said, then the end."""
        if self._writer is not None:
            self._writer.close()
        else:
            self._socket.close()
