"""Tiny GGUF files for the fake engine: valid for a strict reader, and they tell the fake engine how to behave.

Not a general GGUF library: it writes the scalar types it needs, and reads back what it wrote.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little endian).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts, StoredModel

Scalar = str | int | float | bool
Load = Literal["ok", "crash", "hang", "oom"]
Canary = Literal["ok", "error", "hang", "crash", "other"]

ARCHITECTURE = "fake"
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
_ALIGNMENT = 32
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9


def write_fake_model(
    path: Path,
    *,
    name: str = "fake",
    context_tokens: int = 4096,
    weights_bytes: int = 128,
    load_s: float = 0.0,
    load: Load = "ok",
    memory_mb: int = 0,
    children: int = 0,
    ignore_term: bool = False,
    rate: float = 0.0,
    prefill_s: float = 0.0,
    canary: Canary = "ok",
    extra: Mapping[str, Scalar] | None = None,
) -> Path:
    """Write a fake model and return ``path``; other arguments, other content, other digest.

    Args:
        weights_bytes: size of its one tensor, rounded up to 128; really on disk and never zero.
        load_s: how long the engine answers 503 before it is ready.
        load: how the load ends; ``hang`` never does, ``oom`` prints what real engines print and ends.
        memory_mb: memory the engine really takes, in MiB.
        children: how many processes the engine starts in its group.
        ignore_term: the engine does not end on SIGTERM.
        rate: tokens per second of one stream unless a directive says so; 0 = as fast as possible.
        prefill_s: time before the first token unless a directive says so.
        canary: what becomes of requests without a directive, the first one above all; ``other`` answers all of them
            as another model.
        extra: more metadata, complete keys.
    """
    metadata: dict[str, Scalar] = {
        "general.architecture": ARCHITECTURE,
        "general.name": name,
        "general.file_type": 0,
        "general.license": "apache-2.0",
        "fake.context_length": context_tokens,
        "fake.embedding_length": 8,
        "fake.block_count": 1,
        "fake.feed_forward_length": 8,
        "fake.attention.head_count": 1,
        "fake.attention.head_count_kv": 1,
        "fake.load_s": float(load_s),
        "fake.load": load,
        "fake.memory_mb": memory_mb,
        "fake.children": children,
        "fake.ignore_term": ignore_term,
        "fake.rate": float(rate),
        "fake.prefill_s": float(prefill_s),
        "fake.canary": canary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.chat_template": CHAT_TEMPLATE,
        **(extra or {}),
    }
    rows = max(1, -(-weights_bytes // 128))
    path.write_bytes(_header(metadata, rows) + hashlib.sha512(name.encode()).digest() * (rows * 2))
    return path


def stored_fake_model(path: Path, name: str, *, context_tokens: int = 4096) -> StoredModel:
    """The written file at ``path`` as a stored model, for tests that need no store."""
    content = path.read_bytes()
    facts = ModelFacts(
        format="gguf",
        architecture=ARCHITECTURE,
        size_bytes=len(content),
        parameters=32,
        quantization="F32",
        context_tokens=context_tokens,
        embedding_width=8,
        layers=1,
        heads=1,
        kv_heads=1,
        vocabulary_tokens=len(_TOKENS),
        kv_bytes_per_token=32,
        licence="apache-2.0",
        chat_template=CHAT_TEMPLATE,
        capabilities=("chat", "completion"),
    )
    return StoredModel(name, Digest.of(content), facts, files={"model.gguf": path}, size_bytes=len(content))


def read_metadata(path: Path) -> dict[str, Scalar]:
    """The scalar metadata of a file written here; arrays are passed over.

    Raises:
        ValueError: not such a file.
    """
    with path.open("rb") as stream:
        content = stream.read(1 << 20)
    if content[:8] != b"GGUF\x03\x00\x00\x00":
        raise ValueError(f"{path.name} is not a fake model")
    try:
        return dict(_pairs(content))
    except (struct.error, KeyError) as error:
        raise ValueError(f"{path.name} is not a fake model") from error


_TOKENS = ("<s>", "</s>", "tok")


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _pair(key: str, value: Scalar) -> bytes:
    head = _string(key)
    if isinstance(value, bool):
        return head + struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return head + struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return head + struct.pack("<If", _FLOAT32, value)
    return head + struct.pack("<I", _STRING) + _string(value)


def _header(metadata: Mapping[str, Scalar], rows: int) -> bytes:
    tokens = _string("tokenizer.ggml.tokens") + struct.pack("<IIQ", _ARRAY, _STRING, len(_TOKENS))
    tokens += b"".join(map(_string, _TOKENS))
    tensor = _string("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, rows, 0, 0)
    out = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(metadata) + 1)
    out += b"".join(_pair(key, value) for key, value in metadata.items()) + tokens + tensor
    return out + bytes(-len(out) % _ALIGNMENT)


def _pairs(content: bytes) -> Iterator[tuple[str, Scalar]]:
    """Walk the metadata; ends at the first array, which is written last."""
    (count,) = struct.unpack_from("<Q", content, 16)
    at = 24
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", content, at)
        key = content[at + 8 : at + 8 + length].decode()
        at += 8 + length
        (kind,) = struct.unpack_from("<I", content, at)
        at += 4
        if kind == _ARRAY:
            return
        if kind == _STRING:
            (length,) = struct.unpack_from("<Q", content, at)
            yield key, content[at + 8 : at + 8 + length].decode()
            at += 8 + length
            continue
        form = {_UINT32: "<I", _FLOAT32: "<f", _BOOL: "<?"}[kind]
        yield key, struct.unpack_from(form, content, at)[0]
        at += struct.calcsize(form)
