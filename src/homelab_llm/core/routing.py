"""Where a request goes: told by the controller, followed by the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.facts import StoredModel


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: a model, and what the registry says about it.

    ``alias`` is the slot's name when the request came by alias or slot port, else empty. ``params`` are used where
    the request says nothing; ``max_output_tokens`` bounds it (0 = no bound). ``keep_alive_s``: None = the fleet's.
    ``foreign``: host and port of an adopted server of another origin; then ``model`` is only what it calls its model.
    ``why`` tells each step of the decision, for ``explain``.
    """

    model: StoredModel
    alias: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    max_output_tokens: int = 0
    keep_alive_s: float | None = None
    foreign: tuple[str, int] | None = None
    why: tuple[str, ...] = ()
