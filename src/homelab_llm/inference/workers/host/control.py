"""The control socket ``<id>.ctl``: newline JSON, several clients, each greeted with a hello that proves who we are.

Host → client: ``hello engine progress stats draining adopted refused exit``, each ``{"type": …}``.
Client → host: ``{"cmd": "stats"}``, ``{"cmd": "drain", "term_s": 5}``, ``{"cmd": "adopt", "pid": …, "nonce": …}``.
"""

# ruff: noqa: PTH101, PTH108 — pathlib would cost this small process a megabyte
from __future__ import annotations

import contextlib
import json
import os
import select
import socket

from homelab_llm.inference.fleet import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 1
_LINE_BYTES = 1 << 16
_UNSENT_BYTES = 1 << 18
_CLIENTS = 16


class Client:
    """One connection; ``pid`` is the peer's, told by the kernel."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.received = b""
        self.unsent = b""


class Control:
    """Listens, greets, reads commands, and tells events to everybody who is connected.

    Args:
        greeting: the messages a new client gets first.
        command: called with ``(client's pid, message)``; what it returns is the answer to that client.
    """

    def __init__(
        self,
        path: str,
        poller: select.poll,
        greeting: Callable[[], list[dict[str, Any]]],
        command: Callable[[int, dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._path = path
        self._poller = poller
        self._greeting = greeting
        self._command = command
        self._clients: dict[int, Client] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        if os.path.lexists(path):
            os.unlink(path)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(_CLIENTS)
        self._listener.setblocking(False)
        poller.register(self._listener.fileno(), select.POLLIN)

    def handle(self, fd: int, events: int) -> bool:
        """Serve what ``poll`` found on ``fd``; False when it is not one of ours."""
        if fd == self._listener.fileno():
            self._accept()
            return True
        client = self._clients.get(fd)
        if client is None:
            return False
        if events & select.POLLOUT:
            self._send(client, b"")
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and fd in self._clients:
            self._receive(client)
        return True

    def tell(self, message: dict[str, Any]) -> None:
        """Send an event to every client."""
        line = _line(message)
        for client in list(self._clients.values()):
            self._send(client, line)

    def close(self) -> None:
        """Give unsent events a moment, then close everything."""
        for client in list(self._clients.values()):
            client.connection.settimeout(0.5)
            with contextlib.suppress(OSError):  # a client that does not listen has lost its claim
                client.connection.sendall(client.unsent)
            self._drop(client)
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        pid, uid = processes.peer_of(connection)
        if uid != os.getuid() or len(self._clients) >= _CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection, pid)
        self._clients[connection.fileno()] = client
        self._poller.register(connection.fileno(), select.POLLIN)
        self._send(client, b"".join(map(_line, self._greeting())))

    def _receive(self, client: Client) -> None:
        try:
            content = client.connection.recv(_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        *lines, client.received = (client.received + content).split(b"\n")
        if not content or len(client.received) > _LINE_BYTES:
            self._drop(client)
            return
        for line in lines:
            self._send(client, _line(self._obey(client, line)))

    def _obey(self, client: Client, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
            if isinstance(message, dict):
                return self._command(client.pid, message)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        return {"type": "refused", "reason": "not a command"}

    def _send(self, client: Client, content: bytes) -> None:
        client.unsent += content
        try:
            client.unsent = client.unsent[client.connection.send(client.unsent) :] if client.unsent else b""
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.unsent) > _UNSENT_BYTES:
            self._drop(client)
            return
        wanted = select.POLLIN | (select.POLLOUT if client.unsent else 0)
        self._poller.modify(client.connection.fileno(), wanted)

    def _drop(self, client: Client) -> None:
        fd = client.connection.fileno()
        if self._clients.pop(fd, None) is not None:
            self._poller.unregister(fd)
            client.connection.close()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
