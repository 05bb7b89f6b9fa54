"""Readiness by identity: the engine's own socket answers 200, and the kernel says that the engine listens there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from homelab_llm.inference.fleet import processes
from homelab_llm.inference.fleet.control import connect

_FIRST_PAUSE_S = 0.015
_LONGEST_PAUSE_S = 0.25
_ANSWER_S = 2.0


async def until_ready(path: Path, ready_path: str, engine_pid: Callable[[], int | None]) -> None:
    """Ask ``GET ready_path`` until the engine says 200; bound it with a timeout, it never gives up.

    Args:
        engine_pid: the engine's process now (it changes after a conversion); its group may answer for it.
    """
    pause_s = _FIRST_PAUSE_S
    while not await _answers(path, ready_path, engine_pid()):
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.15, _LONGEST_PAUSE_S)


async def _answers(path: Path, ready_path: str, engine_pid: int | None) -> bool:
    if engine_pid is None:
        return False
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_ANSWER_S):
            connection = await connect(path)
            with connection:
                if not _belongs(processes.peer_of(connection)[0], engine_pid):
                    return False
                request = f"GET {ready_path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n"
                await loop.sock_sendall(connection, request.encode())
                answer = await loop.sock_recv(connection, 256)
    except (OSError, TimeoutError):
        return False
    return answer.startswith(b"HTTP/1.") and answer[8:12] == b" 200"


def _belongs(pid: int, engine_pid: int) -> bool:
    if pid == engine_pid:
        return True
    try:
        return os.getpgid(pid) == engine_pid
    except OSError:
        return False
