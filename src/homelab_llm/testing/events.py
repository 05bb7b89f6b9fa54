"""Waiting in tests: on a condition, inside a bound; never for a fixed time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(predicate: Callable[[], T | Awaitable[T]], within_s: float = 10.0, *, what: str = "") -> T:
    """Wait until ``predicate`` gives something true and return that; it may be async and is asked again and again.

    Raises:
        AssertionError: still not true after ``within_s``; names ``what`` and the last value.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    pause_s = 0.002
    while True:
        found = predicate()
        value = await found if isinstance(found, Awaitable) else found
        if value:
            return value
        if loop.time() >= deadline:
            raise AssertionError(f"{what or predicate} still {value!r} after {within_s} s")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.05)


class Recorded(list[T]):
    """A list that tests can wait on: give ``append`` (or the list itself) as a callback, then ``await until(...)``."""

    def __call__(self, value: T) -> None:
        self.append(value)

    async def until(self, wanted: Callable[[T], bool], within_s: float = 10.0) -> T:
        """The first recorded value that is ``wanted``, now or within the bound.

        Raises:
            AssertionError: none came; shows what did.
        """
        found = await eventually(
            lambda: next(([value] for value in self if wanted(value)), None), within_s, what=f"wanted value in {self!r}"
        )
        assert found is not None  # noqa: S101 — eventually returns only true values
        return found[0]
