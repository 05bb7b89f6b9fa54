"""Tickets and leases: a request while it waits, and the right to use a worker that it gets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.traits import WorkerTraits
from homelab_llm.inference.fleet.seams import Planned


class LeaseHome(Protocol):
    """Where a lease goes back to."""

    def end_lease(self, request_id: str, worker_id: str, *, well: bool) -> None: ...

    def leave(self, request_id: str, worker_id: str) -> None: ...

    def condemn(self, worker_id: str) -> None: ...

    async def failure(self, worker_id: str) -> HomelabError: ...


class FleetLease:
    """The right to send one request to a worker. ``release`` may be called again; only the first call counts."""

    __slots__ = ("_broke", "_home", "_released", "_request_id", "context_tokens", "socket", "traits", "worker_id")

    def __init__(
        self,
        home: LeaseHome,
        request_id: str,
        worker_id: str,
        *,
        socket: Path,
        traits: WorkerTraits,
        context_tokens: int,
    ) -> None:
        self._home = home
        self._request_id = request_id
        self._released = False
        self._broke = False
        self.worker_id = worker_id
        self.socket = socket
        self.traits = traits
        self.context_tokens = context_tokens

    def release(self, *, abandoned: bool = False) -> None:
        """Give the slot back; the next request may be granted within this call.

        ``abandoned``: the connection was closed in mid-reply. A worker that does not notice that at once keeps
        the slot until it says that it is free.
        """
        if self._released:
            return
        self._released = True
        if abandoned and self.traits.busy_path:
            self._home.leave(self._request_id, self.worker_id)
        else:
            self._home.end_lease(self._request_id, self.worker_id, well=not (abandoned or self._broke))

    def condemn(self) -> None:
        """The worker stalled: end it at once. Other requests in it break off; those that wait get another one."""
        self._broke = True
        self._home.condemn(self.worker_id)

    async def failure(self) -> HomelabError:
        """Why the worker broke off; waits less than a second."""
        self._broke = True
        return await self._home.failure(self.worker_id)


class Ticket:
    """A request from its submission to its grant or refusal."""

    __slots__ = ("_waker", "done", "error", "lease", "planned", "preload", "request_id")

    def __init__(self, request_id: str, planned: Planned, *, preload: bool) -> None:
        self.request_id = request_id
        self.planned = planned
        self.preload = preload
        self.done = False
        self.lease: FleetLease | None = None
        self.error: HomelabError | None = None
        self._waker: asyncio.Future[None] | None = None

    def end(self, lease: FleetLease | None, error: HomelabError | None) -> None:
        """Granted or refused."""
        self.lease, self.error, self.done = lease, error, True
        self.wake()

    def wake(self) -> None:
        """Something about it may have changed."""
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def changed(self) -> None:
        """Wait for ``wake``."""
        self._waker = asyncio.get_running_loop().create_future()
        await self._waker
