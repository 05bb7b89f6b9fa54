"""LoRA adapters of three formats added to weights: the same model as with the adapter beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest

from homelab_llm.inference.conversion.decoder import Decoder
from homelab_llm.inference.conversion.opened import open_decoder
from homelab_llm.inference.conversion.safetensors import SafetensorsWriter
from homelab_llm.inference.conversion.tensors import whole_tensor
from homelab_llm.testing.programs import Ended, files_in, run_program
from homelab_llm.testing.tiny_models import write_tiny

RANK, ALPHA = 4, 8.0
TARGETS = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 128)}
Array = Any


def matrices() -> dict[str, tuple[Array, Array]]:
    """B (out, rank) and A (rank, in) for each target."""
    random = numpy.random.default_rng(7)
    return {
        name: (random.normal(size=(out, RANK)).astype("<f4"), random.normal(size=(RANK, width)).astype("<f4") / 8)
        for name, (out, width) in TARGETS.items()
    }


def write_adapter(folder: Path, file: str, tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with (folder / file).open("wb") as stream:
        writer = SafetensorsWriter(stream, {name: ("F32", value.shape) for name, value in tensors.items()})
        for value in tensors.values():
            writer.write([value], "F32")
        writer.finish()
    return folder


def peft(folder: Path, **changes: Any) -> Path:
    """The adapter as PEFT writes it."""
    named = {}
    for name, (up, down) in matrices().items():
        named[f"base_model.model.{name}.lora_A.weight"] = down
        named[f"base_model.model.{name}.lora_B.weight"] = up
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": ["q_proj"]}
    return write_adapter(folder, "adapter_model.safetensors", named, {**config, **changes})


def mlx(folder: Path) -> Path:
    """The adapter as mlx-lm writes it."""
    named = {}
    for name, (up, down) in matrices().items():
        named[f"{name}.lora_a"], named[f"{name}.lora_b"] = (
            numpy.ascontiguousarray(down.T),
            numpy.ascontiguousarray(up.T),
        )
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": RANK, "scale": ALPHA / RANK}}
    return write_adapter(folder, "adapters.safetensors", named, config)


def gguf_adapter(path: Path) -> Path:
    """The adapter as llama.cpp's converter writes it, without the attention layer, whose rows it would reorder."""
    import gguf

    up, down = matrices()["model.layers.1.mlp.down_proj"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    writer.add_tensor("blk.1.ffn_down.weight.lora_a", down)
    writer.add_tensor("blk.1.ffn_down.weight.lora_b", up)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fuse(base: Mapping[str, Path], adapter: Mapping[str, Path], target: Path) -> Ended:
    """Fuse to the end."""
    pairs = [part for name, path in adapter.items() for part in ("--adapter", f"{name}={path}")]
    return run_program("fuse", base, *pairs, "--target", str(target))


@pytest.mark.requirement("R-I11")
@pytest.mark.parametrize("make", [peft, mlx])
def test_an_adapter_becomes_part_of_the_weights_it_was_trained_for(make: Any, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    assert fuse(files_in(base), files_in(make(tmp_path / "adapter")), tmp_path / "fused").status == 0
    before, after = open_decoder(files_in(base)), open_decoder(files_in(tmp_path / "fused"))
    for name in before.shape.tensors():
        wanted = whole_tensor(before.tensors, name)
        if (stem := name.removesuffix(".weight")) in TARGETS:
            up, down = matrices()[stem]
            wanted = wanted + ALPHA / RANK * (up @ down)
        assert numpy.allclose(whole_tensor(after.tensors, name), wanted, atol=1e-6)
    assert (tmp_path / "fused" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_gguf_model_takes_a_gguf_adapter(tmp_path: Path) -> None:
    base, target = write_tiny(tmp_path / "base", "llama"), tmp_path / "base.gguf"
    assert run_program("hf_to_gguf", files_in(base), "--type", "f32", "--target", str(target)).status == 0
    adapter = {"a.gguf": gguf_adapter(tmp_path / "a.gguf")}
    assert fuse({"model.gguf": target}, adapter, tmp_path / "fused.gguf").status == 0
    before, after = open_decoder({"model.gguf": target}), open_decoder({"model.gguf": tmp_path / "fused.gguf"})
    up, down = matrices()["model.layers.1.mlp.down_proj"]
    name = "model.layers.1.mlp.down_proj.weight"
    wanted = whole_tensor(before.tensors, name) + ALPHA / RANK * (up @ down)
    assert numpy.allclose(whole_tensor(after.tensors, name), wanted, atol=1e-5)
    ids = [4, 9, 77, 120]
    change = Decoder(after.shape, after.tensors).logits(ids) - Decoder(before.shape, before.tensors).logits(ids)
    assert abs(change).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "base", "llama")
    error = fuse(files_in(base), files_in(peft(tmp_path / "adapter", **changes)), tmp_path / "fused").error
    assert error["code"] == "unsupported_request"
    assert said in error["message"]
    assert not (tmp_path / "fused").exists()


def test_an_adapter_of_another_model_or_format_is_refused(tmp_path: Path) -> None:
    adapter = files_in(peft(tmp_path / "adapter"))
    other = write_tiny(tmp_path / "other", "llama", intermediate_size=96)
    assert fuse(files_in(other), adapter, tmp_path / "fused").error["code"] == "bad_model_file"
    base, target = write_tiny(tmp_path / "base", "llama"), tmp_path / "base.gguf"
    assert run_program("hf_to_gguf", files_in(base), "--type", "q8_0", "--target", str(target)).status == 0
    assert fuse({"model.gguf": target}, adapter, tmp_path / "fused").error["code"] == "unsupported_request"
    quantized = fuse({"m.gguf": target}, {"a.gguf": gguf_adapter(tmp_path / "a.gguf")}, tmp_path / "fused")
    assert quantized.error["code"] == "unsupported_request"
    assert "q8_0" in quantized.error["message"].lower()
    assert not (tmp_path / "fused").exists()
