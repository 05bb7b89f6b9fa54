"""LoRA adapters in PEFT's format, applied to a loaded MLX model: y = layer(x) + scale · (x Aᵀ) Bᵀ.

mlx-lm reads adapters of its own format only; this reads what most are shared in. Every shape is compared with the
layer before anything is replaced, and what is not understood is refused: an adapter is never applied in part.
Source: github.com/huggingface/peft, LoraConfig and the names in ``adapter_model.safetensors``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from homelab_llm.core.errors import BadModelFile
from homelab_llm.inference.workers.mlx.template import read_object
from mlx import nn

_PART = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_UNKNOWN = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")


class Adapted(nn.Module):  # type: ignore[misc]
    """A layer with an adapter on top; the layer may be adapted already."""

    def __init__(self, layer: Any, a: Any, b: Any, scale: float) -> None:
        super().__init__()
        self.layer, self.lora_a, self.lora_b = layer, a, b  # (in, rank), (rank, out)
        self._scale = scale

    def __call__(self, x: Any) -> Any:
        return self.layer(x) + (self._scale * ((x @ self.lora_a) @ self.lora_b)).astype(x.dtype)


def apply_adapters(model: Any, adapters: Sequence[tuple[Path, Path]]) -> None:
    """Put adapters onto ``model``, in order.

    Args:
        adapters: configuration and weights of each, files of any name.

    Raises:
        BadModelFile: one is not understood, or does not fit the model.
    """
    for config, weights in adapters:
        loaded: Any = mx.load(str(weights), format="safetensors")
        _apply(model, _scale(read_object(config)), loaded)


def _scale(config: dict[str, Any]) -> float:
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha", rank)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise BadModelFile("the adapter's configuration has no rank and alpha")
    if unknown := [key for key in _UNKNOWN if config.get(key)]:
        raise BadModelFile(f"the adapter uses {unknown[0]}, which is not known here")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _apply(model: Any, scale: float, weights: dict[str, Any]) -> None:
    layers = dict(model.named_modules())
    pairs: dict[str, dict[str, Any]] = {}
    for name, matrix in weights.items():
        found = _PART.fullmatch(name)
        if found is None:
            raise BadModelFile(f"{name[:80]!r} is not part of a LoRA adapter")
        pairs.setdefault(found["layer"], {})[found["side"]] = matrix
    adapted = []
    for name, sides in pairs.items():
        layer = layers.get(name)
        if layer is None or sides.keys() != {"A", "B"} or not _fits(layer, sides["A"].shape, sides["B"].shape):
            raise BadModelFile(f"the adapter does not fit the layer {name[:80]!r} of the model")
        adapted.append((name, Adapted(layer, sides["A"].T, sides["B"].T, scale)))
    model.update_modules(tree_unflatten(adapted))


def _fits(layer: Any, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """A is rank × in, B is out × rank."""
    while isinstance(layer, Adapted):
        layer = layer.layer
    if not isinstance(layer, nn.Linear | nn.QuantizedLinear):
        return False
    height, width = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        width = width * 32 // layer.bits
    return len(a) == len(b) == 2 and a[0] == b[1] and (a[1], b[0]) == (width, height)
