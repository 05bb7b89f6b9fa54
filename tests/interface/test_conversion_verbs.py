"""convert, quantize, fuse and perplexity on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.tiny_models import write_tiny

Mlxctl = Callable[..., Any]


@pytest.fixture
def store(home: Home, tmp_path: Path) -> ModelStore:
    """The home's store with a tiny Llama in safetensors format."""
    store = ModelStore(home.store)
    store.import_path(write_tiny(tmp_path / "hf", "llama"), ModelRef.parse("base"))
    return store


@pytest.mark.requirement("R-I11")
def test_a_conversion_tells_its_steps_and_its_figures_as_lines_of_json(mlxctl: Mlxctl, store: ModelStore) -> None:
    done = mlxctl("convert", "base", "new", "--to", "gguf", "--type", "q8_0", "--tokens", "128", "--json")
    assert done.code == 0, done.out
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert {line["status"] for line in lines} >= {"converting", "measuring", "done"}
    assert lines[-1]["model"]["quantization"] == "Q8_0"
    assert lines[-1]["measured"]["scored_tokens"] == 63
    told = mlxctl("perplexity", "new", "--tokens", "128")
    assert f"perplexity {lines[-1]['measured']['perplexity_after']:.3f}" in told.out
    words = mlxctl("quantize", "new", "smaller", "q4_0", "--tokens", "128")
    assert (words.code, "smaller is better" in words.out) == (0, True)


def test_what_cannot_be_made_is_refused_in_a_sentence_with_what_would_work(mlxctl: Mlxctl, store: ModelStore) -> None:
    for argv, said in (
        (("quantize", "base", "new", "q9_9"), "one of f32, f16"),
        (("convert", "base", "new", "--to", "safetensors"), "start from"),
        (("fuse", "base", "/nowhere", "new"), "adapter_config.json"),
        (("perplexity", "base", "--text", "/nowhere"), "no file"),
    ):
        done = mlxctl(*argv)
        assert done.code != 0
        assert said in done.err
    assert [model.name for model in store.models()] == ["base:latest"]


def test_ctrl_c_ends_a_conversion_and_leaves_nothing(home: Home, store: ModelStore) -> None:
    argv = [sys.executable, "-m", "homelab_llm.interface.cli.main", "convert", "base", "new", "--to", "gguf", "--json"]
    called = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ})
    assert called.stdout is not None
    for line in called.stdout:
        if json.loads(line)["status"] == "measuring":
            called.send_signal(signal.SIGINT)
            break
    rest = called.stdout.read().decode()
    assert called.wait(timeout=60) != 0
    called.stdout.close()
    assert "interrupted" in rest
    assert [model.name for model in store.models()] == ["base:latest"]
    assert not list((home.store / "tmp").glob("*.scratch*"))
