"""The batcher: rooms, cancellations and failures, on a generation whose tokens are made up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from homelab_llm.core.errors import BadModelFile, EngineError, HomelabError
from homelab_llm.inference.workers.mlx.app import deliver
from homelab_llm.inference.workers.mlx.batcher import Batcher, PrefillPace
from homelab_llm.inference.workers.mlx.events import Event, Failed, Job, Progress, Token
from homelab_llm.inference.workers.mlx.generator import StepResult
from homelab_llm.inference.workers.mlx.sampling import Sampling

WAIT_S = 20.0


class MadeUp:
    """Counts upwards for every sequence; a step waits for permission, and may be told to fail."""

    def __init__(self, parallel: int = 2) -> None:
        self.vocabulary, self.parallel = 100, parallel
        self.running: dict[int, Job] = {}
        self.made: dict[int, int] = {}
        self.failures = 0
        self.resets = 0
        self.steps = threading.Semaphore(0)
        self.shares: list[int] = []
        self._uid = 0

    def insert(self, job: Job) -> int:
        self._uid += 1
        self.running[self._uid], self.made[self._uid] = job, 0
        assert len(self.running) <= self.parallel
        return self._uid

    def remove(self, uid: int) -> None:
        del self.running[uid]

    def reset(self) -> None:
        self.running.clear()
        self.resets += 1

    def rest(self) -> None:
        assert not self.running

    def step(self, prefill_tokens: int) -> StepResult:
        self.shares.append(prefill_tokens)
        assert self.steps.acquire(timeout=WAIT_S)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a kernel failed")
        result = StepResult([], [])
        for uid, job in list(self.running.items()):
            if not self.made[uid]:
                result.progress.append((uid, Progress(len(job.prompt), len(job.prompt))))
            self.made[uid] += 1
            last = self.made[uid] == job.max_tokens
            result.tokens.append((uid, Token(self.made[uid], "length" if last else None)))
            if last:
                del self.running[uid]
        return result


class House:
    """A batcher with its made-up generation; events of a job are read with ``next_of``."""

    def __init__(self, parallel: int = 2) -> None:
        self.generation = MadeUp(parallel)
        self.ended: SimpleQueue[HomelabError | None] = SimpleQueue()
        self.batcher = Batcher(
            lambda: self.generation,
            deliver,
            loaded=lambda _: None,
            ended=self.ended.put,
        )

    def job(self, max_tokens: int = 3, prompt: tuple[int, ...] = (1, 2)) -> tuple[Job, SimpleQueue[Event]]:
        events: SimpleQueue[Event] = SimpleQueue()
        job = Job(prompt, max_tokens, Sampling(), events.put)
        self.batcher.submit(job)
        return job, events

    def allow(self, steps: int) -> None:
        for _ in range(steps):
            self.generation.steps.release()


@pytest.fixture
def house() -> Iterator[House]:
    built = House()
    built.batcher.start()
    yield built
    built.allow(100)
    assert built.batcher.stop(WAIT_S)


def tokens(events: SimpleQueue[Event]) -> list[int]:
    """All token ids of a job until its end."""
    found: list[int] = []
    while True:
        event = events.get(timeout=WAIT_S)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Token):
            found.append(event.id)
            if event.finish:
                return found


@pytest.mark.requirement("R-I4")
def test_jobs_beyond_the_slots_wait_and_all_are_served(house: House) -> None:
    jobs = [house.job() for _ in range(5)]
    house.allow(50)
    assert [tokens(events) for _, events in jobs] == [[1, 2, 3]] * 5
    assert house.batcher.stats() == {"busy": 0, "served": 5, "aborted": 0, "failed": 0}


@pytest.mark.requirement("R-I3")
def test_a_cancelled_job_leaves_the_batch_and_gives_its_slot_to_the_next(house: House) -> None:
    first, first_events = house.job(max_tokens=10**6)
    second, _ = house.job(max_tokens=10**6)
    house.allow(1)
    assert isinstance(first_events.get(timeout=WAIT_S), Progress)
    waiting, waiting_events = house.job()
    _, last_events = house.job()
    for job in (first, second, waiting):
        house.batcher.cancel(job)
    house.allow(20)
    assert tokens(last_events) == [1, 2, 3]
    assert waiting_events.empty()
    assert house.batcher.stats() == {"busy": 0, "served": 1, "aborted": 3, "failed": 0}


def test_a_job_whose_text_was_enough_counts_as_served(house: House) -> None:
    job, events = house.job(max_tokens=10**6)
    house.allow(1)
    events.get(timeout=WAIT_S)
    house.batcher.cancel(job, enough=True)
    house.batcher.cancel(job)
    _, other = house.job()
    house.allow(20)
    assert tokens(other) == [1, 2, 3]
    assert house.batcher.stats() == {"busy": 0, "served": 2, "aborted": 0, "failed": 0}


@pytest.mark.parametrize("prompt", [(), (1, 100), (-1,)])
def test_ids_the_model_does_not_have_cost_the_job_that_brought_them_alone(
    house: House, prompt: tuple[int, ...]
) -> None:
    _, good = house.job()
    _, bad = house.job(prompt=prompt)
    house.allow(20)
    with pytest.raises(HomelabError) as refused:
        tokens(bad)
    assert refused.value.code == "invalid_input"
    assert tokens(good) == [1, 2, 3]


def test_a_failing_step_fails_the_running_jobs_and_the_next_ones_are_served(house: House) -> None:
    house.generation.failures = 1
    _, failing = house.job()
    house.allow(1)
    with pytest.raises(EngineError):
        tokens(failing)
    _, after = house.job()
    house.allow(20)
    assert tokens(after) == [1, 2, 3]
    assert house.generation.resets == 1
    assert house.batcher.stats()["failed"] == 1


def test_three_failures_in_a_row_end_the_thread_with_the_reason(house: House) -> None:
    house.generation.failures = 3
    house.allow(3)
    for _ in range(3):
        _, events = house.job()
        with pytest.raises(EngineError):
            tokens(events)
    error = house.ended.get(timeout=WAIT_S)
    assert isinstance(error, EngineError)
    assert "a kernel failed" in error.message


def test_a_load_that_fails_is_told_as_it_is() -> None:
    ended: SimpleQueue[HomelabError | None] = SimpleQueue()

    def load() -> MadeUp:
        raise BadModelFile("no weights")

    batcher = Batcher(load, lambda _: None, loaded=lambda _: None, ended=ended.put)
    batcher.start()
    assert isinstance(ended.get(timeout=WAIT_S), BadModelFile)
    assert batcher.stop(WAIT_S)


def test_a_stop_ends_the_thread_without_an_error(house: House) -> None:
    house.allow(10)
    assert house.batcher.stop(WAIT_S)
    assert house.ended.get(timeout=WAIT_S) is None


@pytest.mark.requirement("R-I4")
def test_the_prefill_step_settles_where_a_step_takes_about_its_target_time() -> None:
    for speed_tokens_s, low, high in ((8.7, 4, 4), (200.0, 16, 64), (100_000.0, 2048, 2048)):
        pace = PrefillPace(target_s=0.25)
        for _ in range(30):
            step = pace.share(1)
            pace.observe(step, step / speed_tokens_s)
        assert low <= pace.share(1) <= high


def test_prompts_side_by_side_share_one_steps_budget() -> None:
    pace = PrefillPace()
    pace.budget_tokens = 512
    assert [pace.share(n) for n in (1, 2, 4, 1000)] == [512, 256, 128, PrefillPace.LEAST]


def test_short_prompts_do_not_make_the_step_long() -> None:
    pace = PrefillPace()
    for _ in range(20):
        pace.observe(3, 0.001)
    assert pace.budget_tokens == 8
