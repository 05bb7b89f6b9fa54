"""Planner: which engine runs a model here, with which options, and what that needs. Decides; starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from homelab_llm.core.facts import StoredModel
from homelab_llm.inference.engines.base import Engine, EngineOptions, LaunchPlan, Support
from homelab_llm.inference.engines.table import choose
from homelab_llm.inference.fleet.seams import Planned
from homelab_llm.inference.fleet.vocabulary import Demand


class Planner:
    """Plans models for this machine.

    Args:
        engines: the table, in order of preference.
        prefer: an engine's name, or ``auto``.
        derived: the folder for conversions.
    """

    def __init__(self, engines: Sequence[Engine], options: EngineOptions, prefer: str, derived: Path) -> None:
        self._engines = engines
        self._options = options
        self._prefer = prefer
        self._derived = derived

    def __call__(self, model: StoredModel, context_tokens: int | None = None) -> Planned:
        """How ``model`` will be run; kept by the fleet, so the engines may look around.

        Args:
            context_tokens: in place of the option, to see what that would need.

        Raises:
            EngineUnavailable: with every engine's reason.
        """
        engine = choose(self._engines, model.facts, self._prefer)
        options = self._options if context_tokens is None else replace(self._options, context_tokens=context_tokens)
        footprint = engine.estimate(model.facts, options)
        # The socket's path is not known yet; what the plan says besides does not depend on it.
        sketch = engine.plan(model, options, Path("planned.http"), self._derived)
        key = f"{model.digest.short}/{engine.name}/{sketch.context_tokens}x{sketch.parallel}"
        return Planned(
            demand=Demand(key, model.name, footprint.total_bytes, sketch.parallel),
            launch=partial(self._launch, engine, model, options),
            engine=engine.name,
            context_tokens=sketch.context_tokens,
            traits=sketch.traits,
            warning=_warning(engine.supports(model.facts)),
            footprint=footprint,
        )

    def _launch(self, engine: Engine, model: StoredModel, options: EngineOptions, socket: Path) -> LaunchPlan:
        return engine.plan(model, options, socket, self._derived)


def _warning(support: Support) -> str:
    return f"{support.warning}: {support.hint}" if support.warning and support.hint else support.warning
