"""The program that turns a BERT embedding model in Hugging Face's format into one GGUF file, Q8_0, for llama.cpp.

    python -m homelab_llm.inference.workers.convert_bert --file config.json=PATH --file … --target FILE

Only lower-casing WordPiece BERT with GELU and absolute positions: what llama.cpp's ``bert`` computes. Prints
``@progress`` lines; ends with 0 when ``FILE`` is complete (also when it was before), with 2 and one sentence when the
model cannot be converted. The file appears in one step. Lengths and shapes are compared with the configuration before
anything is written, and one tensor is in memory at a time.

GGUF names and keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp keeps WordPiece tokens with a
phantom space: a word's start has U+2581 in front, a continuation loses its ``##``. Its tokenizer differs from BERT's
in two corners (measured): it does not take Hangul syllables apart, and it drops spacing marks of Indic scripts too.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.atomic import publish
from homelab_llm.core.errors import BadModelFile, HomelabError, UnsupportedRequest
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.locks import locked
from homelab_llm.core.units import format_bytes

VERSION = 1  # of the output; the engine puts it into the target's name
_MAX_JSON_BYTES = 64 << 20
_DTYPES = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2)}
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
_FULL_PRECISION = frozenset({"position_embd.weight", "token_types.weight"})


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


class Weights:
    """The tensors of one safetensors file, read one at a time as float32."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_JSON_BYTES, size - 8):
                raise BadModelFile("model.safetensors lies about the length of its header")
            header = _object(stream.read(length), "the header of model.safetensors")
        self._path = path
        self._data_at = 8 + length
        self._data_bytes = size - self._data_at
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in header else ""
        self._entries = {name.removeprefix(prefix): entry for name, entry in header.items()}

    def read(self, name: str, shape: tuple[int, ...]) -> Any:
        """The tensor as a float32 array of exactly this shape."""
        import numpy

        entry = self._entries.get(name)
        if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES or entry.get("shape") != list(shape):
            raise BadModelFile(f"model.safetensors has no {name} of shape {list(shape)} in F32, F16 or BF16")
        kind, width = _DTYPES[entry["dtype"]]
        count = math.prod(shape)
        start, end = self._place(name, entry)
        if end - start != count * width:
            raise BadModelFile(f"model.safetensors lies about where {name} is")
        raw = numpy.fromfile(self._path, dtype=kind, count=count, offset=self._data_at + start).reshape(shape)
        if entry["dtype"] == "BF16":
            return (raw.astype("<u4") << 16).view("<f4")
        return raw.astype("<f4", copy=False)

    def _place(self, name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
        match entry.get("data_offsets"):
            case [int(start), int(end)] if 0 <= start <= end <= self._data_bytes:
                return start, end
        raise BadModelFile(f"model.safetensors lies about where {name} is")


def vocabulary(files: Mapping[str, Path], size: int) -> list[str]:
    """The WordPiece tokens by id, filled up to ``size``.

    Raises:
        UnsupportedRequest: another kind of tokenizer, or one that keeps upper case: llama.cpp lowers everything.
    """
    settings = _read(files, "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    lower = settings.get("do_lower_case", True)
    if "tokenizer.json" in files:
        tokenizer = _read(files, "tokenizer.json")
        model, normalizer = tokenizer.get("model") or {}, tokenizer.get("normalizer") or {}
        if model.get("type", "WordPiece") != "WordPiece" or not isinstance(model.get("vocab"), dict):
            raise UnsupportedRequest("only WordPiece tokenizers can be converted")
        lower = normalizer.get("lowercase", lower)
        tokens = _by_id(model["vocab"])
    elif "vocab.txt" in files:
        tokens = _bounded(files["vocab.txt"], "vocab.txt").decode("utf-8").splitlines()
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
    config = _read(files, "1_Pooling/config.json")
    modes = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key[:13] == "pooling_mode_" and value
    ]
    known = {"mean_tokens": 1, "cls_token": 2}
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedRequest(f"pooling by {', '.join(modes)[:80] or 'nothing'} cannot be converted")
    return known[modes[0]]


def convert(files: Mapping[str, Path], target: Path, name: str) -> None:
    """Write ``target``; does nothing when it is there. Blocks, seconds for a small model.

    Raises:
        BadModelFile: the files contradict each other.
        UnsupportedRequest: a BERT that llama.cpp would compute wrongly.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f".{target.name}.lock", wait_s=600):
        if target.exists():
            return
        for stale in target.parent.glob(f".{target.name}.*.tmp"):
            stale.unlink(missing_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            _write(files, temporary, name)
            failpoint("convert_bert.before_publish")
            publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _write(files: Mapping[str, Path], path: Path, name: str) -> None:
    import gguf

    if "model.safetensors" not in files or "config.json" not in files:
        raise BadModelFile("the model has no model.safetensors and config.json")
    shape = BertShape.of(_read(files, "config.json"))
    weights = Weights(files["model.safetensors"])
    writer = gguf.GGUFWriter(path, "bert")
    _describe(writer, files, shape, name)
    wanted = list(shape.tensors())
    for _, target, dimensions in wanted:
        kind = _kind(target, dimensions)
        size = gguf.quants.quant_shape_to_byte_shape(dimensions, kind)
        writer.add_tensor_info(
            target, size if kind == gguf.GGMLQuantizationType.Q8_0 else dimensions, *_stored(kind, size)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (source, target, dimensions) in enumerate(wanted):
        writer.write_tensor_data(gguf.quantize(weights.read(source, dimensions), _kind(target, dimensions)))
        progress((number + 1) / len(wanted))
    writer.flush()
    writer.close()
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _kind(target: str, shape: Sequence[int]) -> Any:
    from gguf import GGMLQuantizationType as Kind

    small = len(shape) == 1 or target in _FULL_PRECISION or shape[-1] % 32
    return Kind.F32 if small else Kind.Q8_0


def _stored(kind: Any, size: Sequence[int]) -> tuple[Any, int, Any]:
    """What ``add_tensor_info`` wants after the shape: numpy type, bytes, GGML type."""
    import numpy
    from gguf import GGMLQuantizationType as Kind

    return numpy.dtype("u1" if kind == Kind.Q8_0 else "<f4"), math.prod(size), kind


def _describe(writer: Any, files: Mapping[str, Path], shape: BertShape, name: str) -> None:
    """All metadata."""
    from gguf import LlamaFileType, PoolingType, TokenType

    writer.add_name(name)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType(pooling(files)))
    tokens = vocabulary(files, shape.vocabulary)
    ids = {token: number for number, token in enumerate(tokens)}
    special = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    if missing := [token for token in special if token not in ids]:
        raise BadModelFile(f"the tokenizer has no {missing[0]}")
    writer.add_tokenizer_model("bert")
    writer.add_token_list([phantom(token) for token in tokens])
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_type_count(shape.token_types)
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_uint32("tokenizer.ggml.cls_token_id", ids["[CLS]"])


def _by_id(ids: Mapping[str, Any]) -> list[str]:
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise BadModelFile("the token ids of tokenizer.json have gaps")
    return tokens


def _bounded(path: Path, name: str) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise BadModelFile(f"{name} is larger than {_MAX_JSON_BYTES} bytes")
    return content


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{name} is not JSON") from error
    if not isinstance(found, dict):
        raise BadModelFile(f"{name} is not a JSON object")
    return found


def _read(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    return _object(_bounded(files[name], name), name)


def progress(done: float) -> None:
    """Tell the worker host how far this is; ``done`` is 0 to 1."""
    print("@progress " + json.dumps({"stage": "convert", "done": round(done, 3)}), flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says."""
    parser = argparse.ArgumentParser(prog="convert_bert", description="Turn a BERT folder into a GGUF file.")
    parser.add_argument("--file", action="append", required=True, metavar="NAME=PATH", help="a file of the model")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--name", default="bert", help="general.name of the result")
    given = parser.parse_args(argv)
    files = {name: Path(path) for name, _, path in (pair.partition("=") for pair in given.file)}
    try:
        convert(files, given.target, given.name)
    except (HomelabError, OSError) as error:
        print(f"error: {_told(error, files)}", file=sys.stderr, flush=True)  # noqa: T201
        return 2
    return 0


def _told(error: HomelabError | OSError, files: Mapping[str, Path]) -> str:
    if isinstance(error, HomelabError):
        return error.message
    if error.errno == errno.ENOSPC:
        size = sum(path.stat().st_size for path in files.values() if path.is_file())
        return f"the disk is full: the converted model takes at most {format_bytes(size)}"
    return f"the files cannot be read or written: {error.strerror}"


if __name__ == "__main__":
    sys.exit(main())
