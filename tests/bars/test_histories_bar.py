"""The scheduler in generated histories: at full size a hundred thousand, none of which breaks a promise."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context

import pytest

from homelab_llm.testing.contests import run_contest
from homelab_llm.testing.histories import run_history

Note = Callable[..., None]
FIRST_SEED = 1_000_000  # the ordinary tests play those before
PART = 100


def _play(first: int) -> tuple[list[str], int, float]:
    """Violations, requests and the longest wait of a part; one contest in fifty histories."""
    reports = [run_history(seed) for seed in range(first, first + PART)]
    reports += [run_contest(seed) for seed in range(first, first + PART // 50)]
    violations = list(chain.from_iterable(report.violations for report in reports))
    return violations, sum(r.requests for r in reports), max(r.longest_wait_s for r in reports)


@pytest.mark.timeout(1800)
@pytest.mark.requirement("R-F5", "R-F6", "B-2", "B-5", "B-6", "B-10")
def test_no_generated_history_breaks_a_promise_of_the_scheduler(full: bool, figure: Note) -> None:
    histories = 100_000 if full else 300
    parts = range(FIRST_SEED, FIRST_SEED + histories, PART)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        played = list(pool.map(_play, parts))
    violations = list(chain.from_iterable(found for found, _, _ in played))
    assert violations == []
    requests = sum(count for _, count, _ in played)
    figure("scheduler.histories", float(histories), "histories", ">= 100000", f"{requests} requests")
    figure("scheduler.violations", float(len(violations)), "violations", "= 0")
