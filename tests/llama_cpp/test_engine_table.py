"""The choice among engines: by name, by what they can, and with every reason when none can."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab_llm.core.errors import EngineUnavailable
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.inference.engines.base import EngineOptions, Footprint, LaunchPlan, Support
from homelab_llm.inference.engines.table import choose, engines_for

FACTS = ModelFacts("gguf", "llama", 1, capabilities=("chat",))


class Fixed:
    """An engine that always answers the same."""

    def __init__(self, name: str, support: Support) -> None:
        self.name = name
        self._support = support
        self.honours: frozenset[str] = frozenset()

    def supports(self, facts: ModelFacts) -> Support:  # noqa: ARG002
        return self._support

    def estimate(self, facts: ModelFacts, options: EngineOptions) -> Footprint:  # noqa: ARG002
        return Footprint(0, 0, 0)

    def plan(self, model: StoredModel, options: EngineOptions, socket: Path, derived: Path) -> LaunchPlan:  # noqa: ARG002
        raise EngineUnavailable("only its answer is asked")


YES, NO = Support(True), Support(False, "cannot", hint="install it")
SLOW = Support(True, warning="slow")


@pytest.mark.requirement("R-I1")
@pytest.mark.parametrize(
    ("first", "second", "prefer", "chosen"),
    [
        (YES, YES, "auto", "first"),
        (NO, YES, "auto", "second"),
        (SLOW, YES, "auto", "second"),
        (SLOW, SLOW, "auto", "first"),
        (YES, SLOW, "second", "second"),
    ],
)
def test_the_first_engine_that_can_is_chosen_best_without_a_warning(
    first: Support, second: Support, prefer: str, chosen: str
) -> None:
    assert choose([Fixed("first", first), Fixed("second", second)], FACTS, prefer).name == chosen


@pytest.mark.requirement("B-11")
def test_a_preference_that_cannot_be_met_is_an_error_and_not_another_engine() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        choose([Fixed("first", YES), Fixed("second", NO)], FACTS, "second")
    assert caught.value.facts["reasons"] == ["second: cannot"]
    assert caught.value.hint == "install it"


def test_when_none_can_every_reason_is_given() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        choose([Fixed("first", NO), Fixed("second", NO)], FACTS)
    assert caught.value.facts["reasons"] == ["first: cannot", "second: cannot"]


def test_an_unknown_preference_names_the_engines_there_are() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        choose([Fixed("first", YES)], FACTS, "third")
    assert caught.value.hint == "engines: first"


@pytest.mark.requirement("R-I1")
def test_the_table_runs_gguf_on_llama_cpp_and_knows_mlx() -> None:
    table = engines_for("linux", "x86_64")
    assert [engine.name for engine in table] == ["llama.cpp", "mlx"]
    assert choose(table, FACTS).name == "llama.cpp"


@pytest.mark.requirement("R-I1")
def test_mlx_comes_first_on_apple_silicon_and_only_there() -> None:
    assert [engine.name for engine in engines_for("darwin", "arm64")] == ["mlx", "llama.cpp"]
    assert [engine.name for engine in engines_for("darwin", "x86_64")] == ["llama.cpp", "mlx"]
    assert [engine.name for engine in engines_for("linux", "arm64")] == ["llama.cpp", "mlx"]
