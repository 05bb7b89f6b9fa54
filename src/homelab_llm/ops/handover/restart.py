"""The planned restart as the running daemon lives it: start a new one, let go, and end; or go on as if nothing was."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from homelab_llm.core.errors import Conflict, DaemonUnavailable, HomelabError, UnsupportedRequest
from homelab_llm.core.failpoints import failpoint
from homelab_llm.ops.handover.dialogue import Done, Prepared, Serving, Yours
from homelab_llm.ops.handover.successor import Successor
from homelab_llm.ops.notify import notify
from homelab_llm.ops.ownership import Ownership

log = logging.getLogger(__name__)

TAKE_OVER_S = 30.0  # until the new daemon is prepared, and again until it serves
DRAIN_S = 30.0
QUIET_S = 30.0
_LOOK_S = 0.02
_COLD = "mlxctl daemon restart --cold"


class Leaving(Protocol):
    """What is handed over: the node and its front door."""

    def sockets(self) -> Sequence[tuple[str, int]]:
        """The listening sockets, by what was asked for when they were bound."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a command of the operator is under way, which must end first."""
        ...

    async def hand_over(self, done: Callable[[str], None]) -> Mapping[str, int]:
        """Accept nothing and begin nothing any more; gives how many requests run in each worker.

        ``done`` is told the worker each time one of them ends.
        """
        ...

    async def take_back(self) -> None:
        """Go on as before ``hand_over``."""
        ...

    async def leave(self, drain_s: float) -> None:
        """End what still runs within ``drain_s`` and leave everything to the new daemon."""
        ...


class Restart:
    """At most one handover at a time.

    Args:
        arguments: the new daemon's command line after its Python.
        announce: publishes this process's record again, after a new one that failed may have replaced it.
        end: called when the new daemon serves: this one shall end.
    """

    def __init__(
        self,
        house: Leaving,
        owner: Ownership,
        environ: Mapping[str, str],
        arguments: Sequence[str],
        log_file: Path,
        *,
        announce: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self._house = house
        self._owner = owner
        self._environ = environ
        self._arguments = arguments
        self._log_file = log_file
        self._announce = announce
        self._end = end
        self._running: asyncio.Task[dict[str, Any]] | None = None
        self._successor: Successor | None = None

    @property
    def handed_over(self) -> bool:
        """Whether a new daemon serves; this one only ends what it began."""
        return not self._owner.ours

    @property
    def running(self) -> bool:
        """Whether a handover is under way."""
        return self._running is not None and not self._running.done()

    async def ask(self, python: str = "") -> dict[str, Any]:
        """Hand over and give what the new daemon says of itself. A caller that goes away stops nothing.

        Args:
            python: the interpreter to run it with; empty = ours.

        Raises:
            Conflict: a restart is under way, or slots are being changed for too long.
            UnsupportedRequest: whoever started this process would not accept another one in its place.
            DaemonUnavailable: the new daemon failed; this one goes on.
        """
        self._check()
        self._running = asyncio.create_task(self._hand_over(python or sys.executable))
        return await asyncio.shield(self._running)

    async def settled(self) -> None:
        """Wait until no handover is under way."""
        if self._running is not None:
            await asyncio.wait({self._running})

    async def leave(self, following: asyncio.Task[None] | None) -> None:
        """After the handover: end what still runs, and leave the rest to the new daemon.

        Args:
            following: hears of the requests that the daemon before this one still runs; the new one is told of them.
        """
        successor = self._successor
        if successor is not None:
            await self._house.leave(DRAIN_S)
            if following is not None:
                await asyncio.wait({following}, timeout=DRAIN_S)
            successor.outlive()
            successor.channel.close()

    def _check(self) -> None:
        if self.running or self.handed_over:
            raise Conflict("a restart is under way", hint="mlxctl daemon status")
        if self._environ.get("HOMELAB_SERVICE") == "launchd":
            raise UnsupportedRequest("launchd follows one process and cannot take over another", hint=_COLD)
        if os.getpid() == 1:
            raise UnsupportedRequest("this daemon is process 1 of a container, which ends with it", hint=_COLD)

    async def _hand_over(self, python: str) -> dict[str, Any]:
        started_s = time.monotonic()
        told_us = int(started_s * 1_000_000)
        notify(self._environ, f"RELOADING=1\nMONOTONIC_USEC={told_us}\nSTATUS=handing over")
        try:
            successor = self._spawn(python)
            try:
                found = await self._pass_on(successor)
            except BaseException:
                await successor.end()
                raise
        except BaseException as error:
            self._owner.sign()
            self._announce()
            notify(self._environ, "READY=1\nSTATUS=serving")
            reason = error.message if isinstance(error, HomelabError) else str(error)
            log.error("restart failed", extra={"error": reason})
            if isinstance(error, OSError):
                raise DaemonUnavailable(
                    f"no new daemon could be started: {reason}; the old one goes on", hint="mlxctl logs daemon"
                ) from error
            raise
        self._successor = successor
        self._owner.give_away()
        notify(self._environ, f"MAINPID={successor.pid}\nREADY=1\nSTATUS=serving")
        log.info("handed over", extra={"pid": successor.pid, "took_s": round(time.monotonic() - started_s, 3)})
        self._end()
        return found

    async def _quiet(self, deadline_s: float) -> None:
        """Wait until no slot is being changed: half of a load or swap cannot be handed over."""
        while self._house.busy:
            if asyncio.get_running_loop().time() > deadline_s:
                raise Conflict(
                    "models are being loaded into slots",
                    hint="wait until mlxctl status shows none loading, or: mlxctl daemon restart --cold",
                )
            await asyncio.sleep(_LOOK_S)

    def _spawn(self, python: str) -> Successor:
        failpoint("handover.spawn")
        return Successor(
            [python, *self._arguments], self._environ, self._owner.handle, self._house.sockets(), self._log_file
        )

    async def _pass_on(self, successor: Successor) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        prepared = await successor.expect(Prepared, loop.time() + TAKE_OVER_S)
        await self._quiet(loop.time() + QUIET_S)
        try:
            leases = await self._house.hand_over(lambda worker_id: successor.channel.send(Done(worker_id)))
            failpoint("handover.yours")
            successor.channel.send(Yours(leases))
            serving = await successor.expect(Serving, loop.time() + TAKE_OVER_S)
        except BaseException:
            await successor.end()
            await self._house.take_back()
            raise
        return {"pid": serving.pid, "version": prepared.version, "listeners": serving.listeners}
