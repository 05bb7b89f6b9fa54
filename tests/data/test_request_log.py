"""The record of requests: one line each, in batches, rotated, never in the way."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.data import request_log
from homelab_llm.data.request_log import RequestLog
from homelab_llm.gateway.seams import RequestRow


@dataclass(slots=True)
class Row:
    number: int
    text: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "requests.jsonl"


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in path.read_bytes().split(b"\n") if line]


def test_a_request_becomes_one_line_without_its_content(path: Path) -> None:
    log = RequestLog(path)
    log.record(RequestRow("req-1", 5.0, "/v1/chat/completions", model="m", status=200, prompt_tokens=3))
    log.flush()
    (line,) = path.read_text().splitlines()
    told = json.loads(line)
    assert (told["request_id"], told["model"], told["status"], told["prompt_tokens"]) == ("req-1", "m", 200, 3)
    assert set(told) == set(RequestRow.__dataclass_fields__)


def test_nothing_is_written_while_a_row_is_taken_and_all_when_the_log_closes(path: Path) -> None:
    log = RequestLog(path, batch_s=3600)
    log.open()
    for number in range(100):
        log.record(Row(number))
    assert not path.exists()
    log.close()
    assert numbers(path) == list(range(100))


def test_rows_are_written_soon_by_themselves(path: Path) -> None:
    written = threading.Event()

    class Watched(RequestLog):
        def flush(self) -> None:
            super().flush()
            if path.exists():
                written.set()

    log = Watched(path, batch_s=0.01)
    log.open()
    log.open()
    log.record(Row(1))
    assert written.wait(30)
    log.close()
    assert numbers(path) == [1]
    assert [thread for thread in threading.enumerate() if thread.name == "request-log"] == []


def test_the_file_is_rotated_by_size_and_only_so_many_are_kept(path: Path) -> None:
    log = RequestLog(path, max_file_bytes=200, files=3)
    for number in range(40):
        log.record(Row(number, "x" * 50))
        log.flush()
    names = sorted(found.name for found in path.parent.iterdir())
    assert names == ["requests.jsonl", "requests.jsonl.1", "requests.jsonl.2"]
    kept = [number for name in reversed(names) for number in numbers(path.with_name(name))]
    assert kept == list(range(40))[-len(kept) :]
    assert all(path.with_name(name).stat().st_size <= 200 for name in names)


def test_text_of_clients_stays_on_its_line(path: Path) -> None:
    log = RequestLog(path)
    log.record(Row(1, 'a\r\nb\x00"\u2028{"number": 9}\n'))
    log.flush()
    assert numbers(path) == [1]
    assert path.read_bytes().count(b"\n") == 1


def test_what_cannot_be_written_is_counted_and_raises_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    log = RequestLog(blocked / "requests.jsonl")
    log.record(Row(1))
    log.record(Row(2, facts={"a": object()}))
    log.flush()
    log.close()
    assert log.dropped == 2


def test_a_full_queue_drops_the_oldest_and_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 10)
    log = RequestLog(path)
    for number in range(15):
        log.record(Row(number))
    log.flush()
    assert numbers(path) == list(range(5, 15))
    assert log.dropped == 5


def test_a_log_that_is_off_writes_nothing(path: Path) -> None:
    log = RequestLog(path, enabled=False)
    log.open()
    log.record(Row(1))
    log.close()
    assert not path.exists()


def test_rows_from_many_threads_are_all_there(path: Path) -> None:
    log = RequestLog(path, batch_s=0.001)
    log.open()

    def record(base: int) -> None:
        for number in range(base, base + 500):
            log.record(Row(number))

    threads = [threading.Thread(target=record, args=(base,)) for base in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(numbers(path)) == list(range(4000))
