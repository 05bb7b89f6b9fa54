"""The house the daemon keeps: the node and its front door, started and stopped in the right order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from homelab_llm.core.events import Event
from homelab_llm.core.paths import Home
from homelab_llm.core.settings import Settings
from homelab_llm.gateway.server import FrontDoor
from homelab_llm.node import Node
from homelab_llm.ops.record import update_record

if TYPE_CHECKING:
    from homelab_llm.inference.engines.base import Engine

log = logging.getLogger(__name__)


class NodeHouse:
    """A node that is served.

    Args:
        engines: replaces the table of engines.
        named: the addresses were given on the command line, so a taken one is an error.
        stop: asks the daemon to end; ``POST /admin/shutdown`` calls it.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        engines: Sequence[Engine] | None,
        *,
        named: bool,
        stop: Callable[[], None],
    ) -> None:
        self._node = Node(home, settings, engines=engines, shutdown=stop)
        self._door = FrontDoor(
            self._node.app,
            settings.server,
            home.daemon_sock,
            self._node.keys,
            named=named,
            slots=settings.slots.table(),
            slot_bind=settings.slots.bind,
            news=self._on_port,
        )
        self._home = home
        self._own_warnings: list[dict[str, str]] = []

    @property
    def addresses(self) -> Sequence[str]:
        return self._door.addresses

    @property
    def warnings(self) -> Sequence[dict[str, str]]:
        return self._node.warnings

    async def start(self) -> None:
        await self._node.start()
        await self._door.start()
        self._own_warnings = list(self._node.warnings)
        self._tell_ports()

    def _tell_ports(self) -> None:
        self._node.listeners[:] = self._door.addresses
        self._node.warnings[:] = [*self._own_warnings, *self._door.warnings]

    def _on_port(self, event: Event) -> None:
        """An address that somebody held is ours now: nothing warns of it any more."""
        log.info(event.text, extra=dict(event.facts))
        self._tell_ports()
        update_record(self._home, list(self.addresses), list(self.warnings))

    async def stop(self, drain_s: float) -> None:
        await self._door.stop(drain_s)
        await self._node.close()
