"""Vacating: leases whose client left in mid-reply.

Closing the connection frees the worker's slot a moment later, with llama.cpp only when its server next writes to it.
Until then the lease stays, so that the worker never gets more requests than it has slots; the worker itself is asked
how many are busy.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path

from homelab_llm.inference.fleet.control import connect

FIRST_POLL_S = 0.005
POLL_S = 0.05
LONGEST_S = 15.0
_ANSWER_S = 2.0
_MOST_BYTES = 1 << 20
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d{1,9})\r?")
_COUNTED = re.compile(rb'"busy":(\d{1,6})')
_BUSY = b'"is_processing":true'


async def busy_slots(socket: Path, path: str) -> int | None:
    """How many slots of the worker are busy now; None when it does not say."""
    loop = asyncio.get_running_loop()
    answer = bytearray()
    try:
        async with asyncio.timeout(_ANSWER_S):
            with await connect(socket) as connection:
                request = f"GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n"
                await loop.sock_sendall(connection, request.encode())
                while not _complete(answer) and (part := await loop.sock_recv(connection, 1 << 16)):
                    answer += part
    except (OSError, TimeoutError):
        return None
    if b" 200 " not in answer[:16]:
        return None
    told = answer.replace(b": ", b":")
    counted = _COUNTED.search(told)
    return int(counted[1]) if counted else told.count(_BUSY)


def _complete(answer: bytearray) -> bool:
    """Whether the announced length is there; servers may keep the connection open after it."""
    head, blank, body = answer.partition(b"\r\n\r\n")
    announced = _LENGTH.search(head) if blank else None
    return len(answer) >= _MOST_BYTES or (announced is not None and len(body) >= int(announced[1]))


class Vacating:
    """The leases of one worker that wait for their slots to be free.

    Args:
        serving: how many leases the worker has, those that wait here included.
        end: ends the lease of a request.
    """

    def __init__(self, socket: Path, path: str, *, serving: Callable[[], int], end: Callable[[str], None]) -> None:
        self._socket = socket
        self._path = path
        self._serving = serving
        self._end = end
        self._leaving: deque[tuple[str, float]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, request_id: str) -> None:
        """The client of this request left; its lease ends when a slot is free, or after ``LONGEST_S``."""
        self._leaving.append((request_id, asyncio.get_running_loop().time()))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def close(self) -> None:
        """The worker is gone, and its slots with it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._free(len(self._leaving))

    async def _watch(self) -> None:
        now_s = asyncio.get_running_loop().time
        pause_s = FIRST_POLL_S  # long enough for a request that was just sent to have taken its slot
        while self._leaving:
            await asyncio.sleep(pause_s)
            pause_s = POLL_S
            busy = await busy_slots(self._socket, self._path)
            if busy is not None:
                occupied = max(0, busy - (self._serving() - len(self._leaving)))
                self._free(len(self._leaving) - occupied)
            while self._leaving and now_s() - self._leaving[0][1] > LONGEST_S:
                self._free(1)
        self._task = None

    def _free(self, count: int) -> None:
        for _ in range(min(count, len(self._leaving))):
            self._end(self._leaving.popleft()[0])
