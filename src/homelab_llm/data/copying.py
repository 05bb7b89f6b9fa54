"""Copying: every row of one system database into another, whatever the two dialects are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from sqlalchemy import Column, Connection, ForeignKeyConstraint, MetaData, Table, func, inspect, select, text

from homelab_llm.core.errors import AlreadyExists, InternalError
from homelab_llm.data.database import Database
from homelab_llm.data.tables import key_meta, metadata, registry_meta

Progress = Callable[[str, int, int], None]
"""Told after each batch: table, rows copied, rows in all."""

_BATCH = 2000
_ONE_ROW = (registry_meta.name, key_meta.name)  # a new database has them already


def copy_database(
    source: Database, target: Database, *, force: bool = False, progress: Progress = lambda *_: None
) -> dict[str, int]:
    """Copy all rows between two databases of the newest schema; returns the rows of each table.

    One transaction on either side: the target has all of it or nothing.

    Args:
        force: empty the target first, in the same transaction.

    Raises:
        AlreadyExists: the target is not empty and ``force`` is not set.
        DatabaseUnavailable: either cannot be used.
        InternalError: the target does not hold as many rows as were read; nothing was kept.
    """
    with source.read() as reader, target.write() as writer:
        taken = {table.name: _count(writer, table) for table in metadata.sorted_tables if table.name not in _ONE_ROW}
        if any(taken.values()) and not force:
            full = ", ".join(f"{name} ({rows})" for name, rows in taken.items() if rows)
            raise AlreadyExists(f"the target is not empty: {full}", hint="--force empties it first")
        for table in reversed(metadata.sorted_tables):
            writer.execute(table.delete())
        copied = {table.name: _copy(reader, writer, table, progress) for table in metadata.sorted_tables}
        if target.dialect == "postgresql":
            _reset_sequences(writer)
    return copied


def copy_as_found(source: Database, target: Database) -> None:
    """Copy tables and rows as they are, of whatever schema, into an empty SQLite file; views are left out."""
    found = MetaData()
    with source.read() as reader, target.write() as writer:
        found.reflect(reader)
        plain = MetaData()
        for table in found.sorted_tables:
            _portable(table, plain)
        plain.create_all(writer)
        for table in plain.sorted_tables:
            _copy(reader, writer, table, lambda *_: None)


def _portable(table: Table, into: MetaData) -> Table:
    columns = [
        Column(column.name, column.type.as_generic(), primary_key=column.primary_key, nullable=column.nullable)
        for column in table.columns
    ]
    keys = [
        ForeignKeyConstraint(key.column_keys, [f"{e.column.table.name}.{e.column.name}" for e in key.elements])
        for key in table.foreign_key_constraints
    ]
    return Table(table.name, into, *columns, *keys)


def _copy(reader: Connection, writer: Connection, table: Table, progress: Progress) -> int:
    total = _count(reader, table)
    done = 0
    for batch in _batches(reader, table):
        writer.execute(table.insert(), batch)
        done += len(batch)
        progress(table.name, done, total)
    if _count(writer, table) != total or done != total:
        raise InternalError(f"{table.name}: {done} of {total} rows were copied", hint="try again")
    return total


def _batches(reader: Connection, table: Table) -> Iterator[list[dict[str, object]]]:
    rows = reader.execution_options(yield_per=_BATCH).execute(select(table).order_by(*table.primary_key.columns))
    with closing(rows):
        for batch in rows.mappings().partitions(_BATCH):
            yield [dict(row) for row in batch]


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _reset_sequences(connection: Connection) -> None:
    """Rows came with their numbers; the next number of a sequence must be beyond them."""
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is None or not inspect(connection).has_table(table.name):
            continue
        connection.execute(
            text(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', '{column.name}'), "  # noqa: S608
                f"(SELECT COALESCE(MAX({column.name}), 0) + 1 FROM {table.name}), false)"
            )
        )
