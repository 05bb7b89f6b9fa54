"""Bars: the product as a whole, on real parts. CI size by default, full size with ``HOMELAB_SIZE=full``.

At full size ``figure`` writes what was measured to ``build/bars-tests.json``; times are never asserted here,
``make bars`` compares them with their goals.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model

FULL = os.environ.get("HOMELAB_SIZE") == "full"
OUT = Path(__file__).resolve().parents[2] / "build" / "bars-tests.json"
_figures: list[dict[str, object]] = []


class Note(Protocol):
    """Takes one measured figure; the fields are those of ``bench.figures.Figure``."""

    def __call__(self, id: str, value: float, unit: str, goal: str = "", spread: str = "") -> None: ...


@pytest.fixture
def figure() -> Note:
    """Note a figure for ``make bars``."""

    def note(id: str, value: float, unit: str, goal: str = "", spread: str = "") -> None:
        _figures.append({"id": id, "value": value, "unit": unit, "goal": goal, "against": "", "spread": spread})

    return note


def pytest_sessionfinish() -> None:
    """Write the figures of a full-size run."""
    if FULL:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(_figures, indent=1))


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether this run is at full size."""
    return FULL


def _environ(home: Home) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(home.runtime.parent)}


@pytest.fixture(scope="session")
def daemon(smollm2_gguf: Path, minilm_folder: Path) -> Iterator[Daemon]:
    """A daemon with the real SmolLM2 and MiniLM in its store."""
    with temporary_home() as home:
        store = ModelStore(home.store)
        store.import_path(smollm2_gguf, ModelRef.parse("smollm2:135m"))
        store.import_path(minilm_folder, ModelRef.parse("all-minilm:l6-v2"))
        with Daemon(home, environ=_environ(home)) as running:
            yield running


@pytest.fixture(params=["pooled", "llama"])
def fake_daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon with a fake model, as our own workers and as llama.cpp's server behave."""
    with temporary_home() as home:
        model = write_fake_model(home.root / "fake.gguf")
        ModelStore(home.store).import_path(model, ModelRef.parse("fake"))
        with Daemon(home, fake=True, environ={**_environ(home), "FAKE_ENGINE": request.param}) as running:
            yield running
