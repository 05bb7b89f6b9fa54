"""Generated lives of a fleet: what must hold at every step of every one, and what the checks themselves can see."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.fleet.ledger import Ledger
from homelab_llm.inference.fleet.lives import Lives
from homelab_llm.inference.fleet.state import Limits, ModelQueue, Waiting, Worker
from homelab_llm.inference.fleet.vocabulary import Adopted, Submit
from homelab_llm.testing.contests import run_contest
from homelab_llm.testing.histories import run_history

HISTORIES = 1200


@pytest.mark.requirement("R-F5", "R-F6", "B-2", "B-10")
def test_thousands_of_histories_stay_within_budget_and_slots_and_end_every_request_once() -> None:
    reports = [run_history(seed) for seed in range(HISTORIES)]
    assert [violation for report in reports for violation in report.violations] == []
    assert sum(report.granted for report in reports) > 10 * HISTORIES
    assert sum(report.batch for report in reports) > HISTORIES
    assert sum(report.evictions for report in reports) > HISTORIES / 2
    assert sum(report.cancelled for report in reports) > HISTORIES / 4
    assert sum(report.quarantines for report in reports) > HISTORIES / 10
    assert sum(report.handovers for report in reports) > HISTORIES / 10


@given(seed=st.integers(HISTORIES, 2**63), arrivals=st.integers(1, 120))
@settings(max_examples=100, deadline=None)
def test_longer_and_shorter_histories_hold_too(seed: int, arrivals: int) -> None:
    assert run_history(seed, arrivals=arrivals).violations == []


@pytest.mark.requirement("B-2")
def test_models_that_never_fit_together_and_are_never_idle_share_the_machine_within_the_bound() -> None:
    reports = [run_contest(seed) for seed in range(60)]
    assert [violation for report in reports for violation in report.violations] == []
    assert sum(report.starts for report in reports) > 60 * 6


@pytest.mark.requirement("B-2")
def test_without_turns_the_bound_on_waits_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_worker: Worker, _turn_s: float) -> float:
        return math.inf

    monkeypatch.setattr(Worker, "turn_ends_s", never)
    assert any(run_contest(seed).violations for seed in range(60))


def test_a_history_is_the_same_each_time() -> None:
    assert run_history(7) == run_history(7)


def _over_granting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "open", property(lambda worker: worker.state == "ready"))


def _nothing(book: Ledger, worker: Worker) -> None:
    """A move that is not made."""


def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "grant_waiting", _nothing)


def _early_release(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Ledger.end

    def end_and_forget(book: Ledger, worker: Worker, reason: str, *, kill: bool = False) -> None:
        end(book, worker, reason, kill=kill)
        book.reserved_bytes -= worker.reserved_bytes
        worker.reserved_bytes = 0

    monkeypatch.setattr(Ledger, "end", end_and_forget)


def _asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "idle", _nothing)


def _busy_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "idle", property(lambda worker: worker.state == "ready"))


def _twice(monkeypatch: pytest.MonkeyPatch) -> None:
    grant = Ledger.grant

    def grant_twice(book: Ledger, worker: Worker, request: Submit) -> None:
        grant(book, worker, request)
        book.out.append(book.out[-1])

    monkeypatch.setattr(Ledger, "grant", grant_twice)


def _batch_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "open_to_batch", Worker.open)


def _limitless(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_(_book: Ledger, worker: Worker, _request: Submit) -> bool:
        return worker.open

    monkeypatch.setattr(Ledger, "admits", open_)


def _queue_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "queue_most", lambda _limits, _priority: 10**9)


def _pins_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "pinned", property(lambda _worker: False))


def _no_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "stays_until_s", lambda _worker, _min_stay_s: -math.inf)


def _failures_uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncounted(_lives: Lives, _queue: ModelQueue, _error: HomelabError) -> None:
        """Nothing is learned."""

    monkeypatch.setattr(Lives, "_failed", uncounted)


def _deaf_to_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "frozen", property(lambda _book: False, lambda _book, _value: None), raising=False)


def _placeholders_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    adopted = Lives.adopted

    def ignored(lives: Lives, event: Adopted) -> None:
        adopted(lives, dataclasses.replace(event, held=()))

    monkeypatch.setattr(Lives, "adopted", ignored)


def _unfair_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waiting, "__lt__", lambda mine, other: mine.rank > other.rank)


DEFECTS = [_over_granting, _forgetful, _early_release, _asleep, _busy_evicted, _twice, _batch_everywhere, _limitless]
DEFECTS += [_queue_without_end, _pins_ignored, _no_stay, _failures_uncounted, _deaf_to_handover]
DEFECTS += [_placeholders_ignored, _unfair_line]


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_checks_see_a_scheduler_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, defect: Callable[[pytest.MonkeyPatch], None]
) -> None:
    defect(monkeypatch)
    assert any(run_history(seed).violations for seed in range(300))
