"""A query reads, and nothing else, on SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

from homelab_llm.core.errors import InvalidInput
from homelab_llm.data.database import Database
from homelab_llm.data.query import ask
from homelab_llm.data.tables import slots


@pytest.fixture
def filled(database: Database) -> Database:
    with database.write() as connection:
        connection.execute(slots.insert(), [{"port": port, "alias": f"s{port}"} for port in range(1, 8)])
    return database


@pytest.mark.requirement("R-D1", "B-13")
def test_a_query_answers_up_to_its_limit_and_says_that_there_is_more(filled: Database) -> None:
    answer = ask(filled.address, "SELECT port, alias FROM slots ORDER BY port ; ", limit=3)
    assert answer.columns == ("port", "alias")
    assert answer.rows == ((1, "s1"), (2, "s2"), (3, "s3"))
    assert answer.more
    assert not ask(filled.address, "SELECT * FROM slots WHERE alias LIKE 's%'", limit=7).more
    assert ask(filled.address, "WITH x AS (SELECT 1 AS n) SELECT n FROM x", limit=7).rows == ((1,),)
    assert ask(filled.address, "SELECT * FROM v_slot_drift", limit=100).columns[0] == "port"


@pytest.mark.requirement("R-D1", "R-S2")
@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "DELETE FROM slots",
        "UPDATE slots SET alias = 'x'",
        "INSERT INTO slots VALUES (99, 'x')",
        "DROP TABLE slots",
        "SELECT 1; DELETE FROM slots",
        "SELECT 1; SELECT 2",
        "WITH gone AS (DELETE FROM slots RETURNING port) SELECT * FROM gone",
        "BEGIN",
        "COMMIT",
        "PRAGMA query_only=OFF",
        "PRAGMA journal_mode=DELETE",
        "ATTACH DATABASE '/tmp/x.db' AS x",
        "VACUUM",
        "COPY slots TO '/tmp/hl-copied'",
        "COPY slots TO PROGRAM 'cat'",
        "SET TRANSACTION READ WRITE",
        "SELECT * FROM slots FOR UPDATE",
        "SELECT load_extension('x')",
        "CREATE TEMP TABLE t AS SELECT 1",
        "SELECT nix FROM slots",
        "SELECT \x00",
        "SELECT '\ud800'",
    ],
)
def test_what_is_not_one_select_is_refused_and_changes_nothing(filled: Database, sql: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ask(filled.address, sql, limit=10)
    assert caught.value.code == "invalid_input"
    with filled.read() as connection:
        assert connection.execute(select(func.count()).select_from(slots)).scalar_one() == 7
    assert not Path("/tmp/hl-copied").exists()
