"""Event stream: ``/admin/events``, what happens as server-sent events. A slow reader loses the oldest and is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl

import orjson

from homelab_llm.core.errors import Conflict, InvalidInput, UnknownField
from homelab_llm.core.events import Event, EventBus, Subscription
from homelab_llm.gateway.exchange import Exchange
from homelab_llm.gateway.fields import shown
from homelab_llm.gateway.sse import comment

COMMENT_S = 15.0
_KIND = re.compile(r"[a-z_]{1,40}")
_ID = re.compile(r"\d{1,15}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader asked for: events after an id (None = from now on), of these kinds (none = all).

    Without ``follow`` the stream ends after what is remembered.
    """

    after_id: int | None = None
    kinds: frozenset[str] = frozenset()
    follow: bool = True

    @classmethod
    def of(cls, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> Wanted:
        """From ``?after=N&kinds=a,b&follow=false``; without ``after`` the header ``Last-Event-ID`` counts.

        Raises:
            UnknownField, InvalidInput: with ``field``.
        """
        after = next((value.decode("latin-1") for name, value in headers if name == b"last-event-id"), "")
        kinds: frozenset[str] = frozenset()
        follow = True
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            if name == "after":
                after = value or "-"
            elif name == "kinds":
                kinds = frozenset(value.split(","))
                if any(not _KIND.fullmatch(kind) for kind in kinds):
                    raise InvalidInput("'kinds' takes words joined by commas", field="kinds")
            elif name == "follow" and value in ("true", "false"):
                follow = value == "true"
            elif name == "follow":
                raise InvalidInput("'follow' is true or false", field="follow")
            else:
                raise UnknownField(
                    f"unknown field {shown(name)!r}", hint="after, kinds and follow are known", field=shown(name)
                )
        if after and not _ID.fullmatch(after):
            raise InvalidInput("'after' takes the id of an event", field="after")
        return cls(int(after) if after else None, kinds, follow)


class EventStream:
    """Serves the events of one bus; ``close`` ends every stream.

    Args:
        comment_s: an idle stream gets a comment this often, so that both sides notice when the other is gone.
    """

    def __init__(self, bus: EventBus | None, *, comment_s: float = COMMENT_S) -> None:
        self._bus = bus
        self._comment_s = comment_s
        self._open: set[Subscription] = set()

    async def serve(self, exchange: Exchange) -> None:
        """Write events until the client leaves.

        Raises:
            Conflict: nothing is told here.
        """
        wanted = Wanted.of(exchange.scope.get("query_string", b""), exchange.scope["headers"])
        if self._bus is None:
            raise Conflict("this server tells no events", hint="mlxctl daemon status")
        exchange.has_no_deadline()
        exchange.watch()
        async with self._bus.subscribe(after_id=wanted.after_id) as subscription:
            self._open.add(subscription)
            if not wanted.follow:
                subscription.close()  # what is remembered can still be read
            try:
                await exchange.write(comment("events"))
                await self._pass(exchange, subscription, wanted.kinds)
            finally:
                self._open.discard(subscription)
        exchange.close_connection()
        await exchange.end()

    async def _pass(self, exchange: Exchange, subscription: Subscription, kinds: frozenset[str]) -> None:
        told = 0
        while True:
            try:
                event = await asyncio.wait_for(anext(subscription), self._comment_s)
            except TimeoutError:
                await exchange.write(comment("waiting"))
                continue
            except StopAsyncIteration:
                return
            if subscription.dropped > told:
                lost, told = subscription.dropped - told, subscription.dropped
                await exchange.write(b'event: dropped\ndata: {"dropped":%d}\n\n' % lost)
            if not kinds or event.kind in kinds:
                await exchange.write(_encoded(event))

    def close(self) -> None:
        """End every stream after what it has not written yet."""
        for subscription in list(self._open):
            subscription.close()


def _encoded(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.kind.encode(), orjson.dumps(event.as_dict()))
