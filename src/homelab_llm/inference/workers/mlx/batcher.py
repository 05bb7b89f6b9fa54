"""The batcher: one thread that owns the model, takes jobs and cancellations, and steps the batch.

States of a job, all changed on this thread alone::

    waiting --room in the batch--> active --last token--> done
       |                             |
       +--------- cancel ------------+--> gone     active --the step failed--> failed

Events leave in one call per step, so that the event loop is woken once for a whole batch.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, Protocol

from homelab_llm.core.errors import EngineError, HomelabError, InternalError, InvalidInput
from homelab_llm.inference.workers.mlx.events import Event, Failed, Job, Token
from homelab_llm.inference.workers.mlx.generator import StepResult

Deliver = Callable[[list[tuple[Job, Event]]], None]
_Order = tuple[Literal["submit", "abort", "enough"], Job]
_STRIKES = 3


class Generation(Protocol):
    """What the batcher needs of a loaded model; ``generator.Generator`` is the real one."""

    vocabulary: int
    parallel: int

    def insert(self, job: Job) -> int: ...
    def remove(self, uid: int) -> None: ...
    def step(self, prefill_tokens: int) -> StepResult: ...
    def reset(self) -> None: ...
    def rest(self) -> None: ...


class PrefillPace:
    """How many prompt tokens one step reads, so that a step lasts about ``target_s``.

    A long step stalls every running reply and every cancellation; a short one wastes the device.
    """

    LEAST, MOST = 4, 2048

    def __init__(self, target_s: float = 0.25) -> None:
        self._target_s = target_s
        self.budget_tokens = 8

    def share(self, prompts: int) -> int:
        """Tokens for each of ``prompts`` prompts that are read side by side."""
        return max(self.LEAST, self.budget_tokens // max(1, prompts))

    def observe(self, tokens: int, took_s: float) -> None:
        """A step read ``tokens`` prompt tokens in all; short ones say nothing about long ones."""
        if took_s > 1.5 * self._target_s and tokens:
            self.budget_tokens = max(self.LEAST, self.budget_tokens // 2)
        elif took_s < 0.5 * self._target_s and 2 * tokens >= self.budget_tokens:
            self.budget_tokens = min(self.MOST, self.budget_tokens * 2)


class Batcher:
    """Runs jobs on a model.

    Args:
        load: makes the model; called on the batcher's thread.
        deliver: takes the events of one step; called on the batcher's thread.
        ended: called once, last, on the batcher's thread: None after ``stop``, else why it cannot go on.
        loaded: called when the model can take jobs.
    """

    def __init__(
        self,
        load: Callable[[], Generation],
        deliver: Deliver,
        *,
        loaded: Callable[[Generation], None],
        ended: Callable[[HomelabError | None], None],
    ) -> None:
        self._load, self._deliver, self._loaded, self._ended = load, deliver, loaded, ended
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._active: dict[int, Job] = {}
        self._prefilling: dict[int, int] = {}  # uid -> prompt tokens read
        self._pace = PrefillPace()
        self._decode_s = 0.0  # how long the last step without prompts took
        self._stopping = False
        self.served = self.aborted = self.failed = 0
        self._thread = Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Any thread. The job's sink gets its events; the last is a token with ``finish``, or ``Failed``."""
        self._orders.put(("submit", job))

    def cancel(self, job: Job, *, enough: bool = False) -> None:
        """Any thread. Nothing is delivered for the job once this took effect; harmless when it is over.

        ``enough``: it was not given up, its text reached a stop string.
        """
        self._orders.put(("enough" if enough else "abort", job))

    def stop(self, wait_s: float) -> bool:
        """End the thread after its current step; jobs that run get no more events. False: it still steps."""
        self._orders.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def stats(self) -> dict[str, int]:
        """Counts; ``busy`` includes jobs that wait."""
        busy = len(self._active) + len(self._waiting) + self._orders.qsize()
        return {"busy": busy, "served": self.served, "aborted": self.aborted, "failed": self.failed}

    def _run(self) -> None:
        error: HomelabError | None = None
        try:
            generation = self._load()
            self._loaded(generation)
            self._serve(generation)
        except HomelabError as known:
            error = known
        except Exception as unknown:  # noqa: BLE001 — the outermost loop of this thread
            traceback.print_exc(file=sys.stderr)
            error = InternalError(f"the generation thread ended: {unknown}")
        self._ended(error)

    def _serve(self, generation: Generation) -> None:
        strikes = 0
        while not self._stopping:
            self._take_orders(generation)
            self._admit(generation)
            if not self._active:
                continue
            try:
                self._step(generation)
                strikes = 0
            except Exception as error:  # whatever a kernel raises must cost the running jobs only
                traceback.print_exc(file=sys.stderr)
                strikes += 1
                self._fail_active(EngineError(f"the engine failed while generating: {error}"))
                if strikes == _STRIKES:
                    raise EngineError(f"the engine failed {strikes} times in a row: {error}") from error
                generation.reset()

    def _take_orders(self, generation: Generation) -> None:
        """All that were given; waits for one when there is nothing else to do."""
        idle = not self._active and not self._waiting
        if idle:
            generation.rest()
        while True:
            try:
                order = self._orders.get(block=idle)
            except Empty:
                return
            idle = False
            if order is None:
                self._stopping = True
                return
            kind, job = order
            if kind == "submit":
                self._waiting.append(job)
            elif self._drop(job, generation):
                self.served += kind == "enough"
                self.aborted += kind == "abort"

    def _drop(self, job: Job, generation: Generation) -> bool:
        """Take the job out; False when it was over already."""
        if self._active.get(job.uid) is job:
            del self._active[job.uid]
            self._prefilling.pop(job.uid, None)
            generation.remove(job.uid)
            return True
        if job in self._waiting:
            self._waiting.remove(job)
            return True
        return False

    def _admit(self, generation: Generation) -> None:
        while self._waiting and len(self._active) < generation.parallel:
            job = self._waiting.popleft()
            try:
                _check_ids(job, generation.vocabulary)
                job.uid = generation.insert(job)
            except (HomelabError, ValueError) as error:
                self.failed += 1
                known = error if isinstance(error, HomelabError) else EngineError(f"the job was refused: {error}")
                self._deliver([(job, Failed(known))])
                continue
            self._active[job.uid] = job
            self._prefilling[job.uid] = 0

    def _step(self, generation: Generation) -> None:
        began_s = time.perf_counter()
        result = generation.step(self._pace.share(len(self._prefilling)))
        took_s = time.perf_counter() - began_s
        events: list[tuple[Job, Event]] = []
        read = 0
        for uid, progress in result.progress:
            if (job := self._active.get(uid)) is not None:
                events.append((job, progress))
                read += progress.processed - self._prefilling.get(uid, 0)
                self._prefilling[uid] = progress.processed
        for uid, token in result.tokens:
            if (job := self._active.get(uid)) is not None:
                self._prefilling.pop(uid, None)
                events.append((job, token))
                self._close_if_last(uid, token)
        if read:
            self._pace.observe(read, took_s - self._decode_s)
        else:
            self._decode_s = took_s if self._active else 0.0
        if events:
            self._deliver(events)

    def _close_if_last(self, uid: int, token: Token) -> None:
        if token.finish is not None:
            del self._active[uid]
            self.served += 1

    def _fail_active(self, error: HomelabError) -> None:
        jobs, self._active = list(self._active.values()), {}
        self._prefilling.clear()
        self.failed += len(jobs)
        self._deliver([(job, Failed(error)) for job in jobs])


def _check_ids(job: Job, vocabulary: int) -> None:
    """The last door before MLX, which an id beyond the embedding crashes without a word."""
    for field, ids in (("prompt", job.prompt), ("logit_bias", [token for token, _ in job.sampling.logit_bias])):
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise InvalidInput(f"{field!r} holds token ids outside the vocabulary of {vocabulary}", field=field)
    if not job.prompt:
        raise InvalidInput("the prompt is empty", field="prompt")
