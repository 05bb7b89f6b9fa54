"""The scheduler in generated histories: at full size a hundred thousand, none of which breaks a promise."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context

import pytest

from homelab_llm.testing.contests import play

Note = Callable[..., None]
FIRST_SEED = 1_000_000  # the ordinary tests play those before
PART = 100


@pytest.mark.timeout(1800)
@pytest.mark.requirement("R-F5", "R-F6", "B-2", "B-5", "B-6", "B-10")
def test_no_generated_history_breaks_a_promise_of_the_scheduler(full: bool, figure: Note) -> None:
    histories = 100_000 if full else 300
    parts = range(FIRST_SEED, FIRST_SEED + histories, PART)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        played = list(pool.map(partial(play, count=PART), parts))
    violations = list(chain.from_iterable(found for found, _, _ in played))
    assert violations == []
    requests = sum(count for _, count, _ in played)
    figure("scheduler.histories", float(histories), "histories", ">= 100000", f"{requests} requests")
    figure("scheduler.violations", float(len(violations)), "violations", "= 0")
