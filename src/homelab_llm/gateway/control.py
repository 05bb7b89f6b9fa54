"""Control: the admin routes that the controller answers, one method for each. Values pass as they are."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import orjson

from homelab_llm.core.errors import Conflict
from homelab_llm.gateway.exchange import NDJSON, Exchange
from homelab_llm.gateway.seams import Controller

Answer = Awaitable[dict[str, Any]] | AsyncIterator[dict[str, Any]]


class Control:
    """Serves the routes that are marked as controlled.

    Args:
        controller: None where the daemon keeps no registry; every method then raises.
    """

    def __init__(self, controller: Controller | None) -> None:
        self._controller_or_none = controller

    async def serve(self, exchange: Exchange, name: str, body: dict[str, Any]) -> None:
        """Answer with a value, or with one JSON line for each step while it is made.

        A client that leaves ends the steps at once. An error before the first step is a status, later the last line.
        """
        answer: Answer = getattr(self, name)(body)
        if not isinstance(answer, AsyncIterator):
            await exchange.json(await answer)
            return
        exchange.has_no_deadline()  # it may pull a model over a slow line
        async with contextlib.AsyncExitStack() as stack:
            if close := getattr(answer, "aclose", None):
                stack.push_async_callback(close)
            async for step in answer:
                await exchange.write(orjson.dumps(step) + b"\n", NDJSON)
        await exchange.end()

    @property
    def _controller(self) -> Controller:
        if self._controller_or_none is None:
            raise Conflict("this daemon keeps no registry and has no slots", hint="mlxctl daemon status")
        return self._controller_or_none

    def slots(self, _body: dict[str, Any]) -> Answer:
        return self._controller.slots()

    def load(self, body: dict[str, Any]) -> Answer:
        return self._controller.load(body["model"], body["slot"], force=body.get("force", False))

    def swap(self, body: dict[str, Any]) -> Answer:
        return self._controller.swap(body["slot"], body["model"])

    def unload(self, body: dict[str, Any]) -> Answer:
        return self._controller.unload(body["slot"])

    def unload_all(self, _body: dict[str, Any]) -> Answer:
        return self._controller.unload_all()

    def adopt(self, body: dict[str, Any]) -> Answer:
        return self._controller.adopt(body["slot"])

    def reconcile(self, body: dict[str, Any]) -> Answer:
        return self._controller.reconcile(apply=body.get("apply", False))

    def verify(self, _body: dict[str, Any]) -> Answer:
        return self._controller.verify()

    def pin(self, body: dict[str, Any]) -> Answer:
        return self._controller.pin(body["model"], pinned=body["pinned"])

    def unquarantine(self, body: dict[str, Any]) -> Answer:
        return self._controller.unquarantine(body["model"])

    def fit(self, body: dict[str, Any]) -> Answer:
        return self._controller.fit(body["model"], body.get("context_tokens"))

    def explain(self, body: dict[str, Any]) -> Answer:
        slot = body.get("slot", "")
        if slot.isdigit():
            return self._controller.explain(body["request"], int(slot))
        request = {**body["request"], "model": slot} if slot else body["request"]
        return self._controller.explain(request)

    async def refresh(self, _body: dict[str, Any]) -> dict[str, Any]:
        await self._controller.refresh()
        return {"refreshed": True}
