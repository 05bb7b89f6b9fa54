"""Builders of model files, written from the format descriptions and not from the reader under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Pair = tuple[str, int, bytes]  # key, value type, encoded value
Tensor = tuple[str, Sequence[int], int, bytes]  # name, shape, tensor type, data
GgufBuilder = Callable[..., bytes]


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _pairs(values: Mapping[str, Any]) -> list[Pair]:
    pairs: list[Pair] = []
    for key, value in values.items():
        if isinstance(value, bool):
            pairs.append((key, 7, struct.pack("<?", value)))
        elif isinstance(value, int):
            pairs.append((key, 4, struct.pack("<I", value)))
        elif isinstance(value, float):
            pairs.append((key, 6, struct.pack("<f", value)))
        elif isinstance(value, str):
            pairs.append((key, 8, text(value)))
        elif value and isinstance(value[0], str):
            pairs.append((key, 9, struct.pack("<IQ", 8, len(value)) + b"".join(map(text, value))))
        else:
            pairs.append((key, 9, struct.pack(f"<IQ{len(value)}I", 4, len(value), *value)))
    return pairs


def build_gguf(
    values: Mapping[str, Any] | None = None,
    tensors: Sequence[Tensor] | None = None,
    *,
    extra_pairs: Sequence[Pair] = (),
    version: int = 3,
    magic: bytes = b"GGUF",
    pair_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
    shift_bytes: int = 0,
) -> bytes:
    """A GGUF file; ``shift_bytes`` is added to the second tensor's offset, counts may be lied about."""
    known = {
        "general.architecture": "llama",
        "general.license": "mit",
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    pairs = [*_pairs({**known, **(values or {})}), *extra_pairs]
    if tensors is None:
        tensors = [("token_embd.weight", (64, 3), 0, b"\x3f" * 768), ("output_norm.weight", (64,), 0, b"\x3f" * 256)]
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts)
    for key, kind, raw in pairs:
        head += text(key) + struct.pack("<I", kind) + raw
    data = b""
    for index, (name, shape, kind, content) in enumerate(tensors):
        offset = len(data) + (shift_bytes if index == 1 else 0)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        data += content + b"\0" * (-len(content) % alignment)
    head += b"\0" * (-len(head) % alignment)
    return head + data


def build_safetensors(header: object, data: bytes = b"", *, announced: int | None = None) -> bytes:
    """A safetensors file; ``header`` is encoded as JSON unless it is bytes already."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if announced is None else announced) + raw + data


@pytest.fixture(scope="session")
def gguf() -> GgufBuilder:
    return build_gguf


@pytest.fixture(scope="session")
def safetensors() -> Callable[..., bytes]:
    return build_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Makes a small Llama folder; keyword arguments replace or add files (None leaves one out)."""

    def make(config: Mapping[str, Any] | None = None, **files: bytes | str | None) -> dict[str, Path]:
        weights = {"model.weight": {"dtype": "F16", "shape": [64, 4], "data_offsets": [0, 512]}}
        content: dict[str, bytes | str | None] = {
            "config.json": json.dumps(
                {
                    "model_type": "llama",
                    "num_hidden_layers": 2,
                    "hidden_size": 64,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "vocab_size": 3,
                    "max_position_embeddings": 128,
                    **(config or {}),
                }
            ),
            "model.safetensors": build_safetensors(weights, b"\x3c" * 512),
            **files,
        }
        out = {}
        for name, value in content.items():
            if value is not None:
                path = tmp_path / "model" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(value.encode() if isinstance(value, str) else value)
                out[name] = path
        return out

    return make
