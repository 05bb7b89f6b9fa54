"""A hub with models on it, and a package index with wheels: both real servers on loopback."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from homelab_llm.core.http import HttpLimits
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.models import write_fake_model

Settings = Callable[..., PullSettings]


def weights(size_bytes: int) -> bytes:
    """A safetensors file with one tensor of that many bytes, none of them zero."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    block = bytes(range(1, 252))
    return struct.pack("<Q", len(header)) + header + (block * (size_bytes // len(block) + 1))[:size_bytes]


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_fake_model(tmp_path_factory.mktemp("gguf") / "m.gguf", weights_bytes=1_000_000).read_bytes()


@pytest.fixture(scope="session")
def folder_files() -> dict[str, bytes]:
    """A repository with everything that belongs to a model and much that does not."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": weights(3_000_000),
        "tokenizer.json": b"{}" + b"\n" * 5000,
        "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}"}).encode(),
        "LICENSE": b"Apache License",
        "README.md": b"# Card",
        "modeling.py": b"import os",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "original/consolidated.safetensors": weights(100),
        "model-Q4_K_M.gguf": b"GGUF",
    }


@pytest.fixture
def hub(gguf_file: bytes, folder_files: dict[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(repos={"Org/Folder": dict(folder_files), "Org/Tiny-GGUF": {"tiny-F32.gguf": gguf_file}}) as running:
        yield running


@pytest.fixture
def settings(hub: FakeHub) -> Settings:
    """Makes settings for that hub; without the machine's own environment, floors or long pauses."""

    def make(**changes: object) -> PullSettings:
        values: dict[str, object] = {
            "hf_endpoint": hub.url,
            "free_floor_bytes": 0,
            "environ": {},
            "apple": False,
            "limits": HttpLimits(read_s=5, backoff_s=0.001),
            "backoff_s": 0.001,
            **changes,
        }
        return PullSettings(**values)  # type: ignore[arg-type]

    return make


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture(scope="session")
def build_wheel() -> Callable[..., tuple[str, bytes, bytes]]:
    """Makes a wheel: its file name, its bytes and its METADATA."""

    def make(name: str, version: str, members: Mapping[str, bytes]) -> tuple[str, bytes, bytes]:
        stem = f"{name.replace('-', '_')}-{version}"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
        content = {
            **members,
            f"{stem}.dist-info/METADATA": metadata,
            f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        for path, data in content.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            writer.writerow([path, f"sha256={digest}", len(data)])
        writer.writerow([f"{stem}.dist-info/RECORD", "", ""])
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in content.items():
                archive.writestr(path, data)
            archive.writestr(f"{stem}.dist-info/RECORD", rows.getvalue())
        return f"{stem}-py3-none-any.whl", out.getvalue(), metadata

    return make
