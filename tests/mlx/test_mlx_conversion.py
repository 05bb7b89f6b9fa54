"""The conversion GGUF → MLX: exact, idempotent, all or nothing, and clear about what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion.gguf_to_mlx import LlamaShape, check_tensors, read_tokenizer
from homelab_llm.testing.models import write_fake_model

PROGRAM = [sys.executable, "-P", "-m", "homelab_llm.inference.conversion.gguf_to_mlx"]


class Scalar:
    """A number as ``mx.load`` gives it."""

    size = 1

    def __init__(self, value: float) -> None:
        self._value = value

    def item(self) -> float:
        return self._value


class Shaped:
    """A tensor of which only the shape matters."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape


def metadata(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": Scalar(1),
        "llama.embedding_length": Scalar(64),
        "llama.feed_forward_length": Scalar(128),
        "llama.attention.head_count": Scalar(4),
        "llama.attention.head_count_kv": Scalar(2),
        "llama.context_length": Scalar(256),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "<|im_end|>"],
        "tokenizer.ggml.token_type": np.array([1, 1, 1, 3]),
        "tokenizer.ggml.merges": ["a b"],
    }
    return {key: value for key, value in {**found, **changes}.items() if value is not None}


def tensors() -> dict[str, Shaped]:
    return {f"{name}.weight": Shaped(*shape) for name, shape in LlamaShape.of(metadata()).tensor_shapes().items()}


