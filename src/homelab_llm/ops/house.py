"""The house the daemon keeps: the node and its front door, started and stopped in the right order."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from socket import socket
from typing import TYPE_CHECKING, Any

from homelab_llm.core.events import Event
from homelab_llm.core.paths import Home
from homelab_llm.core.settings import Settings
from homelab_llm.gateway.listeners import Inherited
from homelab_llm.gateway.server import FrontDoor
from homelab_llm.node import JobParts, Node
from homelab_llm.ops.jobs.runner import Runner
from homelab_llm.ops.record import update_record
from homelab_llm.ops.service.choose import manager_name

if TYPE_CHECKING:
    from homelab_llm.inference.engines.base import Engine


class NodeHouse:
    """A node that is served.

    Args:
        engines: replaces the table of engines.
        named: the addresses were given on the command line, so a taken one is an error.
        stop: asks the daemon to end; ``POST /admin/shutdown`` calls it.
        restart: hands over to a new daemon; ``POST /admin/restart`` calls it.
        sockets: those of an earlier daemon that started this one.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        engines: Sequence[Engine] | None,
        *,
        named: bool,
        stop: Callable[[], None],
        restart: Callable[[str], Awaitable[dict[str, Any]]],
        sockets: Sequence[tuple[str, socket]] = (),
    ) -> None:
        self._home = home
        self._settings = settings
        self._node = Node(
            home,
            settings,
            engines=engines,
            shutdown=stop,
            restart=restart,
            jobs=self._runner,
            managed_by=manager_name(sys.platform, os.environ),
        )
        self._door = FrontDoor(
            self._node.app,
            settings.server,
            home.daemon_sock,
            self._node.keys,
            named=named,
            slots=settings.slots.table(),
            slot_bind=settings.slots.bind,
            inherited=Inherited(sockets),
            news=self._on_port,
        )
        self._own_warnings: list[dict[str, str]] = []
        self._node_began = False

    @property
    def addresses(self) -> Sequence[str]:
        return self._door.addresses

    @property
    def warnings(self) -> Sequence[dict[str, str]]:
        return self._node.warnings

    # --- one life, see ``life.House`` ---

    def bind(self) -> None:
        self._door.bind()
        self._node.slot_problems = self._door.slot_problems()

    async def start(self, leases: Mapping[str, int]) -> None:
        self._node_began = True
        await self._node.start(leases)
        await self._door.start()
        self._own_warnings = list(self._node.warnings)
        self._tell_ports()

    def let_go(self, worker_id: str) -> None:
        self._node.let_go(worker_id)

    async def stop(self, drain_s: float, *, leave_workers: bool, remove: bool) -> None:
        await self._door.stop(drain_s, remove=remove)
        if self._node_began:
            await self._node.close(leave_workers=leave_workers)

    # --- the handover, see ``handover.restart.Leaving`` ---

    def sockets(self) -> Sequence[tuple[str, int]]:
        return self._door.sockets()

    @property
    def busy(self) -> bool:
        return self._node.busy

    async def hand_over(self, done: Callable[[str], None]) -> Mapping[str, int]:
        await self._node.prepare_hand_over()
        self._door.pause()
        leases = self._node.hand_over(done)
        await self._node.settled()
        return leases

    async def take_back(self) -> None:
        self._node.take_back()
        await self._door.resume()

    async def leave(self, drain_s: float) -> None:
        await self._door.leave(drain_s)
        await self._node.close(leave_workers=True)

    # --- jobs ---

    def _runner(self, parts: JobParts) -> Runner:
        return Runner(
            parts.rows,
            {"home": str(self._home.root), "settings": self._settings.model_dump(mode="json")},
            limit=self._settings.store.max_jobs,
            publish=parts.publish,
            unix_s=parts.unix_s,
            host_id=platform.node() or "localhost",
            done=parts.done,
        )

    # --- ports that others held ---

    def _tell_ports(self) -> None:
        self._node.listeners[:] = self._door.addresses
        self._node.warnings[:] = [*self._own_warnings, *self._door.warnings]
        self._node.slot_problems = self._door.slot_problems()

    def _on_port(self, event: Event) -> None:
        """An address that somebody held is ours now: nothing warns of it any more."""
        self._tell_ports()
        self._node.events.publish(event)
        update_record(self._home, list(self.addresses), list(self.warnings))
