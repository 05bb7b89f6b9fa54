"""Translated templates write what Go's own text/template wrote (``ollama/render.go`` made the golden file)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.chat_template import ChatTemplate
from homelab_llm.store.templates.go_template import translate

HERE = Path(__file__).parent / "ollama"
NAMES = sorted(path.stem for path in HERE.glob("*.gotmpl"))
pytestmark = pytest.mark.requirement("R-M8")


@pytest.fixture(scope="module")
def conversations() -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads((HERE / "conversations.json").read_text("utf-8"))
    return told


@pytest.fixture(scope="module")
def golden() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((HERE / "golden.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_translated_template_writes_what_go_writes(
    name: str, conversations: list[dict[str, Any]], golden: dict[str, list[str]]
) -> None:
    template = ChatTemplate(translate((HERE / f"{name}.gotmpl").read_text("utf-8")))
    for told, expected in zip(conversations, golden[name], strict=True):
        assert template.render(told["messages"], {k: v for k, v in told.items() if k != "messages"}) == expected


def test_the_golden_file_holds_every_template(golden: dict[str, list[str]]) -> None:
    assert sorted(golden) == NAMES
    assert len(NAMES) >= 12
