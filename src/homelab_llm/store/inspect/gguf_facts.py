"""Facts of a model in GGUF files: one, or the parts of a split one, and maybe a vision projector beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.errors import BadModelFile
from homelab_llm.core.facts import Capability, ModelFacts
from homelab_llm.store.inspect.chat_tokens import gguf_chat_tokens
from homelab_llm.store.inspect.gguf import GgufHeader, read_gguf
from homelab_llm.store.inspect.gguf_types import FILE_TYPES, TENSOR_TYPES
from homelab_llm.store.inspect.template import chat_capabilities, knows_tools

# Architectures that read a whole text at once: they embed, they do not generate, and keep no KV cache.
ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)
# What else comes in this format, by ``general.type``; a vision projector is known by its architecture.
_NOT_A_MODEL = {
    "adapter": "a LoRA adapter alone is not a model",
    "imatrix": "an importance matrix is not a model",
}
_POOLING_RANK = 4
_MAX_LAYERS = 10_000
_MAX_PARTS = 1_000


def gguf_facts(weights: Mapping[str, Path], size_bytes: int) -> ModelFacts:
    """The facts of a model of GGUF files; ``size_bytes`` counts whatever else belongs to it too.

    Raises:
        BadModelFile: a file contradicts itself, or parts of a split model are missing or doubled.
    """
    paths = [path for _, path in sorted(weights.items())]
    headers = [read_gguf(path) for path in paths]
    projectors = [h for h in headers if h.text("general.architecture") == "clip"]
    beside = [h for h in headers if h.text("general.type") in _NOT_A_MODEL]
    if len(beside) == len(headers):
        raise _not_a_model(beside[0].text("general.type"))
    parts = _whole([h for h in headers if h not in projectors and h not in beside])
    shape = _Shape.of(parts[0])
    template = parts[0].text("tokenizer.chat_template")
    capabilities = _capabilities(parts[0], shape.architecture, template)
    plain = capabilities == ("completion",)  # no template: the vocabulary may tell which one fits
    tokens, ends = gguf_chat_tokens(paths[headers.index(parts[0])]) if plain else ((), ())
    return ModelFacts(
        format="gguf",
        architecture=shape.architecture,
        size_bytes=size_bytes,
        parameters=sum(tensor.elements for part in parts for tensor in part.tensors),
        quantization=_quantization(parts),
        context_tokens=shape.context_tokens,
        embedding_width=shape.width,
        layers=shape.layers,
        heads=max(shape.heads, default=0),
        kv_heads=max(shape.kv_heads, default=0),
        vocabulary_tokens=shape.vocabulary_tokens,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        licence=_printable(parts[0].text("general.license")[:200]),
        chat_template=template,
        template_knows_tools=knows_tools(template),
        capabilities=(*capabilities, "vision") if projectors else capabilities,
        chat_tokens=tokens,
        end_tokens=ends,
    )


def _not_a_model(kind: str) -> BadModelFile:
    hint = "name it as ADAPTER in a Modelfile, then mlxctl create" if kind == "adapter" else "give the model's own file"
    return BadModelFile(_NOT_A_MODEL[kind], hint=hint, kind=kind)


def _whole(parts: list[GgufHeader]) -> list[GgufHeader]:
    """The parts in order; a model that is not split is one part."""
    if not parts:
        raise BadModelFile("a vision projector alone is not a model")
    announced = {part.number("split.count", limit=_MAX_PARTS) or 1 for part in parts}
    numbers = sorted(part.number("split.no", limit=_MAX_PARTS) for part in parts)
    if announced != {len(parts)} or numbers != list(range(len(parts))):
        raise BadModelFile(
            f"{len(parts)} of {max(announced)} parts of a split model are here",
            hint="all parts are needed, each once",
            parts=len(parts),
        )
    if not any(part.tensors for part in parts):
        raise BadModelFile("the file holds no tensors")
    ordered = sorted(parts, key=lambda part: part.number("split.no", limit=_MAX_PARTS))
    promised = ordered[0].number("split.tensors.count", limit=1 << 20)
    if promised and promised != sum(len(part.tensors) for part in ordered):
        raise BadModelFile("the parts together do not hold the tensors that the first one announces")
    return ordered


@dataclass(frozen=True, slots=True)
class _Shape:
    """The dimensions of a model; heads are per layer."""

    architecture: str
    context_tokens: int
    width: int
    layers: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    vocabulary_tokens: int
    kv_bytes_per_token: int

    @classmethod
    def of(cls, header: GgufHeader) -> _Shape:
        name = header.text("general.architecture")
        if not name or len(name) > 80 or not name.isprintable():
            raise BadModelFile("general.architecture is missing", key="general.architecture")
        width = header.number(f"{name}.embedding_length", limit=1 << 20)
        layers = header.number(f"{name}.block_count", limit=_MAX_LAYERS)
        heads = _per_layer(header, f"{name}.attention.head_count", layers, None)
        kv_heads = _per_layer(header, f"{name}.attention.head_count_kv", layers, heads)
        default = width // max(heads, default=0) if max(heads, default=0) else 0
        key = header.number(f"{name}.attention.key_length", limit=1 << 16) or default
        value = header.number(f"{name}.attention.value_length", limit=1 << 16) or default
        interval = header.number(f"{name}.full_attention_interval", limit=_MAX_LAYERS) or 1
        cached = 0 if name in ENCODERS else sum(kv_heads) // interval
        return cls(
            name,
            header.number(f"{name}.context_length", limit=1 << 31),
            width,
            layers,
            heads,
            kv_heads,
            header.number(f"{name}.vocab_size", limit=1 << 26) or header.lengths.get("tokenizer.ggml.tokens", 0),
            cached * (key + value) * 2,
        )


def _per_layer(header: GgufHeader, key: str, layers: int, default: tuple[int, ...] | None) -> tuple[int, ...]:
    """A number of heads for each layer; files give one number or one per layer."""
    value = header.values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, tuple):
        if len(value) < layers or not all(type(n) is int and 0 <= n <= 1 << 16 for n in value):
            raise BadModelFile(f"{key} does not give a number of heads for each layer", key=key)
        return tuple(int(n) for n in value[:layers])
    return (header.number(key, limit=1 << 16),) * layers


def _quantization(parts: list[GgufHeader]) -> str:
    """By the file type the writer gave, else by the type that takes the most bytes."""
    given = parts[0].values.get("general.file_type")
    if isinstance(given, int) and given in FILE_TYPES:
        return FILE_TYPES[given]
    sizes: Counter[int] = Counter()
    for part in parts:
        for tensor in part.tensors:
            sizes[tensor.kind] += tensor.size_bytes
    return TENSOR_TYPES[sizes.most_common(1)[0][0]][0]


def _printable(text: str) -> str:
    return text if text.isprintable() else ""


def _capabilities(header: GgufHeader, architecture: str, template: str) -> tuple[Capability, ...]:
    pooling = header.number(f"{architecture}.pooling_type", limit=1 << 16)
    if pooling == _POOLING_RANK:
        return ()  # a reranker: it neither embeds nor generates
    if architecture in ENCODERS or pooling:
        return ("embedding",)
    return chat_capabilities(template, knows_tools(template))
