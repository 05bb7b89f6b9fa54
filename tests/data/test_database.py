"""Transactions, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select

from homelab_llm.core.errors import DaemonRunning, DatabaseUnavailable, HomelabError, InternalError, InvalidInput
from homelab_llm.data.address import Address
from homelab_llm.data.database import Database
from homelab_llm.data.migrate import migrate
from homelab_llm.data.tables import assignments, registry_entries, registry_meta, slots
from homelab_llm.testing.postgres import Postgres

_DROP_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(slots)).scalar_one()


@pytest.mark.requirement("R-D1")
def test_a_block_is_written_whole_or_not_at_all(database: Database) -> None:
    with database.write() as connection:
        connection.execute(slots.insert().values(port=8100, alias="a"))
    with pytest.raises(RuntimeError), database.write() as connection:
        connection.execute(slots.insert().values(port=8101, alias="b"))
        raise RuntimeError
    assert count(database) == 1


@pytest.mark.requirement("R-D1", "R-F2")
def test_writers_at_once_lose_nothing(database: Database) -> None:
    def grow() -> None:
        for _ in range(25):
            with database.write() as connection:
                revision = connection.execute(select(registry_meta.c.revision)).scalar_one()
                connection.execute(registry_meta.update().values(revision=revision + 1))

    threads = [threading.Thread(target=grow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(select(registry_meta.c.revision)).scalar_one() == 100


def test_a_reader_sees_one_state_while_others_write(database: Database) -> None:
    with database.read() as connection:
        before = connection.execute(select(func.count()).select_from(slots)).scalar_one()
        with database.write() as other:
            other.execute(slots.insert().values(port=8100, alias="a"))
        assert connection.execute(select(func.count()).select_from(slots)).scalar_one() == before == 0
    assert count(database) == 1


def test_foreign_keys_hold_at_the_commit_and_not_before(database: Database) -> None:
    with database.write() as connection:
        connection.execute(assignments.insert().values(port=8100, desired="a"))
        connection.execute(registry_entries.insert().values(slug="a"))
    with pytest.raises(InternalError), database.write() as connection:
        connection.execute(registry_entries.delete())
    with pytest.raises(InternalError), database.write() as connection:
        connection.execute(assignments.insert().values(port=8101, desired="a"))


def test_a_missing_table_names_the_verb_that_makes_it(database_url: str, tmp_path: Path) -> None:
    database = Database.open(database_url, tmp_path / "system.db")
    with pytest.raises(DatabaseUnavailable) as caught, database.read() as connection:
        connection.execute(select(slots))
    assert caught.value.hint == "mlxctl db upgrade"
    database.close()


def test_one_daemon_uses_a_schema_of_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    url, path = postgres.url(), tmp_path / "system.db"
    first, second, elsewhere = Database.open(url, path), Database.open(url, path), Database.open(postgres.url(), path)
    for database in (first, elsewhere):
        with database.write() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {database.address.schema}")
        database.claim()
    with pytest.raises(DaemonRunning) as caught:
        second.claim(wait_s=0)
    assert "pid" in caught.value.message
    waiting = threading.Thread(target=second.claim)
    waiting.start()
    first.release()
    waiting.join()
    with pytest.raises(DaemonRunning):
        first.claim(wait_s=0.1)
    for database in (first, second, elsewhere):
        database.close()


def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "system.db"
    path.write_bytes(b"no database at all" * 1000)
    database = Database.open("", path)
    with pytest.raises(DatabaseUnavailable), database.write():
        pass
    assert path.read_bytes().startswith(b"no database")


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr%40t@127.0.0.1:1/nowhere",
        "postgresql://me@127.0.0.1:1/nowhere?password=s3cr%40t",
        "postgresql://me:s3cr%40t@[::1/nowhere",
        "postgresql://me:s3cr%40t@127.0.0.1:x/nowhere?connect_timeout=s3cr%40t",
        "mysql://me:s3cr%40t@host/db",
    ],
)
def test_a_password_is_never_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(HomelabError) as caught:
        database = Database.open(url, tmp_path / "system.db")
        with database.read():
            pass
    shown = f"{caught.value} {caught.value.as_dict()!r} {Address.of('', tmp_path)!r}"
    assert "s3cr" not in shown
    assert caught.value.code in ("database_unavailable", "invalid_input")


def test_an_address_says_where_without_saying_who(tmp_path: Path) -> None:
    address = Address.of("postgresql://me:pw@db.lan:5433/llm?sslmode=require&schema=a", tmp_path)
    assert (str(address), address.schema) == ("postgresql://db.lan:5433/llm?schema=a", "a")
    assert address.url == "postgresql://me:pw@db.lan:5433/llm?sslmode=require"
    assert "pw" not in repr(address)
    assert str(Address.of("", tmp_path / "system.db")) == str(tmp_path / "system.db")
    assert Address.of("sqlite:////srv/a.db", tmp_path).path == Path("/srv/a.db")
    for wrong in ("sqlite:///", "sqlite://x", "postgresql://h/d?schema=A;drop", "x"):
        with pytest.raises(InvalidInput):
            Address.of(wrong, tmp_path)


@pytest.mark.requirement("R-D1")
def test_a_server_that_dropped_every_connection_is_used_again(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url()
    migrate(Address.of(url, tmp_path), tmp_path / "backups")
    database = Database.open(url, tmp_path / "system.db")
    assert count(database) == 0
    postgres.execute(_DROP_OTHERS)
    assert count(database) == 0
    with pytest.raises(DatabaseUnavailable), database.write() as connection:
        postgres.execute(_DROP_OTHERS)
        connection.execute(slots.insert().values(port=8100, alias="a"))
    assert count(database) == 0
    database.close()
