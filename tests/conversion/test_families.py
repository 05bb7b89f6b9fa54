"""Each family of decoders: from Hugging Face's format to GGUF and back, held against llama.cpp and mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from homelab_llm.inference.conversion.decoder import Decoder
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.opened import open_decoder, open_tokens
from homelab_llm.testing.llama_worker import llama_worker
from homelab_llm.testing.programs import files_in, run_program
from homelab_llm.testing.tiny_models import FAMILIES, Family, write_tiny

TEXT = "The cat and the king of the house in 1984 — naïve!\n  ok"
TOLERANCE = 0.02  # llama.cpp keeps keys and values in 16 bits, and GELU in a table


def to_gguf(folder: Path, target: Path, *arguments: str) -> dict[str, Any]:
    """Convert; the error, empty when there is none."""
    return run_program("hf_to_gguf", files_in(folder), "--target", str(target), *arguments).error


def logits(files: dict[str, Path]) -> tuple[list[int], Any]:
    """The tokens of the text by the model's own tokenizer, and the logits after each."""
    opened, tokens = open_decoder(files), open_tokens(files)
    ids = ([] if tokens.bos_id is None else [tokens.bos_id]) + tokens.encode(TEXT)
    return ids, Decoder(opened.shape, opened.tensors).logits(ids)


