"""A model of the Ollama library, from its protocol to an answer: the real SmolLM2 out of a real registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.testing.artifacts import DOCKER_MANIFEST, LayerOf, ollama_layers, put
from homelab_llm.testing.registries import Registry

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

TEMPLATE = """{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 -}}
<|im_start|>{{ .Role }}
{{ .Content }}{{ if not $last }}<|im_end|>
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|im_end|>
<|im_start|>assistant
{{ end }}
{{- end }}"""
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CONFIG = b'{"model_format":"gguf","model_family":"llama","model_type":"134.52M","file_type":"Q4_1"}'


@pytest.fixture
def library(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """An Ollama library with SmolLM2 as Ollama's own has it."""
    layers = ollama_layers(
        smollm2_gguf.read_bytes(),
        template=TEMPLATE,
        system=SYSTEM,
        params=json.dumps({"stop": ["<|im_start|>", "<|im_end|>"]}),
        license="Apache License\nVersion 2.0, January 2004\n",
    )
    config = LayerOf("application/vnd.docker.container.image.v1+json", CONFIG)
    with Registry() as registry:
        put(registry, "library/smollm2", "135m", layers, config, media_type=DOCKER_MANIFEST)
        monkeypatch.setenv("HOMELAB_STORE__OLLAMA_REGISTRY", registry.url)
        monkeypatch.setenv("HOMELAB_SERVER__LISTEN", "127.0.0.1:0")
        yield registry


@pytest.mark.requirement("R-M2", "R-M5")
def test_a_model_of_the_ollama_library_is_pulled_and_answers(mlxctl: Mlxctl, library: Registry) -> None:
    pulled = mlxctl("pull", "ollama:smollm2:135m")
    assert pulled.code == 0, pulled
    assert "smollm2:135m is in the store" in pulled.out
    try:
        shown = mlxctl(
            "run", "smollm2:135m", "What is the capital of France? Answer in one sentence.", "--temperature", "0"
        )
        assert shown.code == 0, shown
        assert "Paris" in shown.out
    finally:
        assert mlxctl("daemon", "stop").code == 0
    again = mlxctl("pull", "https://ollama.com/library/smollm2:135m", "again", "--json")
    done = json.loads(again.out.splitlines()[-1])
    assert done["model"]["name"] == "again:latest"
    digests = {model["digest"] for model in mlxctl("list", "--json").json()["models"]}
    assert len(digests) == 1
