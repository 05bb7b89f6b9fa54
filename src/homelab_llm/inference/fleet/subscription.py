"""A subscription to what the fleet tells people: bounded, so that a slow reader loses the oldest and stops nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from homelab_llm.inference.fleet.vocabulary import Notify


class Subscription:
    """An async iterator of ``Notify``; ends when it or the fleet is closed. ``dropped`` counts what was lost.

    For one reader. Use as ``async with fleet.subscribe() as news: async for notice in news: …``.
    """

    def __init__(self, limit: int, forget: Callable[[Subscription], None]) -> None:
        self._news: deque[Notify] = deque(maxlen=limit)
        self._arrived = asyncio.Event()
        self._forget = forget
        self._closed = False
        self.dropped = 0

    def put(self, notice: Notify) -> None:
        """Add a notice; never blocks."""
        self.dropped += len(self._news) == self._news.maxlen
        self._news.append(notice)
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

    async def __anext__(self) -> Notify:
        while not self._news:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._news.popleft()
