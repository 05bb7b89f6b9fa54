"""A filled database moves between SQLite and PostgreSQL, whole, and works there."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Boolean, Double, Integer, func, select

from homelab_llm.core.errors import AlreadyExists
from homelab_llm.data.backup import back_up, copy_to_file
from homelab_llm.data.copying import copy_database
from homelab_llm.data.database import Database
from homelab_llm.data.keys import KeyRing
from homelab_llm.data.migrate import migrate
from homelab_llm.data.recorder import Recorder
from homelab_llm.data.schema import HEAD
from homelab_llm.data.tables import metadata
from homelab_llm.data.views import VIEWS
from homelab_llm.gateway.seams import RequestRow
from homelab_llm.testing.postgres import Postgres

ROWS = 2500


def fill(database: Database) -> None:
    """Rows in every table, with values that differ in every column."""
    numbers = itertools.count(1)

    def value(column: Any, parent: int) -> Any:
        if column.foreign_keys:
            return f"key-{parent}"
        if isinstance(column.type, Boolean):
            return next(numbers) % 2 == 0
        if isinstance(column.type, Double):
            return next(numbers) + 0.125
        if isinstance(column.type, Integer):
            return next(numbers)
        return f"key-{parent}" if column.primary_key else f"t\u00e4xt '{next(numbers)}'"

    with database.write() as connection:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
            count = ROWS if table.name in ("requests", "events") else 1 if table.name.endswith("_meta") else 3
            rows = [{column.name: value(column, n) for column in table.columns} for n in range(count)]
            connection.execute(table.insert(), rows)


def content(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    with database.read() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns))]
            for table in metadata.sorted_tables
        }


@pytest.fixture
def target(database: Database, postgres: Postgres, tmp_path: Path) -> Iterator[Database]:
    """A ready database of the other dialect."""
    url = postgres.url() if database.dialect == "sqlite" else f"sqlite:///{tmp_path}/target.db"
    other = Database.open(url, tmp_path / "unused.db")
    migrate(other.address, tmp_path / "backups")
    yield other
    other.close()


@pytest.mark.requirement("R-D1")
def test_a_filled_database_moves_to_the_other_dialect_and_works_there(database: Database, target: Database) -> None:
    fill(database)
    told: list[tuple[str, int, int]] = []
    copied = copy_database(database, target, progress=lambda *step: told.append(step))
    assert content(target) == content(database)
    assert copied["requests"] == copied["events"] == ROWS
    assert told[-1][1] == told[-1][2]
    with target.read() as connection:
        for view in VIEWS:
            connection.exec_driver_sql(f"SELECT * FROM {view}").fetchall()  # noqa: S608
    token = KeyRing(target).create("after-the-move")
    assert KeyRing(target).check(token) is not None
    recorder = Recorder(Database(target.address, durable=False))
    recorder.record(RequestRow("new", 1.0, "/v1/x"))
    assert recorder.flush()
    recorder.close()
    assert recorder.dropped == 0
    assert len(content(target)["requests"]) == ROWS + 1


@pytest.mark.requirement("R-D1")
def test_a_target_that_holds_something_is_emptied_only_when_asked_to(database: Database, target: Database) -> None:
    fill(database)
    KeyRing(target).create("mine")
    with pytest.raises(AlreadyExists) as caught:
        copy_database(database, target)
    assert "keys (1)" in caught.value.message
    assert [key.name for key in KeyRing(target).list()] == ["mine"]
    copy_database(database, target, force=True)
    copy_database(database, target, force=True)
    assert content(target) == content(database)


@pytest.mark.requirement("R-D1", "R-D5")
def test_a_backup_is_one_file_with_every_row(database: Database, tmp_path: Path) -> None:
    fill(database)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE hosts SET system = 'written while it is open'")
    path = back_up(database, tmp_path / "backups", HEAD)
    assert path.stat().st_mode & 0o077 == 0
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    with closing(Database.open(f"sqlite:///{path}", tmp_path)) as copy:
        assert content(copy) == content(database)
    again = copy_to_file(database, path)
    with closing(sqlite3.connect(again)) as plain:
        assert plain.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_copy_that_fails_leaves_the_target_as_it_was(database: Database, target: Database) -> None:
    fill(database)
    with target.write() as connection:
        connection.exec_driver_sql("ALTER TABLE requests RENAME COLUMN client TO gone")
    KeyRing(target).create("mine")
    with pytest.raises(Exception, match="cannot be used"):
        copy_database(database, target, force=True)
    with target.read() as connection:
        for table in metadata.sorted_tables:
            if not table.name.endswith(("_meta", "keys", "requests")):
                assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0
    assert [key.name for key in KeyRing(target).list()] == ["mine"]
