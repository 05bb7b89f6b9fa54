"""The house the daemon keeps: the node and its front door, started and stopped in the right order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from homelab_llm.core.paths import Home
from homelab_llm.core.settings import Settings
from homelab_llm.gateway.server import FrontDoor
from homelab_llm.node import Node

if TYPE_CHECKING:
    from homelab_llm.inference.engines.base import Engine


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
        self._door = FrontDoor(self._node.app, settings.server, home.daemon_sock, self._node.keys, named=named)

    @property
    def addresses(self) -> Sequence[str]:
        return self._door.addresses

    @property
    def warnings(self) -> Sequence[dict[str, str]]:
        return self._node.warnings

    async def start(self) -> None:
        await self._node.start()
        await self._door.start()
        self._node.listeners[:] = self._door.addresses
        self._node.warnings.extend(self._door.warnings)

    async def stop(self, drain_s: float) -> None:
        await self._door.stop(drain_s)
        await self._node.close()
