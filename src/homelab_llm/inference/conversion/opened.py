"""A decoder opened from its files, whichever format they have: its numbers, its tensors, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile, EngineUnavailable, UnsupportedRequest
from homelab_llm.inference.conversion.documents import read_object
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.gguf_tokenizer import tokenizer_of_metadata
from homelab_llm.inference.conversion.names import GgufTensors
from homelab_llm.inference.conversion.packed import MlxTensors
from homelab_llm.inference.conversion.safetensors import SafetensorsFiles
from homelab_llm.inference.conversion.shapes import DecoderShape, shape_of_config
from homelab_llm.inference.conversion.tensors import Tensors

_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_PREFIXES = ("", "language_model.", "model.language_model.")


@dataclass(frozen=True, slots=True)
class OpenDecoder:
    """What is needed to compute with a decoder. ``files`` are those it was opened from."""

    shape: DecoderShape
    tensors: Tensors
    files: Mapping[str, Path]


class FolderTensors:
    """A folder's tensors under the usual names; the language part of a multimodal model has a prefix there."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def names(self) -> frozenset[str]:
        return frozenset(filter(None, map(self._usual, self._tensors.names())))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(self._there(name))

    def rows(self, name: str, begin: int, end: int) -> Any:
        return self._tensors.rows(self._there(name), begin, end)

    def _there(self, name: str) -> str:
        if self._prefix == "model.language_model.":
            return self._prefix + name.removeprefix("model.") if name.startswith("model.") else name
        return self._prefix + name

    def _usual(self, name: str) -> str:
        if not name.startswith(self._prefix) or name.startswith(_VISION):
            return name if name == "lm_head.weight" else ""
        left = name[len(self._prefix) :]
        return f"model.{left}" if self._prefix == "model.language_model." else left


def is_gguf(files: Mapping[str, Path]) -> bool:
    """Whether the model is made of GGUF files."""
    return any(name.endswith(".gguf") for name in files)


def open_decoder(files: Mapping[str, Path]) -> OpenDecoder:
    """Open a model and hold its tensors against its numbers.

    Raises:
        UnsupportedRequest: a family or variant that is not known here.
        BadModelFile: files that contradict each other.
    """
    if is_gguf(files):
        gguf = GgufTensors(GgufFiles.of(files))
        return _checked(OpenDecoder(gguf.model, gguf, files))
    config = read_object(files, "config.json")
    stored = SafetensorsFiles(files)
    quantization = config.get("quantization")
    packed: Tensors = MlxTensors(stored, quantization) if isinstance(quantization, dict) else stored
    prefix = next((p for p in _PREFIXES[::-1] if any(name.startswith(p) for name in stored.names())), "")
    tensors = FolderTensors(packed, prefix)
    tied = bool(_text(config).get("tie_word_embeddings", config["model_type"].startswith("gemma")))
    tied = tied or "lm_head.weight" not in tensors.names()
    return _checked(OpenDecoder(shape_of_config(config, tied=tied), tensors, files))


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    if not isinstance(config.get("model_type"), str):
        raise BadModelFile("config.json names no model_type", key="model_type")
    return nested if isinstance(nested, dict) else config


def _checked(opened: OpenDecoder) -> OpenDecoder:
    expected = opened.shape.tensors()
    for name, shape in expected.items():
        if opened.tensors.shape(name) != shape:
            raise BadModelFile(f"{name} has the shape {opened.tensors.shape(name)}, not {shape}", tensor=name)
    ignored = {"lm_head.weight"}
    for name in sorted(opened.tensors.names() - set(expected) - ignored):
        if not name.endswith("rotary_emb.inv_freq"):
            raise UnsupportedRequest(f"the tensor {name[:80]!r} is not known in a {opened.shape.family} model")
    return opened


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer at work: text → ids. ``bos_id`` is what a text begins with, where it does."""

    _library: Any
    bos_id: int | None

    def encode(self, text: str) -> list[int]:
        """Ids without any that are only added."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def encode_with_special(self, text: str) -> list[int]:
        """Ids as the model wants a whole text, as for embeddings."""
        return list(self._library.encode(text).ids)


def open_tokens(files: Mapping[str, Path]) -> Tokens:
    """The tokenizer of a model.

    Raises:
        EngineUnavailable: the ``tokenizers`` library is not installed.
        BadModelFile, UnsupportedRequest: there is none, or one that is not read here.
    """
    import json

    try:
        import tokenizers
    except ImportError as error:
        raise EngineUnavailable(
            "measuring needs the tokenizers library", hint="pip install 'homelab-llm[gguf]'"
        ) from error
    if is_gguf(files):
        gguf = GgufFiles.of(files)
        content = tokenizer_of_metadata({key: pair.value for key, pair in gguf.pairs.items()}).as_tokenizer_json()
    else:
        content = read_object(files, "tokenizer.json")
        content |= {"truncation": None, "padding": None}
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing more precise
        raise BadModelFile(f"the tokenizer's rules contradict each other: {str(error)[:200]}") from error
    opening = library.encode("").ids
    return Tokens(library, opening[0] if opening else None)
