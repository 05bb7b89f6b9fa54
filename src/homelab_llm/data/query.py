"""Query: one SELECT on the system database that can change nothing, whatever its text says.

SQLite: the file is opened read-only, and an authorizer allows reading and functions alone. PostgreSQL: a read-only
transaction, and the text becomes the query of a cursor, which takes nothing but a SELECT.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from homelab_llm.core.errors import DatabaseUnavailable, InvalidInput
from homelab_llm.data.address import Address


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query returned; ``more`` when there were rows beyond the limit."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


def ask(address: Address, sql: str, *, limit: int) -> Answer:
    """Run one SELECT and return at most ``limit`` rows; blocks.

    Raises:
        InvalidInput: not one SELECT, or one that the database refuses; the message is the database's.
        DatabaseUnavailable: it cannot be opened.
    """
    statement = sql.strip().rstrip(";").strip()
    if not statement:
        raise InvalidInput("an empty query", hint="mlxctl db query 'SELECT * FROM v_service_health'", field="sql")
    if any(mark == "\x00" or "\ud800" <= mark <= "\udfff" for mark in statement):
        raise _refused("it holds characters that are no text")
    run = _ask_sqlite if address.dialect == "sqlite" else _ask_postgresql
    columns, rows = run(address, statement, limit + 1)
    return Answer(columns, tuple(rows[:limit]), len(rows) > limit)


_Rows = tuple[tuple[str, ...], Sequence[tuple[Any, ...]]]
_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


def _authorize(action: int, _first: str | None, second: str | None, *_: str | None) -> int:
    # the second argument of a function's request is its name
    if action not in _READING or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _ask_sqlite(address: Address, statement: str, limit: int) -> _Rows:
    try:
        connection = sqlite3.connect(f"file:{quote(str(address.path))}?mode=ro", uri=True, timeout=30)
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"the database {address} cannot be opened: {error}") from error
    with contextlib.closing(connection):
        connection.execute("PRAGMA query_only=ON").close()
        connection.set_authorizer(_authorize)
        try:
            cursor = connection.execute(statement)
            if cursor.description is None:
                raise _refused("this is not a SELECT")
            return tuple(column[0] for column in cursor.description), cursor.fetchmany(limit)
        except (sqlite3.Error, sqlite3.Warning) as error:
            denied = "not authorized" in str(error)
            raise _refused("only reading is allowed here" if denied else str(error)) from error


def _ask_postgresql(address: Address, statement: str, limit: int) -> _Rows:
    from homelab_llm.data.postgresql import connect, psycopg

    try:
        connection = connect(address)
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"the database {address} cannot be opened: {address.hide(str(error))}") from error
    with contextlib.closing(connection):
        connection.read_only = True
        try:
            cursor = connection.cursor()
            # prepared: the server then takes exactly one statement
            cursor.execute(b"DECLARE asked NO SCROLL CURSOR FOR " + statement.encode(), prepare=True)
            cursor.execute(b"FETCH %d FROM asked" % limit)
            columns = tuple(column.name for column in cursor.description or ())
            return columns, cursor.fetchall()
        except psycopg.Error as error:
            raise _refused(str(error).splitlines()[0]) from error


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"the query was refused: {reason}", hint="mlxctl db status names tables and views", field="sql")
