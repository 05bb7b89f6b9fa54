"""What the operator chose for a model: honoured, part of its plan, or refused; never without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.errors import EngineUnavailable, UnsupportedRequest
from homelab_llm.core.facts import StoredModel
from homelab_llm.inference.engines.base import EngineOptions, ModelOptions
from homelab_llm.inference.fleet.planner import Planner
from homelab_llm.testing.engines import FakeEngine
from homelab_llm.testing.models import stored_fake_model, write_fake_model

pytestmark = pytest.mark.requirement("R-I9")

ALL = frozenset({"chat_template", "draft_model", "flags", "tool_call_parser", "reasoning_parser"})
TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture
def model(tmp_path: Path) -> StoredModel:
    return stored_fake_model(write_fake_model(tmp_path / "m.gguf"), "m:1")


def planner(folder: Path, chosen: ModelOptions, *, honours: frozenset[str] = ALL, prefer: str = "auto") -> Planner:
    engines = [FakeEngine(name="first", honours=honours), FakeEngine(name="second")]
    return Planner(engines, EngineOptions(context_tokens=512, parallel=2), prefer, folder / "derived", lambda _: chosen)


def key(folder: Path, model: StoredModel, **chosen: Any) -> str:
    return planner(folder, ModelOptions(**chosen))(model).demand.key


def test_the_engine_and_the_context_of_a_model_go_before_the_settings(tmp_path: Path, model: StoredModel) -> None:
    plain = planner(tmp_path, ModelOptions())(model)
    assert (plain.engine, plain.context_tokens) == ("first", 512)
    chosen = planner(tmp_path, ModelOptions("second", 1024), prefer="first")(model)
    assert (chosen.engine, chosen.context_tokens) == ("second", 1024)
    assert planner(tmp_path, ModelOptions("second", 1024))(model, 2048).context_tokens == 2048
    with pytest.raises(EngineUnavailable, match="no engine 'third'"):
        planner(tmp_path, ModelOptions("third"))(model)


def test_every_option_is_part_of_the_key(tmp_path: Path, model: StoredModel) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"engine": "second"},
        {"context_tokens": 1024},
        {"chat_template": TEMPLATE},
        {"flags": ("--a",)},
        {"flags": ("--a", "--b")},
        {"flags": ("--a",), "chat_template": TEMPLATE},
    ]
    keys = [key(tmp_path, model, **variant) for variant in variants]
    assert len(set(keys)) == len(variants)
    assert keys == [key(tmp_path, model, **variant) for variant in variants]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", TEMPLATE),
        ("draft_model", "small:1"),
        ("flags", ("--a",)),
        ("tool_call_parser", "hermes"),
        ("reasoning_parser", "qwen3"),
    ],
)
def test_an_option_that_the_engine_does_not_honour_is_refused_with_the_command_that_clears_it(
    tmp_path: Path, model: StoredModel, field: str, value: object
) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        planner(tmp_path, ModelOptions(**{field: value}), honours=ALL - {field})(model)  # type: ignore[arg-type]
    assert field in caught.value.message
    assert "the first engine" in caught.value.message
    assert caught.value.hint == f"mlxctl registry set m:1 {field}="


def test_a_template_is_taken_as_text_or_from_a_file_and_lies_ready_when_the_worker_starts(
    tmp_path: Path, model: StoredModel
) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(TEMPLATE)
    planned = planner(tmp_path, ModelOptions(chat_template=str(file)))(model)
    assert planned.demand.key == key(tmp_path, model, chat_template=TEMPLATE)
    planned.launch(tmp_path / "w.http")
    (written,) = (tmp_path / "derived" / "templates").iterdir()
    assert written.read_text() == TEMPLATE
    file.write_text(TEMPLATE + "!")
    assert key(tmp_path, model, chat_template=str(file)) != planned.demand.key


@pytest.mark.parametrize("given", ["own.jinja", "/no/such/file.jinja", "/dev/null"])
def test_a_template_that_is_not_there_is_refused(tmp_path: Path, model: StoredModel, given: str) -> None:
    with pytest.raises(UnsupportedRequest, match="chat_template"):
        key(tmp_path, model, chat_template=given)


def test_flags_reach_the_engine(tmp_path: Path, model: StoredModel) -> None:
    plan = planner(tmp_path, ModelOptions(flags=("--deaf",)))(model).launch(tmp_path / "w.http")
    assert plan.argv[-1] == "--deaf"
