"""Server: the front door as a whole. Binds the listeners and serves one application on all of them.

Handles no signals and owns no process: ``ops`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import uvicorn
from uvicorn.config import Config

from homelab_llm.core.events import Event
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.settings import ServerSettings
from homelab_llm.gateway.app import App
from homelab_llm.gateway.listeners import BACKLOG, Bound, Inherited, Listener
from homelab_llm.gateway.ports import AGAIN_S, Ports, wanted_addresses
from homelab_llm.gateway.protocol import Bounds, DoorProtocol
from homelab_llm.gateway.seams import Keys

KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they, not we, close them
_LAST_WORDS_S = 2.0
_LINGER_MIN_S = 2.0  # how long a daemon that handed over keeps idle connections open
_LINGER_S = 1.0  # and after the last request that came on one
_LOOK_S = 0.05


class _Server(uvicorn.Server):
    """uvicorn's server on our sockets: every listener's requests know where they came in."""

    def __init__(self, config: Config, bound: Sequence[Bound], bounds: Bounds) -> None:
        super().__init__(config)
        self._bound = bound
        self._bounds = bounds

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:  # noqa: ARG002
        await self.lifespan.startup()
        self.servers = []
        await self.accept()
        self.started = True

    async def accept(self) -> None:
        """Accept connections on every socket."""
        for entry in self._bound:
            await self.add(entry)

    async def add(self, entry: Bound) -> None:
        """Accept connections on one more socket."""
        loop = asyncio.get_running_loop()
        make = self._maker(entry.listener)
        sock = entry.socket.dup()  # the loop closes its own when accepting ends; ours may be accepted on again
        if entry.socket.family == AF_UNIX:
            self.servers.append(await loop.create_unix_server(make, sock=sock, backlog=BACKLOG))
        else:
            self.servers.append(await loop.create_server(make, sock=sock, backlog=BACKLOG))

    def pause(self) -> None:
        """Accept nothing; connections that come wait in the kernel's queue for ``accept``, here or elsewhere."""
        for server in self.servers:
            server.close()
        self.servers = []

    def _maker(self, listener: Listener) -> Any:
        state = {"listener": listener}

        def make() -> DoorProtocol:
            return DoorProtocol(self.config, self.server_state, state, bounds=self._bounds)

        return make

    def sweep(self, now_s: float) -> None:
        """End connections that are over their time."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, DoorProtocol):
                connection.sweep(now_s)

    def cut(self) -> None:
        """Close every connection at once."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class FrontDoor:
    """Listens and serves; ``start`` and ``stop`` once each, on one event loop.

    Args:
        daemon_sock: path of the daemon's own socket; its folder is private.
        named: the user chose the addresses, so one that is taken is an error.
        slots: their ports are listened on too, at ``slot_bind``; one that is held by somebody else is skipped.
        inherited: sockets of an earlier daemon, used where they are still wanted.
        news: gets an event whenever an address that was held by somebody else is served.
        again_s: how often such an address is tried again.
    """

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        daemon_sock: Path,
        keys: Keys,
        *,
        named: bool = False,
        slots: SlotTable | None = None,
        slot_bind: str = "127.0.0.1",
        inherited: Inherited | None = None,
        news: Callable[[Event], None] | None = None,
        again_s: float = AGAIN_S,
    ) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._inherited = inherited
        self._again_s = again_s
        self._ports = Ports(
            wanted_addresses(settings.listen, slots or SlotTable(), slot_bind), daemon_sock, named=named, news=news
        )
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._chores: list[asyncio.Task[None]] = []

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """What is listened on, the daemon's own socket first."""
        return tuple(entry.listener for entry in self._ports.bound)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The front addresses, with their actual ports; those of slots are not among them."""
        return tuple(listener.address for listener in self.listeners if not listener.control and not listener.slot)

    @property
    def warnings(self) -> list[dict[str, str]]:
        """What does not go as the settings say right now: ``{text, hint}``."""
        return self._ports.warnings

    def slot_problems(self) -> dict[int, dict[str, Any]]:
        """Slot ports that somebody else holds: ``{port: {pid, name, text}}``."""
        return self._ports.slot_problems()

    def bind(self) -> None:
        """Take the addresses and accept nothing yet; ``start`` does it otherwise.

        Raises:
            ListenRefused, PortTaken, DaemonRunning, InvalidInput: see ``listeners.bind_all``.
        """
        self._ports.bind(have_key=self._keys.any(), inherited=self._inherited)

    async def start(self) -> None:
        """Bind and serve; returns when requests are answered. Raises as ``bind``."""
        if not self._ports.bound:
            self.bind()
        config = Config(
            self._app,
            interface="asgi3",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # the application logs what happens, with request ids
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        bounds = Bounds(self._settings.receive_deadline_s, self._settings.max_connections)
        self._server = _Server(config, self._ports.bound, bounds)
        self._app.open()
        self._serving = asyncio.get_running_loop().create_task(self._server.serve())
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        self._chores = [
            loop.create_task(self._sweep(self._server)),
            loop.create_task(self._ports.watch(self._server.add, again_s=self._again_s)),
        ]
        _calm_collector()

    def sockets(self) -> list[tuple[str, int]]:
        """The listening sockets by what was asked for when they were bound, for ``Inherited`` in another process."""
        return [(entry.wanted, entry.socket.fileno()) for entry in self._ports.bound]

    def pause(self) -> None:
        """Accept nothing for now; what comes waits in the kernel's queue."""
        self._ports.paused = True
        if self._server is not None:
            self._server.pause()

    async def resume(self) -> None:
        """Accept again, after ``pause``."""
        self._ports.paused = False
        if self._server is not None:
            await self._server.accept()

    async def leave(self, drain_s: float) -> None:
        """After ``pause``: end what runs within ``drain_s`` and close, while another process serves the addresses.

        Connections that are idle stay open for a moment: a client may just be sending on one.
        """
        server = self._server
        if server is None:
            return
        loop = asyncio.get_running_loop()
        give_up_s, quiet_s = loop.time() + drain_s, loop.time() + _LINGER_MIN_S
        state = server.server_state
        replies = state.total_requests
        while loop.time() < give_up_s and (self._app.running or (state.connections and loop.time() < quiet_s)):
            await asyncio.sleep(_LOOK_S)
            if self._app.running or state.total_requests != replies:
                replies = state.total_requests
                quiet_s = max(quiet_s, loop.time() + _LINGER_S)
        await self._end(server, _LAST_WORDS_S, remove=False)

    async def stop(self, drain_s: float = 5.0, *, remove: bool = True) -> None:
        """Accept nothing more, let running requests end for up to ``drain_s``, then end them with an error.

        Args:
            remove: also the daemon's own socket from the file system; not when it is another daemon's.
        """
        if self._server is None:
            self._ports.close(remove=remove)
            return
        self._app.stop()
        await self._end(self._server, drain_s, remove=remove)

    async def _end(self, server: _Server, drain_s: float, *, remove: bool) -> None:
        serving = self._serving
        server.config.timeout_graceful_shutdown = int(drain_s + 2 * _LAST_WORDS_S) + 1
        server.should_exit = True
        if serving is not None:
            await asyncio.wait({serving}, timeout=drain_s)
            if not serving.done():
                self._app.abort_all()
                await asyncio.wait({serving}, timeout=_LAST_WORDS_S)
            server.cut()
            await serving
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self._app.close()
        self._ports.close(remove=remove)
        self._server = self._serving = None

    async def _sweep(self, server: _Server) -> None:
        pause_s = min(1.0, self._settings.receive_deadline_s / 4)
        while True:
            await asyncio.sleep(pause_s)
            server.sweep(time.monotonic())


def _calm_collector() -> None:
    """Keep the garbage collector from stopping the loop in the middle of requests.

    Requests leave next to no cycles behind, but the default threshold of 700 makes the collector look every few
    requests (measured: 9 % of the time under load), and at its largest it walks every imported module (8 ms).
    What exists at start is never garbage, so it is not looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
