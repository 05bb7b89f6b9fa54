"""Llama, Mistral, Qwen and Gemma computed in plain float32, to judge weights by: right and small, not fast.

One implementation for every format, so that two figures differ by the weights alone. One layer is in memory at a
time, so a model may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from homelab_llm.inference.conversion.shapes import DecoderShape
from homelab_llm.inference.conversion.tensors import Tensors, whole_tensor

_VOCABULARY_BLOCK = 4096


class Decoder:
    """A model to compute with; ``tensors`` are read again for each call."""

    def __init__(self, shape: DecoderShape, tensors: Tensors) -> None:
        self._shape, self._tensors = shape, tensors

    def hidden(self, windows: Sequence[Sequence[int]], progress: Callable[[float], None] = lambda _: None) -> list[Any]:
        """The last hidden state of every window, normed: (tokens, width) each."""
        shape = self._shape
        states = [self._embedded(window) for window in windows]
        longest = max(map(len, windows))
        wide = _rotation(shape, longest, local=False)
        near = _rotation(shape, longest, local=True) if shape.family == "gemma3" else wide
        for number in range(shape.layers):
            layer = _Layer(shape, self._tensors, number, near if shape.is_local(number) else wide)
            for index, state in enumerate(states):
                states[index] = layer.applied(state)
                progress((number * len(states) + index + 1) / (shape.layers * len(states)))
        norm = _norm_weight(shape, self._tensors, "model.norm.weight")
        return [_normed(state, norm, shape.norm_epsilon) for state in states]

    def logits(self, ids: Sequence[int]) -> Any:
        """All logits of one sequence: (tokens, vocabulary)."""
        import numpy

        (state,) = self.hidden([ids])
        return numpy.concatenate([part for _, part in self._logit_blocks(state)], axis=1)

    def log_probabilities(self, states: Any, targets: Any) -> Any:
        """The logarithm of the probability of each target after its state; (n, width), (n,) → (n,)."""
        import numpy

        top = numpy.full(len(targets), -numpy.inf, dtype="<f8")
        total = numpy.zeros(len(targets), dtype="<f8")
        chosen = numpy.zeros(len(targets), dtype="<f8")
        for begin, part in self._logit_blocks(states):
            highest = numpy.maximum(top, part.max(axis=1))
            total = total * numpy.exp(top - highest) + numpy.exp(part - highest[:, None]).sum(axis=1, dtype="<f8")
            top = highest
            here = numpy.flatnonzero((targets >= begin) & (targets < begin + part.shape[1]))
            chosen[here] = part[here, targets[here] - begin]
        return chosen - top - numpy.log(total)

    def _logit_blocks(self, states: Any) -> Any:
        import numpy

        shape = self._shape
        name = "model.embed_tokens.weight" if shape.tied else "lm_head.weight"
        for begin in range(0, shape.vocabulary, _VOCABULARY_BLOCK):
            rows = self._tensors.rows(name, begin, min(shape.vocabulary, begin + _VOCABULARY_BLOCK))
            part = states @ rows.T
            if cap := shape.final_softcap:
                part = numpy.tanh(part / cap) * cap
            yield begin, part

    def _embedded(self, ids: Sequence[int]) -> Any:
        import numpy

        rows = {i: self._tensors.rows("model.embed_tokens.weight", i, i + 1)[0] for i in set(ids)}
        found = numpy.stack([rows[i] for i in ids])
        return found * numpy.float32(self._shape.width**0.5) if self._shape.is_gemma else found


class _Layer:
    """One layer's weights in float32."""

    def __init__(self, shape: DecoderShape, tensors: Tensors, number: int, rotation: tuple[Any, Any]) -> None:
        self._shape, self._rotation = shape, rotation
        self._window = shape.window if shape.is_local(number) else 0
        prefix = f"model.layers.{number}."
        wanted = [name for name in shape.tensors() if name.startswith(prefix)]
        self._weights = {name.removeprefix(prefix): whole_tensor(tensors, name) for name in wanted}
        if shape.is_gemma:
            for name in self._weights:
                if name.endswith("norm.weight"):
                    self._weights[name] = self._weights[name] + 1

    def applied(self, state: Any) -> Any:
        """(tokens, width) → (tokens, width)."""
        attended = self._attention(self._norm("input_layernorm", state))
        if not self._shape.has_output_norms:
            state = state + attended
            return state + self._mlp(self._norm("post_attention_layernorm", state))
        state = state + self._norm("post_attention_layernorm", attended)
        fed = self._mlp(self._norm("pre_feedforward_layernorm", state))
        return state + self._norm("post_feedforward_layernorm", fed)

    def _norm(self, name: str, state: Any) -> Any:
        return _normed(state, self._weights[f"{name}.weight"], self._shape.norm_epsilon)

    def _linear(self, name: str, state: Any) -> Any:
        out = state @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return out if bias is None else out + bias

    def _attention(self, state: Any) -> Any:
        import numpy

        shape, tokens = self._shape, len(state)
        queries = self._heads("q", state, shape.heads)
        keys = self._heads("k", state, shape.kv_heads)
        values = self._linear("self_attn.v_proj", state).reshape(tokens, shape.kv_heads, -1).swapaxes(0, 1)
        queries = queries.reshape(shape.kv_heads, -1, shape.head_width)  # each key serves several queries, in a row
        seen = numpy.tri(tokens, dtype=bool)
        if self._window:
            seen &= ~numpy.tri(tokens, k=-self._window, dtype=bool)
        unseen = numpy.where(seen, numpy.float32(0), numpy.float32(-numpy.inf))
        mixed = [self._mixed(*head, unseen) for head in zip(queries, keys, values, strict=True)]
        heads = numpy.stack(mixed).reshape(shape.heads, tokens, -1).swapaxes(0, 1)
        return self._linear("self_attn.o_proj", heads.reshape(tokens, -1))

    def _mixed(self, queries: Any, keys: Any, values: Any, unseen: Any) -> Any:
        """One key head with its queries, (queries × tokens, head_width) each."""
        import numpy

        tokens = len(keys)
        scores = (queries * numpy.float32(self._shape.attention_scale)) @ keys.T
        if cap := self._shape.attention_softcap:
            scores = numpy.tanh(scores / cap) * cap
        scores = scores.reshape(-1, tokens, tokens) + unseen
        numpy.exp(scores - scores.max(axis=-1, keepdims=True), out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return scores.reshape(-1, tokens) @ values

    def _heads(self, which: str, state: Any, heads: int) -> Any:
        found = self._linear(f"self_attn.{which}_proj", state).reshape(len(state), heads, -1)
        if self._shape.has_head_norms:
            found = self._norm(f"self_attn.{which}_norm", found)
        return _rotated(found.swapaxes(0, 1), self._rotation)

    def _mlp(self, state: Any) -> Any:
        gate = self._linear("mlp.gate_proj", state)
        gate = _gelu(gate) if self._shape.is_gemma else gate / (1 + _exp(-gate))
        return self._linear("mlp.down_proj", gate * self._linear("mlp.up_proj", state))


def _norm_weight(shape: DecoderShape, tensors: Tensors, name: str) -> Any:
    return whole_tensor(tensors, name) + (1 if shape.is_gemma else 0)


def _normed(state: Any, weight: Any, epsilon: float) -> Any:
    import numpy

    return state / numpy.sqrt((state * state).mean(axis=-1, keepdims=True) + numpy.float32(epsilon)) * weight


def _exp(value: Any) -> Any:
    import numpy

    with numpy.errstate(over="ignore"):
        return numpy.exp(value)


def _gelu(value: Any) -> Any:
    import numpy

    cubic = value + numpy.float32(0.044715) * value * value * value
    return numpy.float32(0.5) * value * (1 + numpy.tanh(numpy.float32((2 / numpy.pi) ** 0.5) * cubic))


def _rotation(shape: DecoderShape, tokens: int, *, local: bool) -> tuple[Any, Any]:
    """Cosines and sines: (tokens, head_width / 2) each."""
    import numpy

    theta = 10000.0 if local else shape.rope_theta
    frequencies = theta ** (-numpy.arange(0, shape.head_width, 2, dtype="<f8") / shape.head_width)
    if shape.rope_divisors:
        frequencies = frequencies / numpy.array(shape.rope_divisors)
    if not local:
        frequencies = frequencies / shape.rope_linear
    angles = numpy.outer(numpy.arange(tokens), frequencies)
    return numpy.cos(angles).astype("<f4"), numpy.sin(angles).astype("<f4")


def _rotated(heads: Any, rotation: tuple[Any, Any]) -> Any:
    import numpy

    cosine, sine = (table[: heads.shape[1]] for table in rotation)
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    return numpy.concatenate((first * cosine - second * sine, second * cosine + first * sine), axis=-1)
