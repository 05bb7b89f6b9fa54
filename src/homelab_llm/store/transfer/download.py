"""Download: the files of one model, over several connections at once, into blobs.

Each connection has a thread that fetches one span after the other and writes it to its place; each open file has one
that hashes what is there without a gap, and commits; one thread makes durable what came. The caller's thread opens
blobs, reports, and is where everything ends: what its ``report`` raises stops all others.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import DigestMismatch, SourceUnavailable, StoreBusy, TransferError
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.layout import disk_full, free_bytes
from homelab_llm.store.part_file import CHECKPOINT_BYTES, PartFile
from homelab_llm.store.progress import Progress
from homelab_llm.store.sources.base import GitBlobHash, Opened, RemoteFile, Source
from homelab_llm.store.transfer.shares import HOSTS, RATE
from homelab_llm.store.transfer.spans import SMALLEST_BYTES, Span, Spans
from homelab_llm.store.transfer.task import Task

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore
    from homelab_llm.store.settings import PullSettings

_LOOK_S = 0.1
_HASHED_AT_ONCE_BYTES = 4 << 20


@dataclass(slots=True)
class Download:
    """Fetches files; ``digests`` are those that are complete, by path, also when it ends with an error.

    Args:
        origin: the reference the files belong to, for keys and for the share of the host.
        before_bytes: what was done before, for the report.
    """

    store: ModelStore
    source: Source
    origin: str
    settings: PullSettings
    report: Progress
    before_bytes: int = 0
    digests: dict[str, Digest] = field(default_factory=dict)
    _tasks: list[Task] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Fetch all of them; blocks. To be called once.

        Raises:
            SourceUnavailable, SourceDenied, SourceNotFound, DigestMismatch, DiskFull, TransferError: what came is kept,
                as far as it can be proved to be right. The source cannot be used any more.
        """
        self._tasks = [Task(file, key_of(file, self.origin), self.source.parallel) for file in files]
        try:
            self._start()
            while any(task.digest is None for task in self._tasks):
                with self._typed():
                    self._open_blobs()
                self._tell()
                with self._changed:
                    if self._failure is None:
                        self._changed.wait(_LOOK_S)
                if self._failure is not None:
                    raise self._failure
            self._tell()
        except BaseException:
            self._stopped.set()
            self.source.close()
            raise
        finally:
            self._end()

    def _start(self) -> None:
        parts = sum(1 + (file.size_bytes or 0) // SMALLEST_BYTES for file in (task.file for task in self._tasks))
        for _ in range(min(parts, self._connections)):
            threading.Thread(target=self._guarded, args=(self._work,), daemon=True).start()
        self._keep(self._sync)

    def _keep(self, what: Callable[..., None], *arguments: object) -> None:
        """Start a thread that is waited for in the end."""
        thread = threading.Thread(target=self._guarded, args=(what, *arguments), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _end(self) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for task in self._tasks:
            task.news.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        for task in self._tasks:
            if task.writer is not None:
                task.writer.close()

    @property
    def _connections(self) -> int:
        return self.settings.connections_per_host if self.source.parallel else 1

    def _guarded(self, what: Callable[..., None], *arguments: object) -> None:
        """Run it in this thread; what it raises ends the download."""
        try:
            with self._typed():
                what(*arguments)
        except BaseException as error:  # noqa: BLE001 — raised again, in the caller's thread
            self._fail(error)

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        """Errors of the disk get their names; around what reads or writes the store, not around the caller's report."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                missing = sum((task.size_bytes or 0) - task.there_bytes for task in self._tasks)
                raise disk_full(max(0, missing), free_bytes(self.store.root)) from error
            what = error.strerror or type(error).__name__
            raise TransferError(
                f"the disk of the store failed: {what}; what was safely written is kept",
                hint="look into the system's log for errors of the disk, then run the same command again",
            ) from error

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self._stopped.is_set():
                self._failure = self._failure or error
            self._changed.notify_all()

    def _open_blobs(self) -> None:
        """Open as many as there are connections; a blob that somebody else writes is looked at again later."""
        room = self._connections + 1 - sum(task.writer is not None and task.digest is None for task in self._tasks)
        for task in self._tasks:
            if room <= 0:
                return
            if task.writer is None and task.digest is None:
                with contextlib.suppress(StoreBusy):
                    self._open(task)
                    room -= task.digest is None

    def _open(self, task: Task) -> None:
        file = task.file
        writer = self.store.blobs.open_writer(
            task.key,
            expected=file.digest,
            size_bytes=file.size_bytes,
            validator="" if file.digest else file.validator,
            further=GitBlobHash(file) if file.git_sha1 else None,
            wait_s=0.0,
        )
        failpoint("pull.file.opened")
        if writer.complete:
            task.size_bytes = writer.offset
            self._conclude(task, writer.commit())
            return
        with self._changed:
            task.begin(writer)
            self._changed.notify_all()
        self._keep(self._follow, task)

    def _conclude(self, task: Task, digest: Digest) -> None:
        failpoint("pull.file.committed")
        with self._changed:
            task.digest = self.digests[task.file.path] = digest
            self._changed.notify_all()

    def _tell(self) -> None:
        with self._changed:
            there = self.before_bytes + sum(task.there_bytes for task in self._tasks)
            mine = [task for task in self._tasks if task.writer is not None and task.digest is None]
            pausing = bool(mine) and all(task.retry_at_s > time.monotonic() for task in mine)
            waiting = not mine and any(task.digest is None for task in self._tasks)
        if waiting:
            there += sum(self.store.blobs.kept_bytes(task.key) for task in self._tasks if task.digest is None)
        file = mine[0].file.path if mine else ""
        self.report.at("waiting" if waiting else "retrying" if pausing else "fetching", file, there)

    def _work(self) -> None:
        """What each connection does: one span after the other, until there are none."""
        speed = 0.0
        while (claimed := self._claim(speed)) is not None:
            task, span = claimed
            before, at = time.monotonic(), span.at
            try:
                with HOSTS.one(
                    host_of(task.file, self.origin), self.settings.connections_per_host, self._stopped.is_set
                ) as mine:
                    if mine:
                        self._fetch(task, span)
            except SourceUnavailable as error:
                with self._changed:
                    task.cut(error, time.monotonic(), self.settings.backoff_s)
            if span.at > at:
                speed = (span.at - at) / max(1e-3, time.monotonic() - before)

    def _claim(self, speed: float) -> tuple[Task, Span] | None:
        with self._changed:
            while not self._stopped.is_set() and any(task.digest is None for task in self._tasks):
                now = time.monotonic()
                for task in self._tasks:
                    if (span := task.claim(now, connections=self._connections, speed=speed)) is not None:
                        return task, span
                soonest = min((task.retry_at_s for task in self._tasks if task.retry_at_s > now), default=now + 0.5)
                self._changed.wait(max(1e-3, min(0.5, soonest - now)))
        return None

    def _fetch(self, task: Task, span: Span) -> None:
        """One reply of the source, written to where it belongs."""
        with self._changed:
            spans = task.spans
            stop = None if (span.at, span.stop) == (0, task.size_bytes) else span.stop
        try:
            with self.source.open(task.file, span.at, stop) as opened:
                with self._changed:
                    if self._stopped.is_set() or task.fetched or span not in task.spans.active:
                        return
                    accepted = task.accept(span, opened, time.monotonic())
                    self._changed.notify_all()
                    if accepted is None or task.writer is None:
                        return
                    span, spans, part = accepted, task.spans, task.writer.part
                self._receive(task, spans, span, part, opened)
        finally:
            with self._changed:
                if span in spans.active:
                    spans.give_back(span)
                self._changed.notify_all()

    def _receive(self, task: Task, spans: Spans, span: Span, part: PartFile, opened: Opened) -> None:
        began = span.at
        for chunk in opened.chunks:
            with self._changed:
                offset, count = span.at, spans.reserve(span, len(chunk))
            try:
                if self._stopped.is_set() or not count:
                    return
                if task.size_bytes is not None and offset + count > task.size_bytes:
                    self._refuse_more(task)
                self._stopped.wait(RATE.spend(count, self.settings.rate_limit_bytes_per_s))
                if not part.write(offset, memoryview(chunk)[:count]):
                    return
            finally:
                span.busy = False
            task.news.set()
            failpoint("pull.chunk")
            if span.stop is not None and span.at >= span.stop:
                return
        with self._changed:
            task.ended(span, span.at > began)
        task.news.set()

    def _refuse_more(self, task: Task) -> None:
        if task.writer is not None:
            task.writer.restart()
        raise DigestMismatch(
            f"more than the promised {task.size_bytes} bytes of {task.file.path} arrived; they were discarded",
            hint="run the same command again",
            expected_bytes=task.size_bytes,
        )

    def _follow(self, task: Task) -> None:
        """Hash one file as it comes, then commit it."""
        writer = task.writer
        assert writer is not None  # noqa: S101 — it was opened
        while not task.fetched:
            task.news.wait()
            task.news.clear()
            while not self._stopped.is_set() and writer.follow(_HASHED_AT_ONCE_BYTES):
                pass
            if self._stopped.is_set():
                return
        failpoint("pull.file.fetched")
        while not self._stopped.is_set() and writer.follow():
            pass
        if not self._stopped.is_set():
            self._conclude(task, writer.commit())

    def _sync(self) -> None:
        """Make durable what came, a little at a time, so that the last fsync is short and a power cut costs little."""
        while not self._stopped.wait(_LOOK_S):
            for task in self._tasks:
                part = task.writer.part if task.writer is not None and task.digest is None else None
                if part is not None and part.unsynced_bytes >= CHECKPOINT_BYTES:
                    part.checkpoint()


def key_of(file: RemoteFile, origin: str) -> str:
    """What the unfinished blob is kept under: its digest, so that all sources and models share it, or its place."""
    return str(file.digest) if file.digest else f"{origin}\n{file.path}"


def host_of(file: RemoteFile, origin: str) -> str:
    """Whose share of connections a file counts to: the host of its address, or the source."""
    return urlsplit(file.address).netloc or urlsplit(origin).netloc or origin.partition(":")[0]
