"""Recorder: requests and events into the system database, in batches, by one thread. Never their content.

Taking a row costs about a microsecond and never blocks or raises. What cannot be written now is tried again later;
what cannot be kept is dropped, oldest first, and counted.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import orjson
from sqlalchemy import Connection, Text

from homelab_llm.core.errors import DatabaseUnavailable, HomelabError
from homelab_llm.core.events import Event
from homelab_llm.data.database import Database
from homelab_llm.data.retention import Retention
from homelab_llm.data.tables import events, requests

log = logging.getLogger(__name__)

BATCH_S = 0.5
MAX_WAITING = 20_000
SWEEP_S = 3600.0
_BATCH = 1000
_AT_ONCE = 100  # rows of one statement: the thread gives way to others between two

Job = Callable[[Connection], None]
"""Something else to write; runs on the recorder's thread inside its transaction."""

Follow = Callable[[Connection, Sequence[Event]], None]
"""Gets the events that are being written, in order, inside the same transaction."""


class Recorder:
    """Records rows (dataclasses with the fields of ``tables.requests``) and events.

    Args:
        database: one of its own, opened with ``durable=False`` and a short ``busy_s``; closed with the recorder.
        requests: False takes requests and writes none (setting ``data.requests``).
        retention: what is too old is deleted every hour; None = never.
        follow: see ``Follow``.
    """

    def __init__(
        self,
        database: Database,
        *,
        requests: bool = True,
        retention: Retention | None = None,
        follow: Follow | None = None,
        batch_s: float = BATCH_S,
    ) -> None:
        self._database = database
        self._requests = requests
        self._retention = retention
        self._follow = follow
        self._batch_s = batch_s
        self._taken: deque[Any] = deque(maxlen=MAX_WAITING)
        self._unwritten: list[Any] = []
        self._ending = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failing = False
        self.dropped = 0

    def record(self, row: Any) -> None:
        """Take a finished request."""
        if self._requests:
            self._take(row)

    def record_event(self, event: Event) -> None:
        """Take an event."""
        self._take(event)

    def write_later(self, job: Job) -> None:
        """Take something else to write, in order with the rows."""
        self._take(job)

    def open(self) -> None:
        """Start writing; a second call does nothing."""
        if self._thread is None:
            self._ending.clear()
            self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
            self._thread.start()

    def flush(self) -> bool:
        """Write what was taken so far; blocks. False when something has to wait for the database."""
        with self._writing:
            for _ in range(len(self._taken) // _BATCH + 2):
                if not self._unwritten:
                    self._unwritten = [self._taken.popleft() for _ in range(min(_BATCH, len(self._taken)))]
                if not self._unwritten:
                    break
                self._unwritten = self._attempt(self._unwritten)
                if self._unwritten:
                    return False
        return True

    def close(self) -> None:
        """Write the rest, end the thread and close the database; blocks. What cannot be written is counted."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if not self.flush():
            lost = len(self._unwritten) + len(self._taken)
            self.dropped += lost
            log.warning("not everything could be recorded", extra={"rows": lost})
        self._database.close()

    def _take(self, item: Any) -> None:
        if len(self._taken) == MAX_WAITING:
            self.dropped += 1
        self._taken.append(item)

    def _run(self) -> None:
        sweep_s = time.monotonic() + self._batch_s
        while not self._ending.wait(self._batch_s):
            reachable = self.flush()
            if self._retention is not None and reachable and time.monotonic() >= sweep_s:
                sweep_s = time.monotonic() + SWEEP_S
                self._sweep(self._retention)

    def _sweep(self, retention: Retention) -> None:
        try:
            retention.sweep(self._ending.is_set)
        except HomelabError as error:
            log.warning("old rows could not be deleted", extra={"reason": error.message})

    def _attempt(self, items: Sequence[Any]) -> list[Any]:
        """Write all items or none; returns those that must be tried again later."""
        try:
            self._write(items)
        except DatabaseUnavailable as error:
            if not self._failing:
                log.warning("requests and events wait to be recorded", extra={"reason": error.message})
            self._failing = True
            return list(items)
        except (HomelabError, ValueError, TypeError, AttributeError, OverflowError) as error:
            if len(items) > 1:
                return self._attempt_each(items)
            self.dropped += 1
            log.warning("a row could not be recorded", extra={"reason": str(error)[:300]})
        self._failing = False
        return []

    def _attempt_each(self, items: Sequence[Any]) -> list[Any]:
        """One of the items cannot be written: it must not take the others with it."""
        for place, item in enumerate(items):
            if self._attempt([item]):
                return list(items[place:])
        return []

    def _write(self, items: Sequence[Any]) -> None:
        rows: list[tuple[Any, ...]] = []
        happened: list[Event] = []
        jobs: list[Job] = []
        for item in items:
            if isinstance(item, Event):
                happened.append(item)
            elif dataclasses.is_dataclass(item):
                rows.append(_row(item))
            else:
                jobs.append(item)
        with self._database.write() as connection:
            for job in jobs:
                job(connection)
            _insert_requests(connection, rows)
            if happened:
                connection.execute(events.insert(), [_values(event) for event in happened])
            if self._follow is not None and happened:
                self._follow(connection, happened)


_REQUEST_FIELDS = [column.name for column in requests.columns if column.name not in ("row_id", "facts_json")]
_EVENT_FIELDS = [column.name for column in events.columns if column.name not in ("event_id", "facts_json")]
_request_values = attrgetter(*_REQUEST_FIELDS)
_request_texts = attrgetter(*(name for name in _REQUEST_FIELDS if isinstance(requests.c[name].type, Text)))


def _row(item: Any) -> tuple[Any, ...]:
    """A request as its columns. This runs for every request, in a thread that takes the interpreter from them."""
    values: tuple[Any, ...] = _request_values(item)
    texts = "".join(_request_texts(item))
    if not texts.isascii() or "\x00" in texts:
        values = tuple(map(clean, values))
    return (*values, _json(item.facts))


def _values(event: Event) -> dict[str, Any]:
    values = {name: clean(getattr(event, name)) for name in _EVENT_FIELDS}
    return {**values, "facts_json": _json(event.facts)}


def _json(facts: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(facts), default=str).decode() if facts else "{}"


def clean(value: Any) -> Any:
    """A text both dialects take: without NUL and lone surrogates. Other values as they are."""
    if isinstance(value, str) and not value.isascii():
        value = value.encode("utf-8", "replace").decode("utf-8")
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value


def _insert_requests(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """By the driver's own means: SQLAlchemy's take five times as long for each row."""
    if not rows:
        return
    columns = [*_REQUEST_FIELDS, "facts_json"]
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    into = f"INSERT INTO {requests.name} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608 — names of our own
    for start in range(0, len(rows), _AT_ONCE):
        connection.exec_driver_sql(into, list(rows[start : start + _AT_ONCE]))
