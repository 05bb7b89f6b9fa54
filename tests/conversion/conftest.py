"""Things for tests of conversions: a text, and real models in the formats they start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from homelab_llm.core.locks import locked
from homelab_llm.testing.programs import files_in, run_program
from homelab_llm.testing.tiny_models import write_tiny

TEXT = "The bottle was empty, and the cat looked at the house of the king. Then it slept, for it was late. " * 40


@pytest.fixture(scope="session")
def smollm2_f16(smollm2_gguf: Path) -> Path:
    """The real SmolLM2 with 16-bit weights, as GGUF; kept in the checkout's cache."""
    target = smollm2_gguf.parent.parent / "smollm2-f16" / "model.gguf"
    target.parent.mkdir(exist_ok=True)
    with locked(target.with_name("test.lock"), wait_s=600):
        ended = run_program(
            "quantize_gguf", {"model.gguf": smollm2_gguf}, "--type", "f16", "--force", "--target", str(target)
        )
    assert ended.status == 0
    return target


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two small layers with random 16-bit weights, as GGUF."""
    folder = tmp_path_factory.mktemp("tiny")
    target = folder / "model.gguf"
    ended = run_program("hf_to_gguf", files_in(write_tiny(folder / "hf", "llama")), "--target", str(target))
    assert ended.status == 0
    return target


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A short text to measure on."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path
