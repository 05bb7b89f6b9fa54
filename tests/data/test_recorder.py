"""The record of requests and events: in batches, never in the way, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from homelab_llm.core.events import Event
from homelab_llm.data import recorder as module
from homelab_llm.data.database import Database
from homelab_llm.data.recorder import Recorder
from homelab_llm.data.retention import Retention, compact
from homelab_llm.data.tables import deployments, events, jobs, requests
from homelab_llm.gateway.seams import RequestRow


def row(number: int = 1, **values: object) -> RequestRow:
    return RequestRow(f"req-{number}", 1000.0 + number, "/v1/chat/completions", **values)  # type: ignore[arg-type]


def own(database: Database, busy_s: float = 5) -> Database:
    return Database(database.address, durable=False, busy_s=busy_s)


@pytest.fixture
def recorder(database: Database) -> Iterator[Recorder]:
    opened = Recorder(own(database), batch_s=3600)
    yield opened
    opened.close()


def request_ids(database: Database) -> list[str]:
    with database.read() as connection:
        return [str(found) for found in connection.execute(select(requests.c.request_id).order_by("row_id")).scalars()]


@pytest.mark.requirement("R-D1", "B-13")
def test_every_field_of_a_request_is_a_column(recorder: Recorder, database: Database) -> None:
    assert {field.name for field in fields(RequestRow)} - {"facts"} == set(module._REQUEST_FIELDS)
    recorder.record(row(model="m", key="k", streamed=True, alias="jerry-xl", port=8100, facts={"a": [1, "ä"]}))
    assert recorder.flush()
    with database.read() as connection:
        found = connection.execute(select(requests)).mappings().one()
    assert (found["model"], found["key"], found["streamed"], found["port"]) == ("m", "k", True, 8100)
    assert json.loads(found["facts_json"]) == {"a": [1, "ä"]}


@pytest.mark.requirement("R-D1")
def test_events_are_written_in_order_and_followed_in_the_same_transaction(database: Database) -> None:
    followed: list[str] = []
    recorder = Recorder(own(database), follow=lambda _, news: followed.extend(event.kind for event in news))
    for kind in ("loading", "loaded", "evicted"):
        recorder.record_event(Event(kind, "text", service="worker:a", model="m", facts={"n": 1}, unix_s=5.0))
    recorder.close()
    with database.read() as connection:
        assert list(connection.execute(select(events.c.kind).order_by(events.c.event_id)).scalars()) == followed
    assert followed == ["loading", "loaded", "evicted"]


def test_nothing_is_written_while_a_row_is_taken_and_all_when_it_closes(database: Database) -> None:
    recorder = Recorder(own(database), batch_s=3600)
    recorder.open()
    recorder.open()
    for number in range(2500):
        recorder.record(row(number))
    assert request_ids(database) == []
    recorder.close()
    assert request_ids(database) == [f"req-{number}" for number in range(2500)]
    assert [thread for thread in threading.enumerate() if thread.name == "recorder"] == []


def test_rows_are_written_soon_by_themselves(database: Database) -> None:
    written = threading.Event()
    recorder = Recorder(own(database), batch_s=0.01, follow=lambda *_: written.set())
    recorder.open()
    recorder.record_event(Event("started"))
    assert written.wait(30)
    recorder.close()


@pytest.mark.requirement("R-S2")
def test_text_of_clients_stays_text(recorder: Recorder, database: Database) -> None:
    nasty = "a'); DROP TABLE requests; --\x00\ud800\U0001f600"
    recorder.record(row(1, model=nasty, client=nasty, facts={"x": "\x00"}))
    recorder.flush()
    with database.read() as connection:
        found = connection.execute(select(requests)).mappings().one()
    assert found["model"] == "a'); DROP TABLE requests; --\ufffd?\U0001f600"
    assert recorder.dropped == 0


def test_one_row_that_cannot_be_written_takes_no_other_with_it(recorder: Recorder, database: Database) -> None:
    recorder.record(row(1))
    recorder.record(row(2, prompt_tokens=2**70))
    recorder.record(row(3, facts={1: object()}))
    recorder.record(row(4))
    assert recorder.flush()
    assert request_ids(database) == ["req-1", "req-4"]
    assert recorder.dropped == 2


@pytest.mark.requirement("R-D1")
def test_a_locked_database_is_tried_again_and_nothing_is_lost_or_doubled(tmp_path: Path, database: Database) -> None:
    recorder = Recorder(own(database, busy_s=0.05))
    recorder.record(row(1))
    if database.dialect == "sqlite":
        blocker = sqlite3.connect(database.address.path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        assert not recorder.flush()
        blocker.execute("COMMIT")
        blocker.close()
    else:
        with database.write() as connection:
            connection.exec_driver_sql("LOCK TABLE requests")
            assert not recorder.flush()
    recorder.record(row(2))
    assert recorder.flush()
    recorder.close()
    assert request_ids(database) == ["req-1", "req-2"]
    assert recorder.dropped == 0


def test_what_waits_is_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    recorder = Recorder(Database.open("", tmp_path / "no" / "system.db"))
    for number in range(15):
        recorder.record(row(number))
    assert recorder.dropped == 5
    assert not recorder.flush()
    recorder.close()
    assert recorder.dropped == 15


def test_a_recorder_that_is_off_writes_events_and_no_requests(database: Database) -> None:
    recorder = Recorder(own(database), requests=False)
    recorder.record(row())
    recorder.record_event(Event("started"))
    recorder.close()
    assert request_ids(database) == []
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 1


def test_rows_from_many_threads_are_all_there(database: Database) -> None:
    recorder = Recorder(own(database), batch_s=0.001)
    recorder.open()

    def record(base: int) -> None:
        for number in range(base, base + 250):
            recorder.record(row(number))

    threads = [threading.Thread(target=record, args=(base,)) for base in range(0, 1000, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    assert sorted(request_ids(database)) == sorted(f"req-{number}" for number in range(1000))


@pytest.mark.requirement("R-D1")
def test_ten_thousand_rows_leave_the_memory_as_it_was(database: Database) -> None:
    recorder = Recorder(own(database))
    for number in range(3000):
        recorder.record(row(number))
    recorder.flush()
    tracemalloc.start()
    before_bytes = tracemalloc.get_traced_memory()[0]
    for number in range(10_000):
        recorder.record(row(number, model="m"))
        if number % 1000 == 999:
            assert recorder.flush()
    grown_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    tracemalloc.stop()
    recorder.close()
    assert grown_bytes < 10**6


@pytest.mark.requirement("R-D5")
def test_what_is_older_than_the_settings_say_is_deleted(database: Database) -> None:
    now_s = 10_000_000.0
    with database.write() as connection:
        connection.execute(requests.insert(), [{"started_unix_s": now_s - 100 * number} for number in range(5000)])
        connection.execute(events.insert(), [{"unix_s": now_s - 1000}, {"unix_s": now_s}])
        connection.execute(deployments.insert(), [{"ended_unix_s": now_s - 1000}, {"ended_unix_s": None}])
        ended: list[dict[str, Any]] = [
            {"job_id": "old", "finished_unix_s": now_s - 1000},
            {"job_id": "runs", "finished_unix_s": None},
        ]
        connection.execute(jobs.insert(), ended)
    retention = Retention(database, keep_requests_s=10_000.0, keep_events_s=500.0, unix_s=lambda: now_s)
    assert retention.sweep(stopped=lambda: True) == 0
    assert retention.sweep() == 4899 + 1 + 1 + 1
    with database.read() as connection:
        counts = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (requests, events, deployments, jobs)
        ]
    assert counts == [101, 1, 1, 1]
    assert compact(database) >= 0
    assert retention.sweep() == 0


def test_an_open_recorder_sweeps_by_itself(database: Database) -> None:
    swept = threading.Event()

    class Watched(Retention):
        def sweep(self, stopped: object = None) -> int:  # noqa: ARG002
            swept.set()
            return 0

    recorder = Recorder(own(database), retention=Watched(database, 1.0, 1.0), batch_s=0.01)
    recorder.open()
    assert swept.wait(30)
    recorder.close()
