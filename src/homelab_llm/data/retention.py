"""Retention: requests and events older than the settings say are deleted, a little at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Column, Table, delete, select

from homelab_llm.data.database import Database
from homelab_llm.data.tables import deployments, events, jobs, metadata, requests

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, and for how long. Deployments and jobs that ended go with the events that told of them."""

    database: Database
    keep_requests_s: float
    keep_events_s: float
    unix_s: Callable[[], float] = time.time

    def sweep(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Delete what is too old and return how many rows that were; blocks.

        Args:
            stopped: asked between two small transactions; True ends the sweep early.

        Raises:
            DatabaseUnavailable: what was deleted so far stays deleted.
        """
        now_s = self.unix_s()
        oldest = (
            (requests, requests.c.started_unix_s, now_s - self.keep_requests_s),
            (events, events.c.unix_s, now_s - self.keep_events_s),
            (deployments, deployments.c.ended_unix_s, now_s - self.keep_events_s),
            (jobs, jobs.c.finished_unix_s, now_s - self.keep_events_s),
        )
        return sum(self._delete(table, time_column, before_s, stopped) for table, time_column, before_s in oldest)

    def _delete(self, table: Table, time_column: Column[float], before_s: float, stopped: Callable[[], bool]) -> int:
        (key,) = table.primary_key.columns
        old = select(key).where(time_column < before_s).limit(_BATCH)
        deleted = 0
        while not stopped():
            with self.database.write() as connection:
                count = connection.execute(delete(table).where(key.in_(old.scalar_subquery()))).rowcount
            deleted += count
            if count < _BATCH:
                break
        return deleted


def compact(database: Database) -> int:
    """Give the space of deleted rows back to the system; returns the bytes that were freed. Blocks, others wait.

    Raises:
        DatabaseUnavailable: somebody else used it for too long; nothing was changed.
    """
    before_bytes = size_bytes(database)
    with database.outside_transactions() as connection:
        if database.dialect == "sqlite":
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            for table in metadata.sorted_tables:
                connection.exec_driver_sql(f"VACUUM (ANALYZE) {table.name}")
    return max(0, before_bytes - size_bytes(database))


def size_bytes(database: Database) -> int:
    """What the database takes on the disk: its files, or its tables with indexes.

    Raises:
        DatabaseUnavailable: it cannot be read.
    """
    if database.dialect == "sqlite":
        path = database.address.path
        files = (path, path.with_name(f"{path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    names = ", ".join(f"'{table.name}'" for table in metadata.sorted_tables)
    sizes = "SELECT COALESCE(SUM(pg_total_relation_size(c.oid)), 0) FROM pg_class c"
    where = (
        f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND c.relname IN ({names})"
    )
    with database.read() as connection:
        return int(connection.exec_driver_sql(sizes + where).scalar_one())
