"""Things the store's tests need: a store on a fast disk, small models of every kind."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core import failpoints
from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.clone import clone_into
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.models import write_fake_model

Put = Callable[[ModelStore, bytes], Digest]
Add = Callable[..., StoredModel]
Gguf = Callable[..., Path]
Folder = Callable[..., Path]

FACTS = ModelFacts(format="gguf", architecture="fake", size_bytes=7, licence="apache-2.0", capabilities=("chat",))


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory where there is one: these tests fsync thousands of times."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="hl-store-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def disk_clones(disk: Path) -> bool:
    """Whether the file system of ``disk`` can clone (APFS, Btrfs, XFS)."""
    (disk / "clone source").write_bytes(b"x")
    with (disk / "clone source").open("rb") as source, (disk / "clone target").open("wb") as target:
        return clone_into(source.fileno(), target.fileno(), disk / "clone target", disk / "beside")


@pytest.fixture
def store(disk: Path) -> ModelStore:
    return ModelStore(disk / "store")


@pytest.fixture
def armed() -> Iterator[Callable[[str], None]]:
    """``failpoints.arm``, disarmed afterwards."""
    yield failpoints.arm
    failpoints.arm("")


@pytest.fixture
def put() -> Put:
    """Writes a blob as a download would."""

    def write(store: ModelStore, content: bytes) -> Digest:
        with store.blobs.open_writer(f"test:{Digest.of(content)}", expected=Digest.of(content)) as writer:
            writer.write(content[writer.offset :])
            return writer.commit()

    return write


@pytest.fixture
def add(put: Put) -> Add:
    """Adds a model of files given as bytes, ``{"model.gguf": b"content"}`` when none are."""

    def make(
        store: ModelStore, name: str, files: Mapping[str, bytes] | None = None, *, source: str = ""
    ) -> StoredModel:
        contents = {"model.gguf": name.encode()} if files is None else files
        digests = {file: put(store, content) for file, content in contents.items()}
        return store.add(ModelRef.parse(name), digests, FACTS, source=source or f"test:{name}")

    return make


@pytest.fixture
def gguf(disk: Path) -> Gguf:
    """Writes a small valid GGUF file; other names, other content."""

    def make(name: str = "tiny.gguf", *, folder: Path | None = None, **options: object) -> Path:
        place = folder or disk / "sources"
        place.mkdir(parents=True, exist_ok=True)
        return write_fake_model(place / name, name=name, **options)  # type: ignore[arg-type]

    return make


def safetensors(seed: int = 0) -> bytes:
    """One small tensor."""
    data = bytes((seed + i) % 251 + 1 for i in range(64))
    header = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 4,
    "max_position_embeddings": 128,
    "torch_dtype": "float32",
}


@pytest.fixture
def hf_folder(disk: Path) -> Folder:
    """Writes a small folder in Hugging Face's format; ``files`` are added, None leaves one out."""

    def make(
        name: str = "tiny", *, folder: Path | None = None, files: Mapping[str, bytes | None] | None = None
    ) -> Path:
        place = folder or disk / "sources" / name
        contents: dict[str, bytes | None] = {
            "config.json": json.dumps(CONFIG).encode(),
            "model.safetensors": safetensors(),
            "tokenizer.json": b'{"version":"1.0"}',
            "LICENSE": b"Apache License 2.0",
            **(files or {}),
        }
        for file, content in contents.items():
            if content is not None:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                (place / file).write_bytes(content)
        return place

    return make


@pytest.fixture
def hf_cache(disk: Path) -> Callable[[Path], Path]:
    """Puts the files of a folder into a Hugging Face cache; gives the snapshot folder, all links."""

    def make(folder: Path) -> Path:
        repository = disk / "hub" / f"models--org--{folder.name}"
        snapshot = repository / "snapshots" / ("0" * 40)
        (repository / "blobs").mkdir(parents=True)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            blob = repository / "blobs" / Digest.of_file(path).hex
            blob.write_bytes(path.read_bytes())
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            up = "../" * len(link.relative_to(repository).parts[:-1])
            link.symlink_to(f"{up}blobs/{blob.name}")
        return snapshot

    return make