@pytest.mark.requirement("R-I11")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_same_logits_as_gguf_in_llama_cpp_and_back_again(family: Family, tmp_path: Path) -> None:
    folder, gguf, back = write_tiny(tmp_path / "hf", family), tmp_path / "model.gguf", tmp_path / "back"
    assert not to_gguf(folder, gguf, "--type", "f32")
    ids, wanted = logits(files_in(folder))
    again = run_program("gguf_to_hf", {"model.gguf": gguf}, "--type", "f32", "--target", str(back))
    assert again.status == 0
    for files in ({"model.gguf": gguf}, files_in(back)):
        found_ids, found = logits(files)
        assert found_ids == ids
        assert numpy.array_equal(found, wanted)
    last = wanted[-1].astype("<f8")
    expected = last - numpy.log(numpy.exp(last - last.max()).sum()) - last.max()
    plain = open_tokens(files_in(folder)).encode("a")[-1]
    with llama_worker(gguf) as worker:
        assert worker.tokens(TEXT) == ids
        told = worker.log_probabilities(ids, plain, count=len(expected))
    assert len(told) == len(expected)
    layers = 4 if family == "gemma3_text" else 1  # as many times as deep
    assert max(abs(expected[token] - value) for token, value in told.items()) < TOLERANCE * layers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_same_logits_in_mlx_lm(family: Family, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    # mlx-lm has no windows in Gemma 2, and scales Gemma 1 in 16 bits.
    window: dict[str, Any] = {"sliding_window": 4096} if family == "gemma2" else {}
    folder = write_tiny(tmp_path, family, **window)
    ids, wanted = logits(files_in(folder))
    model, _ = load_model(folder)
    found = numpy.array(model(mx.array([ids]))[0])
    assert abs(found - wanted).max() < (0.01 if family == "gemma" else 1e-3)


def test_positions_of_llama_3_are_scaled_as_in_mlx_lm_and_in_llama_cpp(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 32
    folder, gguf = write_tiny(tmp_path / "hf", "llama", rope_scaling=scaling), tmp_path / "model.gguf"
    ids, wanted = logits(files_in(folder))
    _, plain = logits(files_in(write_tiny(tmp_path / "plain", "llama")))
    assert abs(plain - wanted).max() > 0.05
    model, _ = load_model(folder)
    assert abs(numpy.array(model(mx.array([ids]))[0]) - wanted).max() < 1e-3
    assert not to_gguf(folder, gguf, "--type", "f32")
    assert "rope_freqs.weight" in GgufFiles([gguf]).tensors
    assert abs(logits({"model.gguf": gguf})[1] - wanted).max() < 1e-4
    with llama_worker(gguf) as worker:
        told = worker.log_probabilities(ids, open_tokens(files_in(folder)).encode("a")[-1], count=wanted.shape[1])
    last = wanted[-1].astype("<f8")
    expected = last - numpy.log(numpy.exp(last).sum())
    assert max(abs(expected[token] - value) for token, value in told.items()) < TOLERANCE


def test_shards_and_half_precision_give_the_same_file_as_one_part(tmp_path: Path) -> None:
    one = write_tiny(tmp_path / "one", "qwen3", dtype="BF16")
    three = write_tiny(tmp_path / "three", "qwen3", dtype="BF16", shards=3)
    for name, folder in (("one", one), ("three", three)):
        assert not to_gguf(folder, tmp_path / f"{name}.gguf", "--type", "bf16", "--name", "same")
    source, found = open_decoder(files_in(one)), GgufFiles([tmp_path / "one.gguf"])
    for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
        there = {"token_embd.weight": "model.embed_tokens.weight"}.get(name, "model.layers.1.mlp.down_proj.weight")
        assert numpy.array_equal(found.rows(name, 0, 64), source.tensors.rows(there, 0, 64))
    # the random numbers are drawn in the order of the files, so the shards hold others
    assert list(GgufFiles([tmp_path / "three.gguf"]).tensors) == list(found.tensors)


def test_the_language_part_of_a_multimodal_gemma_is_converted(tmp_path: Path) -> None:
    from homelab_llm.inference.conversion.shapes import shape_of_config
    from homelab_llm.testing.tiny_models import tiny_config, write_weights

    folder = write_tiny(tmp_path / "hf", "gemma3_text")
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps({**whole, "vision_config": {"hidden_size": 8}}))
    tensors = shape_of_config(tiny_config("gemma3_text", config["vocab_size"]), tied=True).tensors()
    for prefix in ("language_model.", "model.language_model."):
        named = {
            (prefix + name.removeprefix("model.") if prefix.startswith("model") else prefix + name): shape
            for name, shape in tensors.items()
        }
        write_weights(folder, {**named, "vision_tower.patch.weight": (8, 8)})
        target = tmp_path / f"{prefix}gguf"
        assert not to_gguf(folder, target, "--type", "f32")
        assert "blk.6.attn_q.weight" in GgufFiles([target]).tensors


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"model_type": "phi3"}, "unsupported_request", "phi3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "unsupported_request", "yarn"),
        ({"attention_bias": True}, "unsupported_request", "attention_bias"),
        ({"hidden_act": "relu"}, "unsupported_request", "relu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "unsupported_request", "quantization_config"),
        ({"num_hidden_layers": 3}, "bad_model_file", "model.layers.2"),
        ({"num_hidden_layers": 1}, "unsupported_request", "model.layers.1"),
        ({"hidden_size": 1 << 40}, "bad_model_file", "hidden_size"),
        ({"num_attention_heads": 3}, "bad_model_file", "heads contradict"),
        ({"vocab_size": 100}, "bad_model_file", "shape"),
        ({"intermediate_size": "many"}, "bad_model_file", "intermediate_size"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_and_nothing_is_written(
    changes: dict[str, Any], code: str, said: str, tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path / "hf", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    error = to_gguf(folder, tmp_path / "out" / "model.gguf")
    assert error["code"] == code
    assert said in error["message"]
    assert not (tmp_path / "out" / "model.gguf").exists()


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (None, "bad_model_file", "no tokenizer.json"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "unsupported_request", "cuts text by rules"),
        ({"normalizer": {"type": "Lowercase"}}, "unsupported_request", "cuts text by rules"),
        ({"model": {"type": "Unigram", "vocab": []}}, "unsupported_request", "Unigram"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}, "bad_model_file", "one id"),
        ({"model": {"type": "BPE", "vocab": {"a": 100_000}}}, "bad_model_file", "ends at"),
        ({"added_tokens": [{"id": "x"}]}, "bad_model_file", "added tokens"),
    ],
)
def test_a_tokenizer_llama_cpp_would_read_otherwise_is_refused(
    change: dict[str, Any] | None, code: str, said: str, tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path / "hf", "llama")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    path.unlink() if change is None else path.write_text(json.dumps({**document, **change}))
    error = to_gguf(folder, tmp_path / "model.gguf")
    assert error["code"] == code
    assert said in error["message"]
    assert not (tmp_path / "model.gguf").exists()


def test_a_tensor_outside_its_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", "llama")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert to_gguf(folder, tmp_path / "model.gguf")["code"] == "bad_model_file"
    assert not (tmp_path / "model.gguf").exists()