def run(gguf: Path, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "--file", f"model.gguf={gguf}", "--target", str(target)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.requirement("R-I1")
def test_the_converted_model_computes_what_the_weights_in_the_file_say(smollm2_gguf: Path, smollm2_mlx: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    ids = [504, 3575, 282, 4649, 314]
    model, _ = load_model(smollm2_mlx, lazy=True)
    model.set_dtype(mx.float32)
    found = np.array(model(mx.array([ids]))[0, -1])
    assert np.abs(found - llama_logits(smollm2_gguf, ids)).max() < 1e-3


def llama_logits(path: Path, ids: list[int]) -> Any:
    """The last logits of a llama in numpy, from the file itself, in the row order and rotation of GGUF."""
    import gguf

    w = {
        t.name[: -len(".weight")]: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape.tolist()[::-1])
        for t in gguf.GGUFReader(path).tensors
    }
    layers, heads, kv_heads, width, count = 30, 9, 3, 64, len(ids)
    angles = np.arange(count)[:, None] * 100000.0 ** (-np.arange(0, width, 2) / width)
    cos, sin = (turn(angles)[:, None].astype(np.float32) for turn in (np.cos, np.sin))

    def norm(x: Any, weight: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def rotate(x: Any) -> Any:
        pairs = [x[..., 0::2] * cos - x[..., 1::2] * sin, x[..., 0::2] * sin + x[..., 1::2] * cos]
        return np.stack(pairs, -1).reshape(x.shape)

    x = w["token_embd"][ids]
    for layer in range(layers):
        at = {name.split(".")[2]: array for name, array in w.items() if name.startswith(f"blk.{layer}.")}
        h = norm(x, at["attn_norm"])
        q = rotate((h @ at["attn_q"].T).reshape(count, heads, width))
        k = rotate((h @ at["attn_k"].T).reshape(count, kv_heads, width)).repeat(heads // kv_heads, 1)
        v = (h @ at["attn_v"].T).reshape(count, kv_heads, width).repeat(heads // kv_heads, 1)
        scores = np.einsum("thd,shd->hts", q, k) / 8 + np.triu(np.full((count, count), -np.inf), 1)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", share, v).reshape(count, -1) @ at["attn_output"].T
        h = norm(x, at["ffn_norm"])
        gate = h @ at["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ at["ffn_up"].T)) @ at["ffn_down"].T
    return norm(x[-1], w["output_norm"]) @ w["token_embd"].T


def test_the_four_bit_weights_stay_four_bit_and_the_embedding_keeps_its_eight(smollm2_mlx: Path) -> None:
    quantization = json.loads((smollm2_mlx / "config.json").read_text())["quantization"]
    eight = {"group_size": 32, "bits": 8}
    assert quantization == {"group_size": 32, "bits": 4, "model.embed_tokens": eight}
    assert (smollm2_mlx / "model.safetensors").stat().st_size < 100_000_000


def test_a_second_conversion_does_nothing(smollm2_gguf: Path, smollm2_mlx: Path) -> None:
    before = (smollm2_mlx / "model.safetensors").stat()
    done = run(smollm2_gguf, smollm2_mlx)
    after = (smollm2_mlx / "model.safetensors").stat()
    assert (done.returncode, done.stdout) == (0, "")
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_a_conversion_killed_before_its_end_leaves_no_folder_and_the_next_one_finishes(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    killed = run(smollm2_gguf, target, HOMELAB_FAILPOINTS="conversion.before_publish=kill")
    assert killed.returncode == -9
    assert not target.exists()
    finished = run(smollm2_gguf, target)
    told = [json.loads(line.removeprefix("@progress ")) for line in finished.stdout.splitlines()]
    assert finished.returncode == 0
    assert [step["stage"] for step in told] == ["convert"] * len(told)
    assert [step["done"] for step in told] == sorted(step["done"] for step in told)
    assert told[-1]["done"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.lock"]


def test_a_model_of_another_architecture_is_refused_with_the_reason(tmp_path: Path) -> None:
    refused = run(write_fake_model(tmp_path / "fake.gguf"), tmp_path / "model")
    assert refused.returncode == 2
    assert "architecture 'fake'" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_no_gguf_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    refused = run(tmp_path / "x.gguf", tmp_path / "model")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"general.architecture": "qwen2"},
        {"llama.expert_count": Scalar(8)},
        {"llama.rope.scaling.type": "yarn"},
        {"llama.rope.dimension_count": Scalar(8)},
    ],
)
def test_what_is_not_plain_llama_is_not_supported(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRequest):
        LlamaShape.of(metadata(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"llama.block_count": None},
        {"llama.block_count": "many"},
        {"llama.block_count": Scalar(0)},
        {"llama.embedding_length": Scalar(2**40)},
        {"llama.attention.head_count_kv": Scalar(3)},
        {"llama.attention.head_count_kv": Scalar(0)},
        {"tokenizer.ggml.tokens": []},
    ],
)
def test_dimensions_that_contradict_each_other_are_bad(changes: dict[str, Any]) -> None:
    with pytest.raises(BadModelFile):
        LlamaShape.of(metadata(**changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tokenizer.ggml.model": "llama"}, UnsupportedRequest),
        ({"tokenizer.ggml.pre": "tekken"}, UnsupportedRequest),
        ({"tokenizer.ggml.tokens": ["a", "a", "ab", "c"]}, BadModelFile),
        ({"tokenizer.ggml.token_type": None}, BadModelFile),
        ({"tokenizer.ggml.merges": ["a b c"]}, BadModelFile),
        ({"tokenizer.ggml.eos_token_id": Scalar(4)}, BadModelFile),
    ],
)
def test_a_tokenizer_that_cannot_be_expressed_is_refused(
    changes: dict[str, Any], error: type[BadModelFile | UnsupportedRequest]
) -> None:
    with pytest.raises(error):
        read_tokenizer(metadata(**changes))


def test_tensors_of_the_promised_shapes_are_taken_packed_or_not() -> None:
    shape, found = LlamaShape.of(metadata()), tensors()
    assert check_tensors(found, shape) == {}
    found["blk.0.ffn_down.weight"] = Shaped(64, 128 * 4 // 32)
    found["blk.0.ffn_down.scales"] = found["blk.0.ffn_down.biases"] = Shaped(64, 4)
    assert check_tensors(found, shape) == {"blk.0.ffn_down": 4}


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("blk.0.attn_q.weight", Shaped(64, 32)),
        ("token_embd.weight", Shaped(3, 64)),
        ("output_norm.weight", None),
        ("output.weight", Shaped(4, 65)),
        ("blk.0.ffn_down.scales", Shaped(64, 4)),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_bad(name: str, array: Shaped | None) -> None:
    found: dict[str, Shaped | None] = {**tensors(), name: array}
    with pytest.raises(BadModelFile):
        check_tensors({key: value for key, value in found.items() if value is not None}, LlamaShape.of(metadata()))


def test_a_tensor_nobody_knows_is_not_supported() -> None:
    with pytest.raises(UnsupportedRequest, match=r"rope_freqs"):
        check_tensors({**tensors(), "rope_freqs.weight": Shaped(8)}, LlamaShape.of(metadata()))
