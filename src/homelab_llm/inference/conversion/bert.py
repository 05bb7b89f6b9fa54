"""BERT embedding models: their numbers, tensors, WordPiece tokens and pooling, as both formats have them.

llama.cpp keeps WordPiece tokens with a phantom space: a word's start has U+2581 in front, a continuation loses its
``##``. Its tokenizer differs from BERT's in two corners (measured): it does not take Hangul syllables apart, and it
drops spacing marks of Indic scripts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion.documents import read_bounded, read_object
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.safetensors import SafetensorsFiles
from homelab_llm.inference.conversion.tensors import Tensors, whole_tensor

SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_SPACE = "\u2581"
_MODEL_NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER_NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


@dataclass(frozen=True, slots=True)
class BertShape:
    """The dimensions of the model, from ``config.json``."""

    layers: int
    width: int
    inner: int
    heads: int
    positions: int
    vocabulary: int
    token_types: int
    epsilon: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> BertShape:
        """Raises ``UnsupportedRequest`` for what llama.cpp's bert does not compute, ``BadModelFile`` for nonsense."""
        wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, value in wanted.items():
            if (found := config.get(key, value)) != value:
                raise UnsupportedRequest(f"only BERT with {key} = {value} can be converted, not {str(found)[:40]!r}")
        names = [
            *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
            *("max_position_embeddings", "vocab_size", "type_vocab_size"),
        ]
        numbers = [config.get(name) for name in names]
        sane = [number for number in numbers if type(number) is int and 1 <= number <= 1 << 22]
        epsilon = config.get("layer_norm_eps", 1e-12)
        if len(sane) != len(names) or not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise BadModelFile("config.json does not describe a BERT model")
        layers, width, inner, heads, positions, vocabulary, token_types = sane
        return cls(layers, width, inner, heads, positions, vocabulary, token_types, epsilon)

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Every tensor needed: its name there, its name in GGUF, and its shape (rows first)."""
        w, inner = self.width, self.inner
        shapes = {"token_embd.weight": (self.vocabulary, w), "position_embd.weight": (self.positions, w)}
        shapes |= {"token_types.weight": (self.token_types, w), "ffn_up": (inner, w), "ffn_down": (w, inner)}
        layers = [
            (f"encoder.layer.{n}.{source}", f"blk.{n}.{target}", shapes.get(target, (w, w)))
            for n in range(self.layers)
            for source, target in _LAYER_NAMES.items()
        ]
        for source, target, shape in [(s, t, shapes.get(t, (w,))) for s, t in _MODEL_NAMES.items()] + layers:
            if target in shapes:
                yield source, target, shape
            elif target.endswith("_norm"):
                yield f"{source}.weight", f"{target}.weight", (w,)
                yield f"{source}.bias", f"{target}.bias", (w,)
            else:
                yield f"{source}.weight", f"{target}.weight", shape
                yield f"{source}.bias", f"{target}.bias", shape[:1]

    @classmethod
    def of_gguf(cls, files: GgufFiles) -> BertShape:
        """Raises ``UnsupportedRequest`` for another architecture."""
        if files.value("general.architecture") != "bert":
            raise UnsupportedRequest("only BERT models are compared by their embeddings")
        keys = {
            "num_hidden_layers": "block_count",
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "num_attention_heads": "attention.head_count",
            "max_position_embeddings": "context_length",
        }
        config = {name: files.value(f"bert.{key}") for name, key in keys.items()}
        config |= {"layer_norm_eps": float(files.value("bert.attention.layer_norm_epsilon", 1e-12))}
        config |= {"vocab_size": len(files.value("tokenizer.ggml.tokens", []))}
        return cls.of(config | {"type_vocab_size": files.value("tokenizer.ggml.token_type_count", 2)})


class BertTensors:
    """The tensors of a BERT model by Hugging Face's names, whole, as float32."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        if any(name.endswith(".gguf") for name in files):
            gguf = GgufFiles.of(files)
            self.shape = BertShape.of_gguf(gguf)
            self._source: Tensors = gguf
            self._names = {source: target for source, target, _ in self.shape.tensors()}
            self.pooling = int(gguf.value("bert.pooling_type", 1))
            self.tokens = [spelled(token) for token in gguf.value("tokenizer.ggml.tokens", [])]
            return
        stored = SafetensorsFiles(files)
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in stored.names() else ""
        self.shape, self._source = BertShape.of(read_object(files, "config.json")), stored
        self._names = {source: prefix + source for source, _, _ in self.shape.tensors()}
        self.pooling = pooling(files)
        self.tokens = vocabulary(files, self.shape.vocabulary)

    def read(self, name: str, shape: tuple[int, ...]) -> Any:
        """The tensor as a float32 array of exactly this shape.

        Raises:
            BadModelFile: it is missing, or has another shape.
        """
        self.check(name, shape)
        return whole_tensor(self._source, self._names[name])

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ``BadModelFile`` when the tensor is missing or has another shape."""
        found = self._source.shape(self._names[name])
        if found != shape:
            raise BadModelFile(f"{name} is of shape {list(found)}, not {list(shape)}", tensor=name)


def vocabulary(files: Mapping[str, Path], size: int) -> list[str]:
    """The WordPiece tokens by id, filled up to ``size``.

    Raises:
        UnsupportedRequest: another kind of tokenizer, or one that keeps upper case: llama.cpp lowers everything.
    """
    settings = read_object(files, "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    lower = settings.get("do_lower_case", True)
    if "tokenizer.json" in files:
        tokenizer = read_object(files, "tokenizer.json")
        model, normalizer = tokenizer.get("model") or {}, tokenizer.get("normalizer") or {}
        if model.get("type", "WordPiece") != "WordPiece" or not isinstance(model.get("vocab"), dict):
            raise UnsupportedRequest("only WordPiece tokenizers can be converted")
        lower = normalizer.get("lowercase", lower)
        tokens = _by_id(model["vocab"])
    elif "vocab.txt" in files:
        tokens = read_bounded(files["vocab.txt"], "vocab.txt").decode("utf-8").splitlines()
    else:
        raise BadModelFile("the model has neither tokenizer.json nor vocab.txt")
    if not lower:
        raise UnsupportedRequest("llama.cpp lowers every text; this model tells upper and lower case apart")
    if len(tokens) > size:
        raise BadModelFile("the tokenizer has more tokens than the model")
    return tokens + [f"[PAD{number}]" for number in range(size - len(tokens))]


def phantom(token: str) -> str:
    """A WordPiece token as llama.cpp stores it."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def pooling(files: Mapping[str, Path]) -> int:
    """How token vectors become one, as GGUF's number: 1 mean (also when nothing is said), 2 first token."""
    if "1_Pooling/config.json" not in files:
        return 1
    config = read_object(files, "1_Pooling/config.json")
    modes = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key[:13] == "pooling_mode_" and value
    ]
    known = {"mean_tokens": 1, "cls_token": 2}
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedRequest(f"pooling by {', '.join(modes)[:80] or 'nothing'} cannot be converted")
    return known[modes[0]]


def spelled(token: str) -> str:
    """The inverse of ``phantom``."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[1:] if token.startswith(_SPACE) else f"##{token}"


def _by_id(ids: Mapping[str, Any]) -> list[str]:
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise BadModelFile("the token ids of tokenizer.json have gaps")
    return tokens
