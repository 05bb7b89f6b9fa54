"""Server: the front door as a whole. Binds the listeners and serves one application on all of them.

Handles no signals and owns no process: ``ops`` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

import uvicorn
from uvicorn.config import Config

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.settings import ServerSettings
from homelab_llm.gateway.app import App
from homelab_llm.gateway.listeners import BACKLOG, Bound, Listener, bind_all, close_all
from homelab_llm.gateway.protocol import Bounds, DoorProtocol
from homelab_llm.gateway.seams import Keys

KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that they, not we, close them
_LAST_WORDS_S = 2.0


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
        loop = asyncio.get_running_loop()
        self.servers = []
        for entry in self._bound:
            make = self._maker(entry.listener)
            if entry.socket.family == AF_UNIX:
                self.servers.append(await loop.create_unix_server(make, sock=entry.socket, backlog=BACKLOG))
            else:
                self.servers.append(await loop.create_server(make, sock=entry.socket, backlog=BACKLOG))
        self.started = True

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
    """

    def __init__(
        self, app: App, settings: ServerSettings, daemon_sock: Path, keys: Keys, *, named: bool = False
    ) -> None:
        self._app = app
        self._settings = settings
        self._daemon_sock = daemon_sock
        self._keys = keys
        self._named = named
        self._bound: list[Bound] = []
        self._skipped: list[HomelabError] = []
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """What is listened on, the daemon's own socket first."""
        return tuple(entry.listener for entry in self._bound)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The TCP addresses, with their actual ports."""
        return tuple(listener.address for listener in self.listeners if not listener.control)

    @property
    def warnings(self) -> list[dict[str, str]]:
        """What did not go as the settings say: ``{text, hint}``."""
        return [{"text": error.message, "hint": error.hint} for error in self._skipped]

    async def start(self) -> None:
        """Bind and serve; returns when requests are answered.

        Raises:
            InvalidInput, ListenRefused, PortTaken, DaemonRunning: see ``listeners.bind_all``.
        """
        self._bound, skipped = bind_all(
            self._settings.listen, self._daemon_sock, named=self._named, have_key=self._keys.any()
        )
        self._skipped.extend(skipped)
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
        self._server = _Server(config, self._bound, bounds)
        self._app.open()
        self._serving = asyncio.get_running_loop().create_task(self._server.serve())
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(0)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(self._server))
        _calm_collector()

    async def stop(self, drain_s: float = 5.0) -> None:
        """Accept nothing more, let running requests end for up to ``drain_s``, then end them with an error."""
        server, serving = self._server, self._serving
        if server is None or serving is None:
            return
        self._app.stop()
        server.config.timeout_graceful_shutdown = int(drain_s + 2 * _LAST_WORDS_S) + 1
        server.should_exit = True
        await asyncio.wait({serving}, timeout=drain_s)
        if not serving.done():
            self._app.abort_all()
            await asyncio.wait({serving}, timeout=_LAST_WORDS_S)
        server.cut()
        await serving
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._app.close()
        close_all(self._bound)
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
