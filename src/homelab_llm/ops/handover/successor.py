"""The old daemon's side of the new process: started with everything it needs, listened to, ended when it fails."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from homelab_llm.core.errors import DaemonUnavailable, HomelabError
from homelab_llm.ops.handover.channel import Channel
from homelab_llm.ops.handover.dialogue import Busy, Failed, Message
from homelab_llm.ops.handover.inherit import VARIABLE
from homelab_llm.ops.own_log import writes_to
from homelab_llm.ops.tail import last_lines

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
_END_S = 5.0


class Successor:
    """A daemon that this one started to take its place.

    Args:
        argv: its command line.
        lock: our handle of the home's lock.
        sockets: listening sockets by what was asked for when they were bound.
        log: the daemon's log, to be quoted when our standard error is open on it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        lock: int,
        sockets: Sequence[tuple[str, int]],
        log: Path,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._log = log if writes_to(log) else None
        self._logged_bytes = log.stat().st_size if self._log else 0
        told = {"from": os.getpid(), "channel": theirs.fileno(), "lock": lock, "sockets": [list(s) for s in sockets]}
        try:
            self._process = subprocess.Popen(
                list(argv),
                env={**environ, VARIABLE: json.dumps(told)},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), lock, *(handle for _, handle in sockets)),
                start_new_session=os.getsid(0) == os.getpid(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def expect(self, kind: type[M], deadline_s: float) -> M:
        """Its next message, which must be of ``kind``; it may ask for patience before.

        Args:
            deadline_s: by when, on the event loop's clock.

        Raises:
            DaemonUnavailable: it failed, died or was silent; the message says why and quotes its log.
        """
        await self.channel.open()
        try:
            async with asyncio.timeout_at(deadline_s) as limit:
                while isinstance(told := await self.channel.receive(), Busy):
                    _log.info("the new daemon is busy", extra={"with": told.text})
                    limit.reschedule(asyncio.get_running_loop().time() + told.limit_s)
        except TimeoutError as error:
            raise self._failed("it was not ready in time") from error
        except HomelabError as error:
            raise self._failed(error.message) from error
        if isinstance(told, kind):
            return told
        if isinstance(told, Failed):
            raise self._failed(told.text, told.hint)
        raise self._failed(await self._ended())

    async def end(self) -> None:
        """Kill it, if it lives, and wait until it is gone."""
        self.channel.close()
        self._process.kill()
        await asyncio.to_thread(self._process.wait, _END_S)

    def outlive(self) -> None:
        """It lives on when we end: no warning about a lost child."""
        self._process.returncode = 0

    async def _ended(self) -> str:
        try:
            code = await asyncio.to_thread(self._process.wait, _END_S)
        except subprocess.TimeoutExpired:
            return "it broke off the handover"
        return f"it ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"

    def _failed(self, reason: str, hint: str = "") -> DaemonUnavailable:
        lines = self._new_lines()
        told = "".join(f"\n  {line}" for line in lines)
        return DaemonUnavailable(
            f"the new daemon did not take over: {reason}; the old one goes on{told}",
            hint=hint or "mlxctl logs daemon",
            log=lines,
        )

    def _new_lines(self) -> list[str]:
        """The last lines of the log since it was started."""
        if self._log is None or self._log.stat().st_size <= self._logged_bytes:
            return []
        with self._log.open("rb") as stream:
            stream.seek(self._logged_bytes)
            count = stream.read().count(b"\n")
        return last_lines(self._log, min(count, 5))
