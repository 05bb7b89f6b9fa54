"""Waiting in tests that have no event loop: on a condition, inside a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_POLL_S = 0.01


def until(wanted: Callable[[], Any], within_s: float = 30) -> Any:
    """What ``wanted`` gives as soon as it is true.

    Raises:
        AssertionError: still not true after ``within_s``.
    """
    deadline = time.monotonic() + within_s
    while not (found := wanted()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"still {found!r} after {within_s} s")
        time.sleep(_POLL_S)
    return found
