"""A look at who holds a port: real servers on free ports, that answer well, badly, or not at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from homelab_llm.inference.controller.foreign import SlotPorts
from homelab_llm.inference.controller.seams import Holder

GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"object":"list","data":[{"id":"llama3"},{"id":"q"}]}'


@asynccontextmanager
async def serving(answer: bytes | None) -> AsyncIterator[int]:
    """A server that answers everything with these bytes; None: it says nothing until its client leaves."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def looking(host: str = "127.0.0.1", process: Callable[[int], tuple[int, str] | None] | None = None) -> SlotPorts:
    return SlotPorts(host, lambda: (), process or (lambda _: (os.getpid(), "python")))


@pytest.mark.requirement("R-F3")
@pytest.mark.parametrize(
    ("answer", "models"),
    [
        (GOOD, ("llama3", "q")),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": []}', ()),
        (b'HTTP/1.1 200 OK\r\n\r\n{"data": [{"id": 7}, 3, {"id": "a\\u001b[2J"}]}', ()),
        (b'HTTP/1.1 200 OK\r\n\r\n["llama3"]', None),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", None),
        (b"HTTP/1.1 404 Not Found\r\n\r\n{}", None),
        (b"SSH-2.0-OpenSSH_9.6\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_100_000, None),
        (b"", None),
        (None, None),
    ],
)
async def test_a_holder_is_told_with_the_models_it_lists(answer: bytes | None, models: tuple[str, ...] | None) -> None:
    async with serving(answer) as port:
        assert await looking().holder(port) == Holder(os.getpid(), "python", models)


async def test_where_nobody_listens_there_is_no_holder() -> None:
    async with serving(GOOD) as port:
        pass
    assert await looking().holder(port) is None


async def test_a_server_on_every_address_is_found_and_an_unknown_process_has_no_pid() -> None:
    async with serving(GOOD) as port:
        assert await looking("0.0.0.0", lambda _: None).holder(port) == Holder(0, "", ("llama3", "q"))
