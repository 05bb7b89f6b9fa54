"""Sampling: from what a request asks for to functions over arrays. Greedy requests get none.

The order is llama.cpp's: penalties and bias, then top-k, top-p, min-p, and temperature last, so that both engines
answer alike; so are the defaults. MLX only; mlx-lm calls these functions and is not known here.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Sampler = Callable[[Any], Any]
Processor = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repeat_penalty`` 1 mean off.

    ``repeat_last_n``: tokens the three penalties look back on, prompt included; 0 = off, -1 = all.
    ``logit_bias``: pairs of token id and what is added to its logit. ``seed`` None = random.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        """Always the likeliest token."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens matter."""
        off = self.repeat_penalty == 1 and not self.presence_penalty and not self.frequency_penalty
        return not off and self.repeat_last_n != 0


def make_sampler(sampling: Sampling) -> Sampler | None:
    """A function from log probabilities (B, V) to token ids (B,); None = greedy, which needs no function.

    Requests without a seed and with equal settings share one function, so that a batch is drawn in one call.
    """
    if sampling.greedy:
        return None
    settings = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    return _shared(*settings) if sampling.seed is None else _Draw(*settings, seed=sampling.seed)


def make_processors(sampling: Sampling) -> list[Processor]:
    """Functions from (context (T,), logits (1, V)) to logits; empty when nothing is asked for."""
    import mlx.core as mx

    processors: list[Processor] = []
    if sampling.penalises:
        processors.append(functools.partial(_penalise, sampling))
    if sampling.logit_bias:
        ids = mx.array([token for token, _ in sampling.logit_bias])
        values = mx.array([value for _, value in sampling.logit_bias])
        processors.append(lambda _, logits: logits.at[:, ids].add(values.astype(logits.dtype)))
    return processors


@functools.lru_cache(maxsize=64)
def _shared(temperature: float, top_k: int, top_p: float, min_p: float) -> _Draw:
    return _Draw(temperature, top_k, top_p, min_p, seed=int.from_bytes(os.urandom(8)))


class _Draw:
    """Draws with a random key of its own, so that a seeded request gives the same text in every batch."""

    def __init__(self, temperature: float, top_k: int, top_p: float, min_p: float, *, seed: int) -> None:
        import mlx.core as mx

        self._mx = mx
        self._temperature, self._top_k, self._top_p, self._min_p = temperature, top_k, max(top_p, 1e-9), min_p
        self._key = mx.random.key(seed)

    def __call__(self, logprobs: Any) -> Any:
        mx = self._mx
        self._key, key = mx.random.split(self._key)
        logprobs = logprobs.astype(mx.float32)
        if self._top_k <= 0 and self._top_p >= 1 and self._min_p <= 0:
            top = mx.max(logprobs, axis=-1, keepdims=True)
            return mx.random.categorical((logprobs - top) / self._temperature, key=key)
        order = self._likeliest_first(logprobs)
        ranked = mx.take_along_axis(logprobs, order, axis=-1)  # (B, K)
        ranked = ranked - ranked[:, :1]
        probabilities = mx.softmax(ranked, axis=-1)
        keep = mx.cumsum(probabilities, axis=-1) - probabilities < self._top_p
        if self._min_p > 0:
            keep = keep & (ranked >= math.log(self._min_p))
        drawn = mx.random.categorical(mx.where(keep, ranked / self._temperature, -math.inf), key=key)
        return mx.take_along_axis(order, drawn[:, None], axis=-1)[:, 0]

    def _likeliest_first(self, logprobs: Any) -> Any:
        mx, k = self._mx, self._top_k
        if not 0 < k < logprobs.shape[-1]:
            return mx.argsort(-logprobs, axis=-1)
        best = mx.argpartition(-logprobs, kth=k - 1, axis=-1)[:, :k]
        return mx.take_along_axis(best, mx.argsort(-mx.take_along_axis(logprobs, best, axis=-1), axis=-1), axis=-1)


def _penalise(sampling: Sampling, context: Any, logits: Any) -> Any:
    import mlx.core as mx

    if sampling.repeat_last_n > 0:
        context = context[-sampling.repeat_last_n :]
    counts = mx.zeros(logits.shape[-1:], dtype=logits.dtype).at[context].add(1)
    seen = counts > 0
    repeated = mx.where(logits > 0, logits / sampling.repeat_penalty, logits * sampling.repeat_penalty)
    logits = mx.where(seen, repeated, logits)
    return logits - counts * sampling.frequency_penalty - seen.astype(logits.dtype) * sampling.presence_penalty
