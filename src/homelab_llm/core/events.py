"""Events: what happened, for people and records. A slow reader loses the oldest and stops nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]
_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``kind`` is a word of ``docs/reference/events.md``, ``text`` one sentence for people.

    ``service`` is who it concerns: ``mlxserve``, ``slot:8100`` or ``worker:abcde``. ``model`` is a name of the store,
    ``port`` a slot; empty and 0 where there is none. ``facts`` are values a program may read, units in their names.
    ``id`` is given by the bus: ascending, across restarts of the daemon too.
    """

    kind: str
    text: str = ""
    level: Level = "info"
    service: str = "mlxserve"
    model: str = ""
    port: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    unix_s: float = 0.0
    id: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, every field."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        out["facts"] = dict(self.facts)
        return out


class Subscription:
    """An async iterator of events; ends when it or the bus is closed. ``dropped`` counts what was lost."""

    def __init__(self, limit: int, forget: Callable[[Subscription], None]) -> None:
        self._news: deque[Event] = deque(maxlen=limit)
        self._arrived = asyncio.Event()
        self._forget = forget
        self._closed = False
        self.dropped = 0

    def put(self, event: Event) -> None:
        """Add an event; never blocks."""
        self.dropped += len(self._news) == self._news.maxlen
        self._news.append(event)
        self._arrived.set()

    def close(self) -> None:
        """End it; what has arrived can still be read."""
        self._closed = True
        self._arrived.set()
        self._forget(self)

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._news:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._news.popleft()


class EventBus:
    """Takes events on the event loop and gives them to everybody who listens.

    Args:
        unix_s: the clock for events that bring no time.
        record: gets every event once, for the database; must not block or raise.
    """

    def __init__(self, unix_s: Callable[[], float], record: Callable[[Event], None] | None = None) -> None:
        self._unix_s = unix_s
        self._record = record
        self._latest: deque[Event] = deque(maxlen=_REMEMBERED)
        self._subscriptions: set[Subscription] = set()
        # Ids go on from the clock, so that a reader of an earlier life who comes back with its last id misses nothing.
        self._last_id = int(unix_s() * 1000)

    def publish(self, event: Event) -> None:
        """Tell everybody; returns at once."""
        self._last_id += 1
        event = replace(event, id=self._last_id, unix_s=event.unix_s or self._unix_s())
        self._latest.append(event)
        if self._record is not None and event.level != "debug":
            self._record(event)
        for subscription in self._subscriptions:
            subscription.put(event)

    def subscribe(self, limit: int = 1024, *, after_id: int | None = None) -> Subscription:
        """What happens from now on; with ``after_id`` also what is remembered since that event.

        An id that was not given yet comes from a clock that was ahead: then everything remembered comes.
        """
        if after_id is not None and after_id > self._last_id:
            after_id = 0
        subscription = Subscription(limit, self._subscriptions.discard)
        if after_id is not None:
            for event in self._latest:
                if event.id > after_id:
                    subscription.put(event)
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End every subscription."""
        for subscription in list(self._subscriptions):
            subscription.close()
