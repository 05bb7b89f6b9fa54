"""Waiting in tests: on a condition, inside a bound; never for a fixed time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(predicate: Callable[[], Awaitable[T]], within_s: float = ..., *, what: str = ...) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], within_s: float = ..., *, what: str = ...) -> T: ...
async def eventually(predicate: Callable[[], Any], within_s: float = 10.0, *, what: str = "") -> Any:
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

        def found() -> list[T]:
            return [value for value in self if wanted(value)]

        return (await eventually(found, within_s, what=f"wanted value in {self!r}"))[0]
