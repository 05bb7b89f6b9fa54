"""Names of tensors in both worlds, and what differs in their content.

Two things differ: llama.cpp keeps the rows of llama's queries and keys in another order (pairs side by side in place
of two halves), and Gemma's norms with one added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.inference.conversion.gguf_file import GgufFiles
from homelab_llm.inference.conversion.shapes import DecoderShape, shape_of_gguf

_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_WITH_OUTPUT_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, shape: DecoderShape) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` → ``blk.3.attn_q.weight``."""
    stem, _, leaf = name.rpartition(".")
    if stem in _MODEL:
        return f"{_MODEL[stem]}.{leaf}"
    _, _, number, part = stem.split(".", 3)
    layer = _LAYER | (_LAYER_WITH_OUTPUT_NORMS if shape.has_output_norms else {})
    return f"blk.{number}.{layer[part]}.{leaf}"


def heads_permuted(name: str, shape: DecoderShape) -> int:
    """How many heads' rows are in another order in GGUF; 0 = none."""
    if shape.family != "llama":
        return 0
    return {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2], 0)


def permuted(array: Any, heads: int) -> Any:
    """Rows of queries or keys as llama.cpp keeps them: pairs side by side."""
    return _swapped(array, heads, (2, array.shape[0] // heads // 2))


def unpermuted(array: Any, heads: int) -> Any:
    """The inverse of ``permuted``: two halves."""
    return _swapped(array, heads, (array.shape[0] // heads // 2, 2))


def _swapped(array: Any, heads: int, parts: tuple[int, int]) -> Any:
    return array.reshape(heads, *parts, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def norm_offset(name: str, shape: DecoderShape) -> float:
    """What GGUF adds to the tensor."""
    return 1.0 if shape.is_gemma and name.endswith("norm.weight") else 0.0


class GgufTensors:
    """The tensors of a GGUF file under Hugging Face's names and with their content."""

    def __init__(self, files: GgufFiles) -> None:
        self._files = files
        metadata: Mapping[str, Any] = {key: pair.value for key, pair in files.pairs.items()}
        divisors: tuple[float, ...] = ()
        if "rope_freqs.weight" in files.tensors:
            divisors = tuple(map(float, files.rows("rope_freqs.weight", 0, files.shape("rope_freqs.weight")[0])))
        self.model = shape_of_gguf(metadata, divisors, tied="output.weight" not in files.tensors)
        self._names = {name: gguf_name(name, self.model) for name in self.model.tensors()}
        known = {*self._names.values(), "rope_freqs.weight"}
        if unknown := sorted(files.names() - known):
            raise UnsupportedRequest(f"the tensor {unknown[0][:80]!r} is not known in a {self.model.family} model")

    def names(self) -> frozenset[str]:
        return frozenset(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._names.get(name, name))

    def rows(self, name: str, begin: int, end: int) -> Any:
        there = self._names.get(name, name)
        if heads := heads_permuted(name, self.model):
            every = self._files.rows(there, 0, self._files.shape(there)[0])
            return unpermuted(every, heads)[begin:end]
        return self._files.rows(there, begin, end) - norm_offset(name, self.model)
