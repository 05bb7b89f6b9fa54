"""The table of engines, and the choice among them. Pure: ``supports`` is asked, nothing is started."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

from homelab_llm.core.errors import EngineUnavailable
from homelab_llm.core.facts import ModelFacts
from homelab_llm.inference.engines.base import Engine, Support
from homelab_llm.inference.engines.llama_cpp import LlamaCppEngine
from homelab_llm.inference.engines.mlx import MlxEngine


def engines_for(system: str, processor: str) -> tuple[Engine, ...]:
    """The table in order of preference: MLX first on Apple silicon, elsewhere llama.cpp."""
    if (system, processor) == ("darwin", "arm64"):
        return MlxEngine(), LlamaCppEngine()
    return LlamaCppEngine(), MlxEngine()


ENGINES = engines_for(sys.platform, platform.machine())


def choose(engines: Sequence[Engine], facts: ModelFacts, prefer: str = "auto") -> Engine:
    """The engine to run such a model with: ``prefer`` by name, else the first that runs it, best without a warning.

    A preference is never passed over quietly: if that engine cannot, this says why.

    Raises:
        EngineUnavailable: none can, with every engine's reason and the first hint.
    """
    asked = [engine for engine in engines if prefer in ("auto", engine.name)]
    if not asked:
        known = ", ".join(engine.name for engine in engines)
        raise EngineUnavailable(f"there is no engine {prefer[:40]!r}", hint=f"engines: {known}", engine=prefer[:40])
    answers = [(engine, engine.supports(facts)) for engine in asked]
    able = [(engine, support) for engine, support in answers if support.ok]
    if not able:
        raise _unavailable(answers)
    return min(able, key=lambda answer: bool(answer[1].warning))[0]


def _unavailable(answers: Sequence[tuple[Engine, Support]]) -> EngineUnavailable:
    reasons = [f"{engine.name}: {support.reason}" for engine, support in answers]
    hints = [support.hint for _, support in answers if support.hint]
    return EngineUnavailable(
        "no engine here runs this model: " + "; ".join(reasons), hint=next(iter(hints), ""), reasons=reasons
    )
