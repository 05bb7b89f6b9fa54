"""The system database at size: copied to PostgreSQL with a daemon on it, created at a start, recorded into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, insert, select

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.data.database import Database
from homelab_llm.data.recorder import Recorder
from homelab_llm.data.tables import deployments, events, requests
from homelab_llm.gateway.seams import RequestRow
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.database import ready_database
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.postgres import Postgres

if TYPE_CHECKING:
    from tests.bars.conftest import Note


@pytest.fixture
def own_home() -> Iterator[Home]:
    """A home with a fake model, without a database."""
    with temporary_home() as made:
        ModelStore(made.store).import_path(write_fake_model(made.root / "fake.gguf"), ModelRef.parse("fake"))
        yield made


def count(database: Database) -> tuple[int, int, int]:
    with database.read() as connection:
        found = [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (requests, events, deployments)
        ]
    return found[0], found[1], found[2]


def mlxctl(home: Home, *argv: str, environ: dict[str, str]) -> object:
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "--home", str(home.root), *argv, "--json"]
    done = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.requirement("R-D1")
def test_a_filled_database_is_copied_to_postgresql_and_the_daemon_runs_on_it(
    own_home: Home, postgres: Postgres, full: bool, figure: Note
) -> None:
    rows = 200_000 if full else 4_000
    url = postgres.url()
    environ = {"XDG_RUNTIME_DIR": str(own_home.runtime.parent)}
    now_s = time.time()
    with closing(Database.open("", ready_database(own_home.database))) as database:
        values = [
            {"request_id": f"r{n}", "model": "m", "status": 200, "started_unix_s": now_s - n} for n in range(rows)
        ]
        with database.write() as connection:
            connection.execute(insert(requests), values)
    began_s = time.perf_counter()
    told = mlxctl(own_home, "db", "copy", "--to", url, environ=environ)
    figure("db-copy-to-postgresql", rows / (time.perf_counter() - began_s), "rows/s")
    assert isinstance(told, dict)
    assert told["rows"]["requests"] == rows
    own_home.database.unlink()
    with closing(Database.open(url, own_home.database)) as database:
        before = count(database)
        with Daemon(own_home, fake=True, environ={**environ, "HOMELAB_DATA__URL": url}) as daemon:
            body = {"model": "fake", "messages": [{"role": "user", "content": "fake: tokens=2"}]}
            for _ in range(5):
                status, reply = daemon.call("POST", "/v1/chat/completions", body)
                assert (status, reply["choices"][0]["message"]["content"]) == (200, "tok0 tok1")
            figure("daemon-ready-postgresql", daemon.ready_s, "s")
        after = count(database)
    assert after[0] == before[0] + 5
    assert after[1] > before[1]
    assert not own_home.database.exists()


@pytest.mark.requirement("R-D1")
def test_a_daemon_makes_its_database_at_its_first_start(own_home: Home, figure: Note) -> None:
    environ = {"XDG_RUNTIME_DIR": str(own_home.runtime.parent)}
    with Daemon(own_home, environ=environ) as first:
        figure("daemon-ready-first-start", first.ready_s, "s")
        assert first.call("GET", "/readyz")[0] == 200
    with Daemon(own_home, environ=environ) as second:
        figure("daemon-ready-second-start", second.ready_s, "s")
    with closing(Database.open("", own_home.database)) as database:
        assert count(database)[0] == 0


@pytest.mark.requirement("R-D1")
def test_taking_a_row_costs_the_event_loop_next_to_nothing(own_home: Home, full: bool, figure: Note) -> None:
    rows = 20_000 if full else 2_000
    recorder = Recorder(Database.open("", ready_database(own_home.database), durable=False))
    row = RequestRow("r", 1.0, "/v1/chat/completions", model="m", facts={"a": 1})
    began_s = time.perf_counter()
    for _ in range(rows):
        recorder.record(row)
    taken_s = time.perf_counter() - began_s
    assert recorder.flush()
    written_s = time.perf_counter() - began_s - taken_s
    recorder.close()
    assert recorder.dropped == 0
    figure("record-a-request", taken_s / rows * 1e6, "µs")
    figure("write-requests", rows / written_s, "rows/s")
