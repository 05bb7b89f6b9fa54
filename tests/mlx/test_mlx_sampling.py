"""Sampling on arrays: seeds, filters, penalties and bias do what their names say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import pytest

from homelab_llm.inference.workers.mlx.sampling import Sampling, make_processors, make_sampler

PROBABILITIES = [0.5, 0.25, 0.125, 0.0625, 0.0625]


def logprobs(rows: int = 1) -> Any:
    return mx.log(mx.array([PROBABILITIES] * rows))


def plain(**changes: Any) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **changes})


def drawn(sampling: Sampling, times: int = 400) -> Counter[int]:
    sampler = make_sampler(sampling)
    assert sampler is not None
    return Counter(sampler(logprobs(times)).tolist())


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (plain(), {0, 1, 2, 3, 4}),
        (plain(top_k=2), {0, 1}),
        (plain(top_k=99), {0, 1, 2, 3, 4}),
        (plain(top_p=0.6), {0, 1}),
        (plain(top_p=0.4), {0}),
        (plain(top_p=0.0), {0}),
        (plain(min_p=0.2), {0, 1, 2}),
        (plain(min_p=1.0), {0}),
        (plain(top_k=3, top_p=0.8), {0, 1}),
        (plain(temperature=1e-30, top_p=0.99), {0}),
        (plain(temperature=1e-30), {0}),
    ],
)
def test_only_tokens_that_pass_the_filters_are_drawn(sampling: Sampling, possible: set[int]) -> None:
    assert set(drawn(sampling)) == possible


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    counts = drawn(plain(seed=1), 4000)
    assert all(abs(counts[token] / 4000 - p) < 0.03 for token, p in enumerate(PROBABILITIES))
    counts = drawn(plain(seed=1, top_k=2), 4000)
    assert abs(counts[0] / 4000 - 2 / 3) < 0.03


@pytest.mark.requirement("R-I3")
@pytest.mark.parametrize("sampling", [plain(seed=5), plain(seed=5, top_k=3), Sampling(seed=5)])
def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(sampling: Sampling) -> None:
    def sequence(seed: int) -> list[int]:
        sampler = make_sampler(
            Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, seed=seed)
        )
        assert sampler is not None
        return [sampler(logprobs()).item() for _ in range(40)]

    assert sequence(5) == sequence(5)
    assert sequence(5) != sequence(6)


def test_equal_settings_without_a_seed_share_one_function_and_greedy_needs_none() -> None:
    assert make_sampler(plain()) is make_sampler(plain())
    assert make_sampler(plain()) is not make_sampler(plain(temperature=0.9))
    assert make_sampler(plain(seed=1)) is not make_sampler(plain(seed=1))
    assert make_sampler(Sampling(temperature=0)) is None
    assert make_sampler(Sampling(top_k=1)) is None


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(repeat_penalty=2.0), [0.5, -4.0, 3.0, -1.0]),
        (Sampling(presence_penalty=1.0), [0.0, -3.0, 3.0, -1.0]),
        (Sampling(frequency_penalty=1.0), [0.0, -4.0, 3.0, -1.0]),
        (Sampling(presence_penalty=1.0, repeat_last_n=1), [1.0, -3.0, 3.0, -1.0]),
        (Sampling(presence_penalty=1.0, repeat_last_n=-1), [0.0, -3.0, 3.0, -1.0]),
        (Sampling(logit_bias=((2, -100.0), (3, 1.5))), [1.0, -2.0, -97.0, 0.5]),
    ],
)
def test_penalties_and_bias_change_the_logits_they_should(sampling: Sampling, expected: list[float]) -> None:
    logits: Any = mx.array([[1.0, -2.0, 3.0, -1.0]])
    for processor in make_processors(sampling):
        logits = processor(mx.array([0, 1, 1]), logits)
    assert logits.tolist()[0] == pytest.approx(expected)


def test_nothing_asked_for_means_no_function() -> None:
    assert make_processors(Sampling()) == []
    assert make_processors(Sampling(presence_penalty=1.0, repeat_last_n=0)) == []
