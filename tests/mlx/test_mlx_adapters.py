"""LoRA adapters in PEFT's format on MLX: the same words as with the weights merged by hand, or a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from homelab_llm.core.errors import BadModelFile
from homelab_llm.inference.workers.mlx.adapters import apply_adapters
from homelab_llm.inference.workers.mlx.events import Job
from homelab_llm.inference.workers.mlx.generator import Generator
from homelab_llm.inference.workers.mlx.sampling import Sampling

pytestmark = pytest.mark.requirement("R-M6")

LAYERS = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 128)}
PROMPT = (1, 20, 300, 4000)


def write_adapter(folder: Path, *, rank: int = 2, seed: int = 3, **config: Any) -> tuple[Path, Path]:
    """Random numbers for two layers of the tiny model; file names as a store has them."""
    folder.mkdir()
    (folder / "c0ffee").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8} | config))
    mx.random.seed(seed)
    weights = {}
    for layer, (height, width) in LAYERS.items():
        weights[f"base_model.model.{layer}.lora_A.weight"] = mx.random.normal((rank, width))
        weights[f"base_model.model.{layer}.lora_B.weight"] = mx.random.normal((height, rank))
    mx.save_safetensors(str(folder / "w.safetensors"), weights)
    (folder / "w.safetensors").rename(folder / "beef")
    return folder / "c0ffee", folder / "beef"


def words(folder: Path, adapters: list[tuple[Path, Path]]) -> list[int]:
    """The likeliest continuation of a prompt."""
    generator = Generator.load(folder, parallel=1, adapters=adapters)
    generator.insert(Job(PROMPT, 12, Sampling(temperature=0), lambda _event: None, ignore_end=True))
    found: list[int] = []
    while len(found) < 12:
        found += [token.id for _, token in generator.step(512).tokens]
    return found


def merged(base: Path, target: Path, adapters: list[tuple[Path, Path]], scale: float) -> Path:
    shutil.copytree(base, target)
    weights: dict[str, Any] = mx.load(str(base / "model.safetensors"))  # type: ignore[assignment]
    for _, file in adapters:
        parts: dict[str, Any] = mx.load(str(file), format="safetensors")  # type: ignore[assignment]
        for layer in LAYERS:
            a, b = (parts[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * (b @ a)
    mx.save_safetensors(str(target / "model.safetensors"), weights, {"format": "mlx"})
    return target


@pytest.mark.parametrize(("count", "rslora"), [(1, False), (2, False), (1, True)])
def test_an_adapter_gives_the_words_of_the_merged_weights(
    tiny_mlx: Path, tmp_path: Path, count: int, rslora: bool
) -> None:
    adapters = [write_adapter(tmp_path / f"a{n}", seed=n + 3, use_rslora=rslora) for n in range(count)]
    scale = 8 / 2**0.5 if rslora else 8 / 2
    assert words(tiny_mlx, adapters) == words(merged(tiny_mlx, tmp_path / "merged", adapters, scale), [])
    assert words(tiny_mlx, adapters) != words(tiny_mlx, [])


@pytest.mark.parametrize("config", [{"r": 0}, {"lora_alpha": "x"}, {"use_dora": True}, {"rank_pattern": {"q": 1}}])
def test_an_adapter_that_is_not_understood_is_refused(tiny_mlx: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    adapter = write_adapter(tmp_path / "a")
    adapter[0].write_text(json.dumps({"r": 2, "lora_alpha": 8} | config))
    with pytest.raises(BadModelFile):
        words(tiny_mlx, [adapter])


@pytest.mark.parametrize(
    "weights",
    [
        {"model.layers.0.self_attn.q_proj.lora_A.weight": (2, 64)},
        {"model.layers.9.x.lora_A.weight": (2, 64), "model.layers.9.x.lora_B.weight": (64, 2)},
        {
            "model.layers.0.self_attn.q_proj.lora_A.weight": (2, 32),
            "model.layers.0.self_attn.q_proj.lora_B.weight": (64, 2),
        },
        {"model.norm.lora_A.weight": (2, 64), "model.norm.lora_B.weight": (64, 2)},
        {"model.norm.weight": (64,)},
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_replaced(
    tiny_mlx: Path, tmp_path: Path, weights: dict[str, tuple[int, ...]]
) -> None:
    config, file = write_adapter(tmp_path / "a")
    mx.save_safetensors(str(tmp_path / "w.safetensors"), {name: mx.zeros(shape) for name, shape in weights.items()})
    (tmp_path / "w.safetensors").rename(file)
    model = Generator.load(tiny_mlx, parallel=1).model
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(BadModelFile):
        apply_adapters(model, [(config, file)])
    assert [name for name, _ in model.named_modules()] == before
