"""Foreign servers: who holds a slot's port in our place, and whether that is a model server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from typing import Any

from homelab_llm.inference.controller.seams import Holder

_ANSWER_S = 1.0
_MOST_BYTES = 1_000_000
_ID_CHARACTERS = 512


class SlotPorts:
    """The ports of this node's slots (``controller.seams.Ports``).

    Args:
        host: the address the slots are bound to.
        unbound: slot ports that this daemon does not listen on.
        process: pid and name of the process that listens on a port, where the system tells; may block.
    """

    def __init__(
        self, host: str, unbound: Callable[[], Collection[int]], process: Callable[[int], tuple[int, str] | None]
    ) -> None:
        self._host = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 — compared, not bound
        self._unbound = unbound
        self._process = process

    def unbound(self) -> Collection[int]:
        return self._unbound()

    async def holder(self, port: int) -> Holder | None:
        """Who listens there; None when nobody answers a connection."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_connection(self._host, port)
        except (OSError, TimeoutError):
            return None
        try:
            async with asyncio.timeout(_ANSWER_S):
                models = await _ask(self._host, port, reader, writer)
        except (OSError, TimeoutError, ValueError):
            models = None
        finally:
            writer.close()
        known = await asyncio.to_thread(self._process, port)
        return Holder(*known, models) if known is not None else Holder(models=models)


async def _ask(
    host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[str, ...] | None:
    """The ids of ``GET /v1/models``; None when the answer is another. HTTP/1.0, so that the body ends with it."""
    writer.write(f"GET /v1/models HTTP/1.0\r\nHost: {host}:{port}\r\nAccept: application/json\r\n\r\n".encode())
    await writer.drain()
    raw = bytearray()
    while chunk := await reader.read(65536):
        raw += chunk
        if len(raw) > _MOST_BYTES:
            return None
    head, _, body = bytes(raw).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        return None
    return _ids(json.loads(body))


def _ids(told: Any) -> tuple[str, ...] | None:
    listed = told.get("data") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        return None
    ids = [entry.get("id") for entry in listed if isinstance(entry, dict)]
    return tuple(id for id in ids if isinstance(id, str) and 0 < len(id) <= _ID_CHARACTERS and id.isprintable())
