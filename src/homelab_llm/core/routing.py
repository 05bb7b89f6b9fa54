"""Where a request goes: told by the controller, followed by the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.facts import NO_DEFAULTS, StoredModel
from homelab_llm.core.parameters import request_parameters, stop_words

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Opening:
    """What a model puts before every conversation, and the words that end its answers.

    ``system`` is used when a request has no system message; ``messages`` follow it. ``stop`` is added to a request's.
    """

    system: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: a model, and what the registry says about it.

    ``alias`` is the slot's name when the request came by alias or slot port, else empty. ``params`` are used where
    the request says nothing; ``max_output_tokens`` bounds it (0 = no bound). ``keep_alive_s``: None = the fleet's.
    ``opening`` is None for most models: they bring nothing of their own.
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
    opening: Opening | None = None


def own_parameters(model: StoredModel) -> Mapping[str, Any]:
    """What a model says about requests that neither they nor the registry say; empty for most."""
    return request_parameters(model.defaults.parameters) if model.defaults.parameters else {}


def opening_of(model: StoredModel) -> Opening | None:
    """What a model puts before a conversation; None when it brings nothing."""
    defaults = model.defaults
    if defaults is NO_DEFAULTS:
        return None
    stop = stop_words(defaults.parameters)
    # A model may come from anywhere: what is no message must not spoil every request to it.
    messages = tuple(m for m in defaults.messages if m.keys() == {"role", "content"} and m["role"] in _ROLES)
    if not (defaults.system or messages or stop):
        return None
    return Opening(defaults.system, messages, stop)
