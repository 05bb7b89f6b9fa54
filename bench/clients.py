"""Clients: small blocking HTTP clients whose own cost is low and the same on both sides of a comparison."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Address = Path | tuple[str, int]


def connect(address: Address) -> socket.socket:
    """A connected stream socket, without Nagle's delay."""
    if isinstance(address, Path):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(address))
    else:
        connection = socket.create_connection(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(120)
    return connection


def post(path: str, body: dict[str, Any], *, close: bool = False, key: str = "") -> bytes:
    """The bytes of one request."""
    content = json.dumps(body).encode()
    headers = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    headers += ["Connection: close"] if close else []
    headers += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join(headers).encode() + b"\r\n\r\n" + content


@dataclass(slots=True)
class Reply:
    """A received reply: status, body with the transfer coding removed, and when each read arrived (seconds)."""

    status: int
    body: bytes
    arrivals_s: list[tuple[float, int]] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)


def exchange(connection: socket.socket, request: bytes, *, arrivals: bool = False) -> Reply:
    """Send one request and read its whole reply (by length, chunks or close)."""
    connection.sendall(request)
    data = bytearray()
    times: list[tuple[float, int]] = []
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _read(connection)
    head = bytes(data[:end]).lower()
    status = int(head.split(b" ", 2)[1])
    del data[: end + 4]
    if arrivals and data:
        times.append((time.perf_counter(), len(data)))
    if b"transfer-encoding: chunked" in head:
        while not data.endswith(b"0\r\n\r\n"):
            part = _read(connection)
            data += part
            if arrivals:
                times.append((time.perf_counter(), len(part)))
        return Reply(status, _joined(bytes(data)), times)
    marker = head.find(b"content-length:")
    length = int(head[marker + 15 :].split(b"\r\n", 1)[0]) if marker >= 0 else None
    while length is None or len(data) < length:
        part = connection.recv(1 << 16)
        if not part:
            break
        data += part
    return Reply(status, bytes(data), times)


def _read(connection: socket.socket) -> bytes:
    part = connection.recv(1 << 16)
    if not part:
        raise ConnectionError("the server closed the connection in mid-reply")
    return part


def _joined(chunked: bytes) -> bytes:
    out = bytearray()
    at = 0
    while True:
        end = chunked.index(b"\r\n", at)
        size = int(chunked[at:end], 16)
        if size == 0:
            return bytes(out)
        out += chunked[end + 2 : end + 2 + size]
        at = end + 4 + size
