"""The daemon's end of the control socket: connect to a worker host, prove who it is, then talk in lines of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import EngineReplyInvalid
from homelab_llm.inference.fleet import processes

_LINE_BYTES = 1 << 20


async def connect(path: Path) -> socket.socket:
    """A connected, non-blocking Unix socket.

    Raises:
        OSError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, str(path))
    except BaseException:
        connection.close()
        raise
    return connection


class Control:
    """A conversation with one host."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer_pid: int, peer_uid: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.peer_pid = peer_pid
        self.peer_uid = peer_uid

    @classmethod
    async def open(cls, path: Path) -> Control:
        """Raises ``OSError`` when nobody listens."""
        connection = await connect(path)
        peer_pid, peer_uid = processes.peer_of(connection)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=_LINE_BYTES)
        return cls(reader, writer, peer_pid, peer_uid)

    async def hello(self, expected: Mapping[str, Any]) -> dict[str, Any] | None:
        """The host's first message, when every field of ``expected`` is in it and the kernel confirms its pid and user.

        None when the host ended before it could greet.

        Raises:
            EngineReplyInvalid: somebody else answers, or another version of the protocol.
        """
        hello = await self.receive()
        if hello is None:
            return None
        wrong = [key for key, value in expected.items() if hello.get(key) != value]
        somebody_else = hello.get("host_pid") != self.peer_pid or self.peer_uid != os.getuid()
        if hello.get("type") != "hello" or wrong or somebody_else:
            raise EngineReplyInvalid(
                f"the worker's identity is not proven: wrong {', '.join(wrong) or 'greeting'}", wrong=wrong
            )
        return hello

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the conversation is over or makes no sense."""
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand a command over; nothing happens when the host is gone, which is told elsewhere."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._writer.close()
