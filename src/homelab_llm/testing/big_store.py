"""A store of many models and blobs, built in seconds: small files, real manifests, nothing fsynced on the way."""

from __future__ import annotations

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.names import ModelRef
from homelab_llm.store.index import Index, read_index, write_index
from homelab_llm.store.layout import Layout
from homelab_llm.store.manifests import Layer, encode_config, encode_manifest
from homelab_llm.store.model_store import ModelStore

_SHARED = 4
"""So many files of each model lie in its neighbour too, as tokenizers do."""


def fill_store(store: ModelStore, models: int, blobs: int, *, unreferenced: int = 0) -> None:
    """Add ``models`` models that have ``blobs`` different files together, and blobs that nothing needs."""
    layout = Layout(store.root)
    layout.ensure()
    per_model = blobs // models
    index = read_index(layout)
    with layout.locked():
        for number in range(models):
            index = _add(layout, index, number, per_model)
        for number in range(unreferenced):
            _put(layout, f"unreferenced {number}".encode())
        write_index(layout, index)


def _add(layout: Layout, index: Index, number: int, files: int) -> Index:
    own = [(f"model-{i:05}-of-{files:05}.safetensors", f"content {number} {i}".encode()) for i in range(files)]
    shared = [(f"shared-{i}.json", f'{{"family":{number // 2},"part":{i}}}'.encode()) for i in range(_SHARED)]
    chosen = [*own[: files - _SHARED // 2], *shared]  # each pair of models has its shared files once
    layers = tuple(Layer(name, _put(layout, content), len(content)) for name, content in sorted(chosen))
    facts = ModelFacts(
        "safetensors", "llama", sum(layer.size_bytes for layer in layers), parameters=10**9 + number,
        quantization="BF16", context_tokens=8192, licence="apache-2.0", chat_template="{{ messages }}" * 100,
        capabilities=("chat", "completion"),
    )  # fmt: skip
    source = f"hf:org/model-{number}"
    config = encode_config(layers, facts)
    manifest = encode_manifest(layers, config, facts, source)
    _put(layout, config)
    name = ModelRef.parse(f"org/model-{number}:latest")
    return index.tagged(name, _put(layout, manifest), len(manifest), 1_700_000_000.0 + number, source)


def _put(layout: Layout, content: bytes) -> Digest:
    digest = Digest.of(content)
    layout.blob(digest).write_bytes(content)
    return digest
