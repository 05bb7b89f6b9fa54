"""App: the ASGI application of the front door. One for all listeners; raw ASGI, no framework on the way.

Per request: Host → Origin → route → key → body → handler. The listener is in ``scope["state"]["listener"]``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from homelab_llm import __version__
from homelab_llm.core.errors import DaemonUnavailable, EndpointNotFound, HandedOver, HomelabError, InternalError
from homelab_llm.core.events import EventBus
from homelab_llm.core.settings import ServerSettings
from homelab_llm.gateway.admin import Admin
from homelab_llm.gateway.auth import Gate, Presented, cors_headers, is_batch, preflight_headers
from homelab_llm.gateway.control import Control
from homelab_llm.gateway.dialects.openai import parse_chat, parse_completion, parse_embedding
from homelab_llm.gateway.event_stream import EventStream
from homelab_llm.gateway.exchange import Exchange, Scope, Send
from homelab_llm.gateway.fields import shown
from homelab_llm.gateway.forward import Origin, Successor
from homelab_llm.gateway.jobs import JobRoutes
from homelab_llm.gateway.limits import Receive, check_encoding, parse_json, read_body
from homelab_llm.gateway.listeners import Listener
from homelab_llm.gateway.models import ModelList
from homelab_llm.gateway.openapi import document
from homelab_llm.gateway.proxy import CHAT_PATH, COMPLETION_PATH, Proxy
from homelab_llm.gateway.routes import DOWNLOAD, JOB_ORDER, LOAD, RESTART, ROUTES, UNLOAD, Route
from homelab_llm.gateway.routing import StoreRouter
from homelab_llm.gateway.seams import Catalogue, Controller, Fleet, Jobs, Keys, Recorder, Router, Shaper
from homelab_llm.gateway.upstream import Upstream

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]
NAME = b"homelab-llm\n"
SWEEP_S = 0.5
_PLAIN = (b"content-type", b"text/plain; charset=utf-8")
_NO_LISTENER = Listener("", loopback=False)


@dataclass(slots=True)
class Parts:
    """What the front door is built from; see ``seams``. ``about``, ``shutdown`` and ``restart``: see ``Admin``.

    Without a ``router`` names are models of the store; without a ``controller`` there is nothing to control, without
    ``jobs`` no long work is taken.
    """

    catalogue: Catalogue
    fleet: Fleet
    shaper: Shaper
    keys: Keys
    recorder: Recorder
    about: Callable[[], Mapping[str, Any]]
    shutdown: Callable[[], None] | None = None
    restart: Callable[[str], Awaitable[dict[str, Any]]] | None = None
    router: Router | None = None
    controller: Controller | None = None
    events: EventBus | None = None
    jobs: Jobs | None = None


class App:
    """The application. ``open`` and ``close`` run around its life on one event loop."""

    def __init__(self, parts: Parts, settings: ServerSettings, *, stall_timeout_s: float) -> None:
        self._parts = parts
        self._settings = settings
        self._gate = Gate(parts.keys, allowed_hosts=settings.allowed_hosts, allowed_origins=settings.allowed_origins)
        self._upstream = Upstream()
        self._router = parts.router or StoreRouter(parts.catalogue)
        self._proxy = Proxy(self._router, parts.fleet, parts.shaper, self._upstream, stall_s=stall_timeout_s)
        self._admin = Admin(self._router, parts.fleet, parts.about, parts.shutdown, parts.restart)
        self._control = Control(parts.controller)
        self._events = EventStream(parts.events)
        self._jobs = JobRoutes(parts.jobs)
        self._list = ModelList(parts.catalogue, self._router)
        self._openapi = b""
        self._exchanges: set[Exchange] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._sweep_s = min(SWEEP_S, stall_timeout_s / 4, settings.request_deadline_s / 4)
        self._successor: Successor | None = None
        self._away = False
        self.stopping = False
        self._exact: dict[str, dict[str, tuple[Route, Handler]]] = {}
        self._parted: dict[tuple[str, str], dict[str, tuple[Route, Handler]]] = {}
        for route in sorted(ROUTES, key=lambda route: route.path.endswith("{id}")):  # what an {id} takes whole is last
            self._add(route)

    def _add(self, route: Route) -> None:
        entry = (route, partial(self._controlled, route) if route.controlled else getattr(self, f"_{route.handler}"))
        before, parted, after = route.path.partition("{id}")
        methods = self._parted.setdefault((before, after), {}) if parted else self._exact.setdefault(route.path, {})
        for method in route.methods:
            methods[method] = entry

    # --- life ---

    def open(self) -> None:
        """Start the sweep over deadlines; call on the loop that serves."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def close(self) -> None:
        """End what runs besides requests, and close the connections to workers."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self._upstream.close()

    @property
    def running(self) -> int:
        """Requests that are being served."""
        return len(self._exchanges)

    def stop(self) -> None:
        """Say that no more requests are wanted, and end what would not end by itself."""
        self.stopping = True
        self._events.close()

    def hand_over(self, daemon_sock: Path) -> None:
        """From now on the daemon behind ``daemon_sock`` answers, also what the fleet refuses with ``HandedOver``.

        To be called before the fleet hands over. Requests that have a worker go on here; their clients are asked to
        come back on a new connection. A connection that is made too early waits in the socket's queue.
        """
        self._successor = Successor(daemon_sock)
        self._away = True
        self._events.close()
        for exchange in self._exchanges:
            if not exchange.started:  # a reply whose head did not say so must not be its connection's last
                exchange.close_connection()

    def resume(self) -> None:
        """Serve again. What was refused with ``HandedOver`` still goes over the socket, which is ours again."""
        self._away = False

    def abort_all(self) -> None:
        """End every request with an error, in mid-stream too."""
        for exchange in list(self._exchanges):
            exchange.abort(DaemonUnavailable("the server is stopping", hint="send the request again"))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            now_s = time.monotonic()
            for exchange in list(self._exchanges):
                exchange.tick(now_s)
            self._upstream.sweep(now_s)

    # --- one request ---

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, request_deadline_s=self._settings.request_deadline_s)
        self._exchanges.add(exchange)
        try:
            await self._serve(exchange)
        except HomelabError as error:
            await self._fail(exchange, error)
        except asyncio.CancelledError:
            await self._fail(exchange, exchange.reason())
        except Exception:  # the outermost place for errors of a request
            log.exception("a request failed by a defect", extra={"request_id": exchange.request_id})
            await self._fail(
                exchange,
                InternalError("the server failed", hint="mlxctl logs daemon", request_id=exchange.request_id),
            )
        finally:
            exchange.close()
            self._exchanges.discard(exchange)
            if exchange.recorded:
                exchange.row.total_ms = exchange.elapsed_ms
                self._parts.recorder.record(exchange.row)

    @staticmethod
    async def _fail(exchange: Exchange, error: HomelabError) -> None:
        """Answer with an error; from here on nothing cancels the task."""
        exchange.close()
        await exchange.fail(error)

    async def _serve(self, exchange: Exchange) -> None:
        scope = exchange.scope
        state = scope.get("state") or {}
        listener: Listener = state.get("listener", _NO_LISTENER)
        if refused := state.get("refused"):
            exchange.close_connection()
            raise refused
        told = Presented.of(scope["headers"])
        self._gate.check_host(told, listener)
        if origin := self._gate.check_origin(told, listener):
            exchange.headers += cors_headers(origin)
            if scope["method"] == "OPTIONS" and told.fetch_method:
                await exchange.whole(204, b"", preflight_headers(told))
                return
        route, handler = self._find(exchange.path, scope["method"])
        self._admit(exchange, told, listener, route)
        if self._away and self._successor is not None:
            await self._successor.take(exchange, await self._content(exchange))
            return
        try:
            await handler(exchange)
        except HandedOver:
            if self._successor is None:
                raise
            await self._successor.take(exchange, exchange.content)

    def _admit(self, exchange: Exchange, told: Presented, listener: Listener, route: Route) -> None:
        """Let the request in and note who sent it; one that another daemon passed on was sent to that one.

        Raises:
            EndpointNotFound: slot ports do not have it.
            Unauthorized, Forbidden, InvalidInput: see ``auth``.
        """
        row = exchange.row
        exchange.slot = listener.slot
        forwarded = Origin.of(exchange.scope["headers"]) if listener.control else None
        if forwarded is not None:
            exchange.came_from(forwarded.request_id, forwarded.slot)
        if exchange.slot and not route.on_slots:
            raise EndpointNotFound(
                f"slot ports do not have {shown(exchange.path)}", hint="the front address has every endpoint"
            )
        grant = self._gate.admit(told, listener, route.access)
        exchange.recorded = route.recorded
        exchange.batch = is_batch(told, grant)
        row.key = grant.name
        row.port = exchange.slot
        if client := exchange.scope.get("client"):
            row.client = client[0]
        if forwarded is not None:
            row.key, row.client, exchange.batch = forwarded.key, forwarded.client, forwarded.batch
        exchange.trusted = listener.control and forwarded is None

    def _find(self, path: str, method: str) -> tuple[Route, Handler]:
        methods = self._exact.get(path)
        if methods is None:
            methods = next((behind for parts, behind in self._parted.items() if _fits(path, *parts)), None)
        if methods is None:
            raise EndpointNotFound(f"no such endpoint: {shown(path)}", hint="the endpoints are at /openapi.json")
        if found := methods.get(method):
            return found
        allowed = ", ".join(methods)
        raise EndpointNotFound(f"{shown(path)} takes {allowed}", allowed=allowed)

    async def _content(self, exchange: Exchange, declared: int | None = None) -> bytes:
        """The body sent; from here on the client's leaving ends the request."""
        limit_bytes = self._settings.max_body_bytes
        content = exchange.arrived_body(limit_bytes)
        if content is None:
            content = await read_body(exchange.receive, declared, limit_bytes)
        exchange.watch()
        return content

    async def _body(self, exchange: Exchange) -> dict[str, Any]:
        """The JSON object sent."""
        declared = check_encoding(exchange.scope["headers"])
        exchange.content = await self._content(exchange, declared)
        return parse_json(exchange.content, self._settings.max_depth)

    async def _request(self, exchange: Exchange) -> dict[str, Any]:
        """An inference request; on a slot port what it says of the model does not count."""
        body = await self._body(exchange)
        if exchange.slot:
            body["model"] = "-"
        return body

    # --- endpoints ---

    async def _root(self, exchange: Exchange) -> None:
        await exchange.whole(200, NAME, [_PLAIN])

    async def _healthz(self, exchange: Exchange) -> None:
        await exchange.json({"status": "ok"})

    async def _readyz(self, exchange: Exchange) -> None:
        if self.stopping:
            raise DaemonUnavailable("the server is stopping", hint="send the request again")
        if exchange.slot:
            self._router.route("", exchange.slot)
        await exchange.json({"status": "ready"})

    async def _openapi_json(self, exchange: Exchange) -> None:
        if not self._openapi:
            self._openapi = orjson.dumps(document(ROUTES, __version__))
        await exchange.whole(200, self._openapi)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.whole(200, self._list.encoded(exchange.slot))

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix("/v1/models/")
        await exchange.json(self._list.one(name, exchange.slot))

    async def _chat(self, exchange: Exchange) -> None:
        await self._proxy.generate(exchange, parse_chat(await self._request(exchange)), CHAT_PATH)

    async def _completion(self, exchange: Exchange) -> None:
        await self._proxy.generate(exchange, parse_completion(await self._request(exchange)), COMPLETION_PATH)

    async def _embedding(self, exchange: Exchange) -> None:
        await self._proxy.embed(exchange, parse_embedding(await self._request(exchange)))

    async def _admin_status(self, exchange: Exchange) -> None:
        await self._admin.status(exchange)

    async def _admin_models(self, exchange: Exchange) -> None:
        await self._admin.models(exchange)

    async def _admin_load(self, exchange: Exchange) -> None:
        await self._admin.load(exchange, LOAD(await self._body(exchange), ""))

    async def _admin_unload(self, exchange: Exchange) -> None:
        await self._admin.unload(exchange, UNLOAD(await self._body(exchange), ""))

    async def _controlled(self, route: Route, exchange: Exchange) -> None:
        if route.body is None:
            exchange.watch()
            body = {}
        else:
            body = route.body(await self._body(exchange), "")
        await self._control.serve(exchange, route.handler, body)

    async def _admin_events(self, exchange: Exchange) -> None:
        await self._events.serve(exchange)

    async def _download(self, exchange: Exchange) -> None:
        await self._jobs.download(exchange, DOWNLOAD(await self._body(exchange), ""))

    async def _downloads(self, exchange: Exchange) -> None:
        await self._jobs.downloads(exchange)

    async def _job_submit(self, exchange: Exchange) -> None:
        await self._jobs.submit(exchange, JOB_ORDER(await self._body(exchange), ""))

    async def _job_list(self, exchange: Exchange) -> None:
        await self._jobs.list(exchange)

    async def _job_show(self, exchange: Exchange) -> None:
        await self._jobs.show(exchange)

    async def _job_progress(self, exchange: Exchange) -> None:
        await self._jobs.progress(exchange)

    async def _job_cancel(self, exchange: Exchange) -> None:
        await self._jobs.cancel(exchange)

    async def _admin_restart(self, exchange: Exchange) -> None:
        await self._admin.restart(exchange, RESTART(await self._body(exchange), ""))

    async def _admin_shutdown(self, exchange: Exchange) -> None:
        await self._admin.shutdown(exchange)


def _fits(path: str, before: str, after: str) -> bool:
    """Whether something stands between the two parts: one part of a path, or at its end anything."""
    between = path[len(before) : len(path) - len(after)]
    return bool(between) and path.startswith(before) and path.endswith(after) and not (after and "/" in between)
