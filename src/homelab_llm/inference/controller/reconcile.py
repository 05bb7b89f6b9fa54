"""Reconcile: from what is and what shall be to the actions that bring them together. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from homelab_llm.inference.controller.drift import Live, drift_of

Kind = Literal["pull", "load", "swap", "reload", "unload", "record"]


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do for one slot. ``model`` is a slug.

    ``pull`` fetches the model and then loads it; ``reload`` starts its worker anew; ``record`` only corrects what
    the registry believes to be there.
    """

    port: int
    alias: str
    kind: Kind
    model: str
    why: str

    @property
    def text(self) -> str:
        """One line for people."""
        return f"{self.port} ({self.alias}): {self.kind} {self.model or 'nothing'}: {self.why}"


def actions(lives: Iterable[Live]) -> list[Action]:
    """What to do, by port; nothing for a slot that is as it shall be, is busy, or belongs to another server.

    A slot at rest is as it shall be: its model answered in this life of the daemon and made room since.
    """
    ordered = sorted(lives, key=lambda live: live.slot.port)
    return [action for live in ordered if (action := _action(live)) is not None]


def _action(live: Live) -> Action | None:
    if live.foreign or live.busy:
        return None
    if not live.desired:
        if live.loaded and live.serves:
            return _make(live, "unload", live.serves)
        return _make(live, "record", "", "the registry still names a model") if live.actual else None
    if live.stored == "missing":
        return _make(live, "pull", live.desired, f"{live.desired} is not in the store")
    if live.loaded and (live.serves != live.desired or live.stored == "newer"):
        return _make(live, "swap", live.desired)
    if live.engine_changed:
        return _make(live, "reload", live.desired)
    if not live.loaded:
        if live.proven and not live.failure:
            return None
        return _make(live, "load", live.desired, live.failure or "not loaded")
    if live.actual != live.desired or live.failure:
        return _make(live, "record", live.desired, "it answers")
    return None


def _make(live: Live, kind: Kind, model: str, why: str = "") -> Action:
    return Action(live.slot.port, live.slot.alias, kind, model, why or drift_of(live))
