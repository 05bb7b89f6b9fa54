"""Admin: the routes that control the daemon. Reached over ``daemon.sock``, or with a key that has the scope."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from homelab_llm.core.errors import Conflict, Forbidden
from homelab_llm.core.waits import Wait
from homelab_llm.gateway.exchange import NDJSON, Exchange
from homelab_llm.gateway.seams import Fleet, Router


class Admin:
    """Serves ``/admin``.

    Args:
        about: ``{version, pid, home, uptime_s, listeners, warnings: [{text, hint}]}`` of the daemon.
        shutdown: asks the daemon to end; returns at once. None: this process is not a daemon.
        restart: hands over to a new daemon, run by the Python it is given (empty = this one's); returns what the new
            one says of itself when it serves.
    """

    def __init__(
        self,
        router: Router,
        fleet: Fleet,
        about: Callable[[], Mapping[str, Any]],
        shutdown: Callable[[], None] | None,
        restart: Callable[[str], Awaitable[dict[str, Any]]] | None = None,
    ) -> None:
        self._router = router
        self._fleet = fleet
        self._about = about
        self._shutdown = shutdown
        self._restart = restart

    async def status(self, exchange: Exchange) -> None:
        """What the daemon is and does."""
        await exchange.json({**self._about(), **self._fleet.status()})

    async def models(self, exchange: Exchange) -> None:
        """The loaded models."""
        await exchange.json({"models": list(self._fleet.status().get("workers") or ())})

    async def load(self, exchange: Exchange, body: dict[str, Any]) -> None:
        """Load a model, or what an alias serves; one JSON line for each step, the last is ``ready`` or the error."""
        target = self._router.route(body["model"])
        keep_alive_s = body.get("keep_alive", target.keep_alive_s)
        steps = self._fleet.load(target.model, exchange.request_id, keep_alive_s=keep_alive_s)
        last = ""
        async with contextlib.AsyncExitStack() as stack:
            if close := getattr(steps, "aclose", None):
                stack.push_async_callback(close)  # a client that leaves ends the wait at once, not at some collection
            async for wait in steps:
                last = wait.stage
                await exchange.write(_line(wait), NDJSON)
        if last != "ready":
            await exchange.write(_line(Wait("ready", 1.0)), NDJSON)
        await exchange.end()

    async def unload(self, exchange: Exchange, body: dict[str, Any]) -> None:
        """Unload a model."""
        target = self._router.route(body["model"])
        await exchange.json({"unloaded": await self._fleet.unload(target.model, force=body.get("force", False))})

    async def shutdown(self, exchange: Exchange) -> None:
        """End the daemon; the reply leaves first."""
        if self._shutdown is None:
            raise _no_daemon()
        await exchange.json({"stopping": True}, 202)
        self._shutdown()

    async def restart(self, exchange: Exchange, body: dict[str, Any]) -> None:
        """Hand over to a new daemon; answers when that one serves."""
        if self._restart is None:
            raise _no_daemon()
        python = body.get("python", "")
        if python and not exchange.trusted:
            raise Forbidden("a program to run is taken from the daemon's own socket only", field="python")
        await exchange.json(await self._restart(python))


def _no_daemon() -> Conflict:
    return Conflict("this server is not run by the daemon", hint="end the program that started it")


def _line(wait: Wait) -> bytes:
    return orjson.dumps({"stage": wait.stage, "done": round(wait.done, 4), "place": wait.place}) + b"\n"
