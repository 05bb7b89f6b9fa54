"""Foretelling: which engine would run a model on this machine, and with how much memory. In this process, no daemon.

Imports the engines, which only look at what is installed; nothing of them is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from homelab_llm.core.errors import HomelabError

if TYPE_CHECKING:
    from homelab_llm.core.facts import StoredModel
    from homelab_llm.inference.fleet.seams import Planned
    from homelab_llm.interface.cli.invocation import Invocation

_CONTEXTS = {"4k": 4096, "32k": 32_768}


@dataclass(frozen=True, slots=True)
class Foretold:
    """What would happen. ``memory_bytes`` is for one request at a time: weights, its KV cache, and the rest.

    ``engine`` is empty when nothing here runs the model; ``why`` then has the reason, else why it is this engine.
    """

    engine: str
    why: str
    hint: str = ""
    warning: str = ""
    context_tokens: int = 0
    memory_bytes: Mapping[str, int] | None = None


def engine_here(invocation: Invocation, model: StoredModel, *, parallel: int = 1) -> tuple[Planned, dict[str, Planned]]:
    """The plan for a model as this machine is, and the plans at 4k, 32k and full context where it has that much.

    Raises:
        EngineUnavailable, UnsupportedRequest: nothing here runs it, with every reason.
    """
    from homelab_llm.inference.engines.base import EngineOptions
    from homelab_llm.inference.engines.table import ENGINES
    from homelab_llm.inference.fleet.planner import Planner

    prefer = "auto"
    if invocation.may_be_set("engine", "prefer"):
        prefer = invocation.settings.engine.prefer
    planner = Planner(ENGINES, EngineOptions(parallel=parallel), prefer, invocation.home.derived)
    trained = model.facts.context_tokens
    contexts = {name: tokens for name, tokens in _CONTEXTS.items() if not trained or tokens < trained}
    if trained and "embedding" not in model.facts.capabilities:
        contexts["full"] = trained
    return planner(model), {name: planner(model, tokens) for name, tokens in contexts.items()}


def foretell(invocation: Invocation, model: StoredModel) -> Foretold:
    """What ``show`` says of a model on this machine; never an error."""
    try:
        planned, at = engine_here(invocation, model)
    except HomelabError as error:
        return Foretold("", error.message, error.hint)
    memory = {name: plan.demand.footprint_bytes for name, plan in at.items()}
    memory = memory or {f"{planned.context_tokens}": planned.demand.footprint_bytes}
    why = _why(model, planned.engine)
    return Foretold(planned.engine, why, "", planned.warning, planned.context_tokens, memory)


def _why(model: StoredModel, chosen: str) -> str:
    """Why it is this engine, and what the others say."""
    from homelab_llm.inference.engines.table import ENGINES

    others = []
    for engine in ENGINES:
        support = engine.supports(model.facts)
        if engine.name != chosen and not support.ok:
            others.append(f"{engine.name} does not: {support.reason}")
        elif engine.name != chosen and support.warning:
            others.append(f"{engine.name} could: {support.warning}")
        elif engine.name != chosen:
            others.append(f"{engine.name} could, too")
    return "; ".join(others)
