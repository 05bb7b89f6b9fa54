"""Drift: in which state a slot is, and how it differs from what the registry says, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from homelab_llm.core.registry.slots import Slot
from homelab_llm.inference.controller.seams import Holder

State = Literal["empty", "serving", "loading", "swapping", "resting", "failed", "foreign", "unbound"]
Stored = Literal["missing", "same", "newer"]


@dataclass(frozen=True, slots=True)
class Live:
    """A slot as it is now beside what the registry says; models are slugs, empty = none.

    ``serves`` is what it points to and ``loaded`` whether a worker of that is ready. ``stored`` is about the desired
    model: ``newer`` when the store holds another one under its name than the one that is loaded. ``proven``: the
    model was seen to answer in this life of the daemon. ``busy`` names what is under way. ``engine`` is the worker's,
    ``wanted_engine`` the entry's, empty = any.
    """

    slot: Slot
    desired: str = ""
    actual: str = ""
    serves: str = ""
    loaded: bool = False
    stored: Stored = "same"
    proven: bool = False
    failure: str = ""
    foreign: str = ""
    bound: bool = True
    holder: Holder | None = None
    busy: Literal["", "loading", "swapping"] = ""
    engine: str = ""
    wanted_engine: str = ""

    @property
    def engine_changed(self) -> bool:
        """Whether the registry names another engine than the one that runs."""
        return self.loaded and bool(self.wanted_engine) and self.engine != self.wanted_engine


def state_of(live: Live) -> State:
    """One word for ``status``."""
    if live.foreign or (not live.bound and live.holder is not None):
        return "foreign"
    if live.busy:
        return live.busy
    if not live.bound:
        return "unbound"
    if live.loaded:
        return "serving"
    if not live.desired and not live.serves:
        return "empty"
    return "failed" if live.failure else "resting"


def drift_of(live: Live) -> str:
    """What is not as the registry says; empty when all is well, and while a change is under way."""
    if live.foreign:
        return _foreign_drift(live)
    if not live.bound:
        return _port_drift(live)
    return "" if live.busy else _model_drift(live)


def _foreign_drift(live: Live) -> str:
    if live.holder is None:
        return f"the adopted server of {live.foreign} on port {live.slot.port} is gone"
    if live.foreign not in (live.holder.models or ()):
        return f"adopted as {live.foreign}, serves {live.holder.model or 'no model'}"
    return ""


def _port_drift(live: Live) -> str:
    port = live.slot.port
    if live.holder is None:
        return f"port {port} is not open: mlxctl daemon restart"
    who = f"process {live.holder.pid} ({live.holder.name})" if live.holder.pid else "another process"
    if live.holder.models is None:
        return f"port {port} is held by {who}, which is no model server"
    return f"port {port} is held by {who} serving {live.holder.model or 'no model'}: mlxctl adopt {port}"


def _model_drift(live: Live) -> str:
    if live.loaded and live.serves and live.serves != live.desired:
        return f"shall serve {live.desired or 'nothing'}, serves {live.serves}"
    if live.desired and live.stored == "missing":
        return f"{live.desired} is not in the store"
    if live.loaded and live.stored == "newer":
        return f"{live.desired} was pulled again since: serves the older one"
    if live.engine_changed:
        return f"engine changed: serves with {live.engine}, shall be {live.wanted_engine}"
    if live.desired and not live.loaded and live.failure:
        return f"shall serve {live.desired}: {live.failure}"
    return ""
