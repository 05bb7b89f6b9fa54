"""The new daemon's side: what was passed on to this process, and when it may begin."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import homelab_llm
from homelab_llm.core.errors import DaemonUnavailable, HomelabError
from homelab_llm.core.failpoints import failpoint
from homelab_llm.ops.handover.channel import Channel
from homelab_llm.ops.handover.dialogue import Busy, Done, Failed, Prepared, Serving, Yours

VARIABLE = "HOMELAB_HANDOVER"
"""JSON: ``{"from": pid, "channel": fd, "lock": fd, "sockets": [[wanted, fd], …]}``; the numbers are inherited."""


_ORPHANED_LOOKS = 100
_LOOK_S = 0.01


class Inheritance:
    """Sockets, lock and channel of the daemon that started this process to take its place."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.lock = int(told["lock"])
        self._predecessor = int(told["from"])
        self.sockets = [(str(wanted), socket.socket(fileno=int(fd))) for wanted, fd in told["sockets"]]
        self._channel = Channel(socket.socket(fileno=int(told["channel"])))
        self._leases: dict[str, int] = {}
        for handle in (self.lock, int(told["channel"]), *(sock.fileno() for _, sock in self.sockets)):
            os.set_inheritable(handle, False)  # workers must not keep them open

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Inheritance | None:
        """What this process inherited; None when nobody started it to take over. The variable is removed."""
        told: dict[str, Any] = json.loads(environ.pop(VARIABLE, "null")) or {}
        return cls(told) if told.get("from") == os.getppid() else None

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Tell the old daemon why this one ends, should it end with an error."""
        try:
            yield
        except HomelabError as error:
            self._channel.send_now(Failed(error.code, error.message, error.hint))
            raise
        except OSError as error:
            self._channel.send_now(Failed("error", str(error)))
            raise

    def busy(self, text: str, limit_s: float) -> None:
        """Ask the old daemon to be patient for so long; before ``claim``."""
        self._channel.send_now(Busy(text, limit_s))

    async def claim(self) -> Mapping[str, int]:
        """Say that all is prepared and wait until everything is ours.

        Returns:
            How many requests the old daemon still runs, by worker; none when it died meanwhile.

        Raises:
            DaemonUnavailable: the old daemon called it off.
        """
        failpoint("handover.prepared")
        await self._channel.open()
        self._channel.send(Prepared(os.getpid(), homelab_llm.__version__))
        answer = await self._channel.receive()
        if isinstance(answer, Yours):
            self._leases = dict(answer.leases)
        elif not await self._orphaned():
            raise DaemonUnavailable("the old daemon called the restart off", hint="mlxctl logs daemon")
        failpoint("handover.claimed")
        return self._leases

    async def _orphaned(self) -> bool:
        """Whether the old daemon is dead. Its sockets are closed a moment before the system says so."""
        for _ in range(_ORPHANED_LOOKS):
            if os.getppid() != self._predecessor:
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    def serving(self, listeners: list[str]) -> None:
        """Say that this daemon serves; from here on the old one does not come back."""
        failpoint("handover.serving")
        self._channel.send(Serving(os.getpid(), listeners))

    async def follow(self, let_go: Callable[[str], None]) -> None:
        """Call ``let_go`` with the worker of each request that ends in the old daemon; returns when that one ended."""
        while isinstance(told := await self._channel.receive(), Done):
            if self._leases.get(told.worker_id, 0):
                self._leases[told.worker_id] -= 1
                let_go(told.worker_id)
        for worker_id, count in self._leases.items():
            for _ in range(count):
                let_go(worker_id)
        self._leases.clear()
        self._channel.close()
