"""What a decoder computes: the numbers of the Llama, Mistral, Qwen and Gemma families, from either format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homelab_llm.core.errors import BadModelFile, UnsupportedRequest
from homelab_llm.inference.conversion.documents import real, whole

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
}
"""Hugging Face's model_type → GGUF's architecture, which names the family here."""

OTHER_WAY = "mlxctl pull a GGUF or MLX version of the model"
_GEMMA3_PATTERN, _LOCAL_THETA = 6, 10000.0


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Frequencies of Llama 3.1 and later, made slower for long contexts."""

    factor: float
    low: float
    high: float
    original_tokens: int

    def divisors(self, theta: float, width: int) -> list[float]:
        """By what each frequency is divided; what GGUF keeps as ``rope_freqs.weight``."""
        out = []
        for index in range(0, width, 2):
            wavelength = 2 * math.pi * theta ** (index / width)
            if wavelength < self.original_tokens / self.high:
                out.append(1.0)
            elif wavelength > self.original_tokens / self.low:
                out.append(self.factor)
            else:
                smooth = (self.original_tokens / wavelength - self.low) / (self.high - self.low)
                out.append(1 / ((1 - smooth) / self.factor + smooth))
        return out


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The numbers. ``window`` is that of local attention, 0 = none; ``pattern`` n: each n-th layer sees everything."""

    family: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    context_tokens: int
    norm_epsilon: float
    rope_theta: float
    tied: bool
    rope_divisors: tuple[float, ...] = ()
    rope_linear: float = 1.0
    window: int = 0
    pattern: int = 0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    attention_scale: float = 0.0

    @property
    def is_gemma(self) -> bool:
        """Norms are kept as distance from one, embeddings are scaled, the gate is GELU."""
        return self.family.startswith("gemma")

    @property
    def has_output_norms(self) -> bool:
        """Attention and feed-forward are normed after, too."""
        return self.family in ("gemma2", "gemma3")

    @property
    def has_head_norms(self) -> bool:
        """Queries and keys are normed."""
        return self.family in ("qwen3", "gemma3")

    def is_local(self, layer: int) -> bool:
        """Whether a layer sees only the last ``window`` tokens."""
        return bool(self.window) and (layer + 1) % self.pattern != 0

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by Hugging Face's name, with its shape."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.width,),
            "self_attn.q_proj.weight": (queries, self.width),
            "self_attn.k_proj.weight": (keys, self.width),
            "self_attn.v_proj.weight": (keys, self.width),
            "self_attn.o_proj.weight": (self.width, queries),
            "post_attention_layernorm.weight": (self.width,),
            "mlp.gate_proj.weight": (self.inner, self.width),
            "mlp.up_proj.weight": (self.inner, self.width),
            "mlp.down_proj.weight": (self.width, self.inner),
        }
        if self.family == "qwen2":
            layer |= {f"self_attn.{n}_proj.bias": (queries if n == "q" else keys,) for n in "qkv"}
        if self.has_head_norms:
            layer |= {f"self_attn.{n}_norm.weight": (self.head_width,) for n in "qk"}
        if self.has_output_norms:
            layer |= {f"{when}_feedforward_layernorm.weight": (self.width,) for when in ("pre", "post")}
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        for number in range(self.layers):
            found |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        found["model.norm.weight"] = (self.width,)
        return found if self.tied else found | {"lm_head.weight": (self.vocabulary, self.width)}


def shape_of_config(config: Mapping[str, Any], *, tied: bool) -> DecoderShape:
    """The numbers of a ``config.json``; ``tied``: there is no output matrix of its own.

    Raises:
        UnsupportedRequest: another family, or a variant that would be computed wrongly.
        BadModelFile: a number is missing or absurd.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UnsupportedRequest(
            f"models of the type {str(kind)[:40]!r} are not converted; known are {', '.join(FAMILIES)} and bert",
            hint=OTHER_WAY,
        )
    family = FAMILIES[kind]
    nested = config.get("text_config") if kind == "gemma3" else None
    text: Mapping[str, Any] = nested if isinstance(nested, dict) else config
    _refuse_variants(text, family)
    if nested is not None:
        text = {**_GEMMA3_USUAL, **text}
    heads, width = whole(text, "num_attention_heads", most=1 << 16), whole(text, "hidden_size", most=1 << 20)
    head_width = whole(text, "head_dim", max(1, width // heads), most=1 << 16)
    theta, scaling = _rope(text, family)
    return _checked(
        DecoderShape(
            family=family,
            layers=whole(text, "num_hidden_layers", most=10_000),
            width=width,
            inner=whole(text, "intermediate_size", most=1 << 24),
            heads=heads,
            kv_heads=whole(text, "num_key_value_heads", heads, most=1 << 16),
            head_width=head_width,
            vocabulary=whole(text, "vocab_size", most=1 << 26),
            context_tokens=whole(text, "max_position_embeddings"),
            norm_epsilon=real(text, "rms_norm_eps", 1e-6),
            rope_theta=theta,
            tied=tied,
            rope_divisors=tuple(scaling.divisors(theta, head_width)) if isinstance(scaling, Llama3Scaling) else (),
            rope_linear=scaling if isinstance(scaling, float) else 1.0,
            attention_scale=_scale(text, family, head_width),
            **_gemma(text, family),
        )
    )


_GEMMA3_USUAL = {  # a multimodal Gemma 3 says only what differs from these
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}


def _refuse_variants(text: Mapping[str, Any], family: str) -> None:
    wrong = {
        "attention_bias": bool(text.get("attention_bias")),
        "mlp_bias": bool(text.get("mlp_bias")),
        "use_sliding_window": bool(text.get("use_sliding_window")),
        "num_local_experts": bool(text.get("num_local_experts") or text.get("num_experts")),
        "quantization_config": bool(text.get("quantization_config")) and not text.get("quantization"),
    }
    if family == "gemma3":
        wrong["sliding_window_pattern"] = (
            text.get("sliding_window_pattern", text.get("_sliding_window_pattern", _GEMMA3_PATTERN)) != _GEMMA3_PATTERN
        )
        wrong["rope_local_base_freq"] = text.get("rope_local_base_freq", _LOCAL_THETA) != _LOCAL_THETA
    if found := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise UnsupportedRequest(f"a {family} model with {found[0]} is not converted", hint=OTHER_WAY)
    gelu = family.startswith("gemma")
    act = text.get("hidden_activation") or text.get("hidden_act") or ("gelu_pytorch_tanh" if gelu else "silu")
    if act not in (("gelu_pytorch_tanh", "gelu") if gelu else ("silu",)):
        raise UnsupportedRequest(f"a {family} model with the activation {str(act)[:40]!r} is not converted")


def _rope(text: Mapping[str, Any], family: str) -> tuple[float, Llama3Scaling | float | None]:
    """Base and scaling; transformers 5 has both under ``rope_parameters``."""
    given = text.get("rope_parameters")
    nested: Mapping[str, Any] = given if isinstance(given, dict) else {}
    if isinstance(per_kind := nested.get("full_attention"), dict):
        nested = per_kind
    theta = real({**nested, **{k: v for k, v in text.items() if k == "rope_theta" and v}}, "rope_theta", 10000.0)
    scaling = text.get("rope_scaling") or nested
    kind = (scaling.get("rope_type") or scaling.get("type") or "default") if isinstance(scaling, dict) else "default"
    if kind == "default":
        return theta, None
    if kind == "linear" and family == "gemma3":
        return theta, real(scaling, "factor")
    if kind == "llama3" and family == "llama":
        original = whole(scaling, "original_max_position_embeddings")
        low, high = real(scaling, "low_freq_factor"), real(scaling, "high_freq_factor")
        if low >= high:
            raise BadModelFile("the factors of rope_scaling contradict each other", key="rope_scaling")
        return theta, Llama3Scaling(real(scaling, "factor"), low, high, original)
    raise UnsupportedRequest(f"positions scaled by {str(kind)[:40]!r} are not converted", hint=OTHER_WAY)


def _scale(text: Mapping[str, Any], family: str, head_width: int) -> float:
    if family in ("gemma2", "gemma3"):
        return float(real(text, "query_pre_attn_scalar", 256.0) ** -0.5)
    return float(head_width**-0.5)


def _gemma(text: Mapping[str, Any], family: str) -> dict[str, Any]:
    if family == "gemma2":
        return {
            "window": whole(text, "sliding_window", 4096),
            "pattern": 2,
            "attention_softcap": real(text, "attn_logit_softcapping", 50.0),
            "final_softcap": real(text, "final_logit_softcapping", 30.0),
        }
    if family == "gemma3":
        return {"window": whole(text, "sliding_window", 512), "pattern": _GEMMA3_PATTERN}
    return {}


def llama_cpp_scale(shape: DecoderShape) -> float:
    """The factor llama.cpp applies, which GGUF does not carry: the 27B models divide by another width."""
    if (shape.family, shape.layers) in (("gemma2", 46), ("gemma3", 62)):
        return float((shape.width / shape.heads) ** -0.5)
    return float(shape.head_width**-0.5)


def _checked(shape: DecoderShape) -> DecoderShape:
    if shape.heads % shape.kv_heads or shape.head_width % 2:
        raise BadModelFile("the numbers of heads contradict each other")
    return shape


def shape_of_gguf(metadata: Mapping[str, Any], divisors: tuple[float, ...], *, tied: bool) -> DecoderShape:
    """The numbers of a GGUF file's metadata.

    Raises:
        UnsupportedRequest: another architecture, experts, or scaled positions of another kind.
        BadModelFile: a number is missing or absurd.
    """
    family = metadata.get("general.architecture")
    if family not in FAMILIES.values():
        known = ", ".join(sorted(set(FAMILIES.values())))
        raise UnsupportedRequest(f"the GGUF architecture {str(family)[:40]!r} is not one of {known}", hint=OTHER_WAY)
    own = {key.removeprefix(f"{family}."): value for key, value in metadata.items() if key.startswith(f"{family}.")}
    if own.get("expert_count"):
        raise UnsupportedRequest("mixtures of experts are not computed here")
    scaling = own.get("rope.scaling.type", "none")
    if scaling not in ("none", "", "linear") or (scaling == "linear" and family != "gemma3"):
        raise UnsupportedRequest(f"positions scaled by {str(scaling)[:40]!r} are not computed here")
    heads, width = whole(own, "attention.head_count", most=1 << 16), whole(own, "embedding_length", most=1 << 20)
    head_width = whole(own, "attention.key_length", max(1, width // heads), most=1 << 16)
    tokens = metadata.get("tokenizer.ggml.tokens")
    shape = DecoderShape(
        family=str(family),
        layers=whole(own, "block_count", most=10_000),
        width=width,
        inner=whole(own, "feed_forward_length", most=1 << 24),
        heads=heads,
        kv_heads=whole(own, "attention.head_count_kv", heads, most=1 << 16),
        head_width=head_width,
        vocabulary=len(tokens) if isinstance(tokens, list) and tokens else whole(own, "vocab_size"),
        context_tokens=whole(own, "context_length"),
        norm_epsilon=_plain(real(own, "attention.layer_norm_rms_epsilon", 1e-6)),
        rope_theta=_plain(real(own, "rope.freq_base", 10000.0)),
        tied=tied,
        rope_divisors=divisors,
        rope_linear=real(own, "rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
        **_gemma_of_gguf(own, str(family)),
    )
    if whole(own, "rope.dimension_count", head_width) != head_width or shape.head_width % 2:
        raise UnsupportedRequest("heads that are rotated in part are not computed here")
    return _checked(_with_scale(shape))


def _plain(value: float) -> float:
    """A 32-bit number as the decimal it was written as: 1e-5, not 9.99999974e-06."""
    return float(f"{value:.6g}")


def _with_scale(shape: DecoderShape) -> DecoderShape:
    from dataclasses import replace

    return replace(shape, attention_scale=llama_cpp_scale(shape))


def _gemma_of_gguf(own: Mapping[str, Any], family: str) -> dict[str, Any]:
    names = {
        "sliding_window": own.get("attention.sliding_window"),
        "attn_logit_softcapping": own.get("attn_logit_softcapping"),
        "final_logit_softcapping": own.get("final_logit_softcapping"),
    }
    return _gemma(names, family)
