"""Lives: what becomes of workers, from their start to the proof of their death. Pure; moves are in ``ledger``."""

from __future__ import annotations

import math

from homelab_llm.core.errors import HomelabError
from homelab_llm.inference.fleet import refusals
from homelab_llm.inference.fleet.ledger import Ledger
from homelab_llm.inference.fleet.state import ModelQueue, Worker
from homelab_llm.inference.fleet.vocabulary import (
    Adopted,
    Condemn,
    Loaded,
    LoadFailed,
    LoadProgress,
    Measured,
    WorkerExit,
)


class Lives:
    """Takes the events of workers; the transition table is in ``Scheduler.step``."""

    def __init__(self, book: Ledger) -> None:
        self._book = book

    def load_progress(self, event: LoadProgress) -> None:
        worker = self._book.workers.get(event.worker_id)
        if worker is not None and worker.state == "loading":
            worker.stage, worker.done = event.stage, event.done
            name = worker.worker_id
            self._book.notify("progress", worker.queue, event.stage, done=event.done, worker_id=name)

    def loaded(self, event: Loaded) -> None:
        worker = self._book.workers.get(event.worker_id)
        if worker is None or worker.state != "loading":
            return
        queue = worker.queue
        queue.load_s = self._book.now_s - worker.started_s
        if event.footprint_bytes:
            self._book.reserve(worker, event.footprint_bytes)
        self._book.notify("loaded", queue, done=1.0, worker_id=worker.worker_id)
        self._serve(worker)

    def _serve(self, worker: Worker) -> None:
        """A worker became ready: those who wait for it come first."""
        book = self._book
        worker.state, worker.stage, worker.done = "ready", "ready", 1.0
        worker.ready_s = worker.last_used_s = book.now_s
        for waiting in worker.queue.take_preloads():
            del book.waiting[waiting.request.request_id]
            book.grant_preload(worker, waiting.request)
        book.grant_waiting(worker)
        if worker.leases == 0:
            book.idle(worker)
        book.unsettled = True

    def measured(self, event: Measured) -> None:
        worker = self._book.workers.get(event.worker_id)
        if worker is not None and worker.state != "loading" and event.footprint_bytes > worker.reserved_bytes:
            self._book.reserve(worker, event.footprint_bytes)

    def load_failed(self, event: LoadFailed) -> None:
        worker = self._book.workers.get(event.worker_id)
        if worker is not None and worker.state == "loading":
            worker.state = "ending"  # its exit follows, and only then its memory is free
            self._load_ended(worker, event.error)

    def _load_ended(self, worker: Worker, error: HomelabError) -> None:
        """A load failed: who waits for it is told why."""
        book, queue = self._book, worker.queue
        queue.worker = None
        book.notify("failed", queue, worker_id=worker.worker_id, error=error)
        self._failed(queue, error)
        if queue.quarantined:
            error = refusals.again(error, quarantined=True)
        elif queue.retry_at_s > book.now_s:
            error = refusals.again(error, retry_after_s=math.ceil(queue.retry_at_s - book.now_s))
        book.refuse_waiting(queue, error)
        book.unsettled = True

    def _crashed(self, worker: Worker, error: HomelabError) -> None:
        """A worker that served ended by itself, or had to be ended: who waits gets another, if one may be tried."""
        book, queue = self._book, worker.queue
        book.notify("crashed", queue, worker_id=worker.worker_id, error=error)
        self._failed(queue, error)
        if queue.quarantined and queue.worker is None:
            book.refuse_waiting(queue, refusals.quarantined(queue.demand.name, queue.failures, error))
        book.unsettled = True

    def _failed(self, queue: ModelQueue, error: HomelabError) -> None:
        """Count a failure; the second in a row delays the next try, the last allowed one ends them."""
        book, limits = self._book, self._book.limits
        queue.failures += 1
        queue.last_error = error
        queue.retry_at_s = book.now_s + limits.backoff_s * (queue.failures - 1)
        if queue.failures >= limits.quarantine_after and not queue.quarantined:
            queue.quarantined = True
            error = refusals.quarantined(queue.demand.name, queue.failures, error)
            book.notify("quarantined", queue, error=error)

    def worker_exit(self, event: WorkerExit) -> None:
        book = self._book
        worker = book.workers.get(event.worker_id)
        if worker is None:
            return
        queue, before = worker.queue, worker.state
        book.remove_worker(worker)
        if queue.worker is worker:
            queue.worker = None
        if before == "loading":
            self._load_ended(worker, event.error or refusals.ended_while_loading(queue.demand.name))
        elif before != "ending" and event.error is not None:
            self._crashed(worker, event.error)
        else:
            book.notify("unloaded", queue, worker_id=worker.worker_id)
        book.appetite(queue)

    def adopted(self, event: Adopted) -> None:
        book = self._book
        if event.worker_id in book.workers:
            return
        queue = book.queues.setdefault(event.demand.key, ModelQueue(event.demand))
        reserved_bytes = event.footprint_bytes or event.demand.footprint_bytes
        worker = book.add_worker(event.worker_id, queue, event.demand, reserved_bytes)
        book.unsettled = True
        for request_id in event.held:
            book.occupy(request_id, worker, math.nan, batch=False)
        unwanted = event.unwanted or ("another worker serves this model" if queue.worker is not None else "")
        if unwanted and worker.leases:
            worker.state = "retiring"
        elif unwanted:
            book.end(worker, unwanted)
        if unwanted:
            return
        queue.worker = worker
        book.notify("adopted", queue, worker_id=worker.worker_id)
        book.appetite(queue)
        if event.ready:
            self._serve(worker)

    def condemn(self, event: Condemn) -> None:
        worker = self._book.workers.get(event.worker_id)
        if worker is not None and worker.state in ("ready", "retiring") and not self._book.frozen:
            self._book.end(worker, "it does not answer", kill=True)
            self._crashed(worker, refusals.gave_no_answer(worker.demand.name))
