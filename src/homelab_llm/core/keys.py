"""What an API key grants, as values that ``data`` keeps and the gateway asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Priority = Literal["interactive", "batch"]
"""Interactive requests come first; batch ones progress all the same."""


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """Who a key belongs to and what it may do: ``inference``, ``admin``; its requests are at most of ``priority``."""

    name: str
    scopes: frozenset[str]
    priority: Priority = "interactive"
