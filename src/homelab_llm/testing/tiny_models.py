"""Tiny models with random weights in Hugging Face's format, one of each family; their words mean nothing.

Valid for transformers, mlx-lm and our converters. Same arguments, same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from homelab_llm.inference.conversion.gguf_tokenizer import PRE_TOKENIZERS
from homelab_llm.inference.conversion.safetensors import SafetensorsWriter
from homelab_llm.inference.conversion.shapes import shape_of_config

Family = Literal["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")

_PRE = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2"}
_MERGES = ("t h", "th e", "Ġ the", "i n", "a n", "an d", "Ġ and", "o f", "Ġ of")
_PIECES = ("th", "the", "▁the", "in", "an", "and", "▁and", "of", "▁of")
_SPACE = "▁"


def write_tiny(folder: Path, family: Family, *, dtype: str = "F32", shards: int = 1, **changes: Any) -> Path:
    """Write a model of two to seven small layers and return ``folder``; ``changes`` go into ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe_tokenizer(_PRE[family]) if family in _PRE else spm_tokenizer()
    config = {**tiny_config(family, len(tokenizer["model"]["vocab"])), **changes}
    _write(folder / "config.json", config)
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", tokenizer_config(family))
    shape = shape_of_config(config, tied=bool(config.get("tie_word_embeddings")))
    write_weights(folder, shape.tensors(), dtype=dtype, shards=shards)
    return folder


def tiny_config(family: Family, tokens: int) -> dict[str, Any]:
    """A configuration as transformers writes it."""
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [f"{family.title().replace('_Text', '')}ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": tokens,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": family not in ("mistral", "qwen2"),
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family.startswith("gemma"):
        config |= {"head_dim": 32, "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh"}
    if family == "gemma2":
        config |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 16}
    if family == "gemma3_text":
        config |= {"num_hidden_layers": 7, "sliding_window": 16, "sliding_window_pattern": 6}
        config |= {"rope_local_base_freq": 10000.0, "rope_theta": 1_000_000.0}
    return config


def tokenizer_config(family: Family) -> dict[str, Any]:
    """The names of the special tokens."""
    begins, ends = ("<|bos|>", "<|im_end|>") if family in _PRE else ("<s>", "</s>")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begins, "eos_token": ends}
    config["chat_template"] = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return config


def bpe_tokenizer(pre: str) -> dict[str, Any]:
    """A byte-level BPE tokenizer with all bytes and a few merges."""
    specials = ["<|endoftext|>", "<|bos|>", "<|im_end|>"]
    tokens = [*specials, *byte_letters(), *(merge.replace(" ", "") for merge in _MERGES)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, token) for number, token in enumerate(specials)],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre].rules,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "unk_token": None,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": list(_MERGES),
        },
    }


def spm_tokenizer() -> dict[str, Any]:
    """SentencePiece's merges as transformers writes them: Llama 2, Mistral, Gemma."""
    letters = [_SPACE, *map(chr, range(33, 127))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *_PIECES, *letters]
    known = set(tokens)
    merges = [
        [piece[:at], piece[at:]]
        for piece in _PIECES
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, token) for number, token in enumerate(("<unk>", "<s>", "</s>"))],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def byte_letters() -> list[str]:
    """The 256 letters by which byte-level tokenizers write bytes (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [*map(chr, plain), *(chr(256 + number) for number in range(len(others)))]


def write_weights(
    folder: Path, tensors: Mapping[str, tuple[int, ...]], *, dtype: str = "F32", shards: int = 1, seed: int = 0
) -> None:
    """Random tensors as ``model.safetensors``, or as shards with their index."""
    import numpy

    random = numpy.random.default_rng(seed)
    names = list(tensors)
    if shards == 1:
        parts: Sequence[tuple[str, list[str]]] = [("model.safetensors", names)]
    else:
        parts = [(f"model-{n + 1:05}-of-{shards:05}.safetensors", names[n::shards]) for n in range(shards)]
        weight_map = {name: part for part, held in parts for name in held}
        _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    for part, held in parts:
        with (folder / part).open("wb") as stream:
            writer = SafetensorsWriter(stream, {name: (dtype, tensors[name]) for name in held})
            for name in held:
                scale = 1 / math.sqrt(tensors[name][-1])
                value = random.standard_normal(tensors[name]).astype("<f4") * numpy.float32(scale)
                writer.write([value + 1 if name.endswith("norm.weight") else value], dtype)
            writer.finish()


def _added(number: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": True}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
