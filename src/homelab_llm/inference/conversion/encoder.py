"""BERT computed in plain float32, to compare embeddings by (Devlin et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from homelab_llm.inference.conversion.bert import BertTensors


class Encoder:
    """A BERT model in memory."""

    def __init__(self, model: BertTensors) -> None:
        self._shape, self._pooling = model.shape, model.pooling
        self._weights = {source: model.read(source, shape) for source, _, shape in model.shape.tensors()}

    def embed(self, ids: Sequence[int]) -> Any:
        """The vector of one text, of length one: (width,)."""
        import numpy

        w = self._weights
        state = w["embeddings.word_embeddings.weight"][list(ids)]
        state = state + w["embeddings.position_embeddings.weight"][: len(ids)]
        state = self._norm(state + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(self._shape.layers):
            state = self._layer(state, f"encoder.layer.{number}.")
        vector = state.mean(axis=0) if self._pooling == 1 else state[0]
        return vector / numpy.linalg.norm(vector)

    def _layer(self, state: Any, at: str) -> Any:
        attended = self._linear(self._attention(state, f"{at}attention.self."), f"{at}attention.output.dense")
        state = self._norm(state + attended, f"{at}attention.output.LayerNorm")
        inner = _gelu(self._linear(state, f"{at}intermediate.dense"))
        return self._norm(state + self._linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")

    def _attention(self, state: Any, at: str) -> Any:
        import numpy

        def heads(name: str) -> Any:  # (heads, tokens, head width)
            return self._linear(state, at + name).reshape(len(state), self._shape.heads, -1).swapaxes(0, 1)

        queries, keys, values = heads("query"), heads("key"), heads("value")
        scores = queries @ keys.swapaxes(1, 2) / math.sqrt(queries.shape[-1])
        scores = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ values).swapaxes(0, 1).reshape(len(state), -1)

    def _linear(self, state: Any, name: str) -> Any:
        return state @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, state: Any, name: str) -> Any:
        import numpy

        centred = state - state.mean(axis=-1, keepdims=True)
        spread = numpy.sqrt((centred * centred).mean(axis=-1, keepdims=True) + self._shape.epsilon)
        return centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _gelu(value: Any) -> Any:
    """GELU by the error function, which numpy lacks: Abramowitz and Stegun 7.1.26, within 1.5e-7."""
    import numpy

    size = numpy.abs(value) / numpy.float32(math.sqrt(2))
    t = 1 / (1 + numpy.float32(0.3275911) * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    error_function = numpy.copysign(1 - series * numpy.exp(-size * size), value)
    return value * (1 + error_function) / 2
