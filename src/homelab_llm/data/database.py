"""Database: transactions on the system database, the same on SQLite and PostgreSQL.

Writers are serial: whoever is inside ``write`` reads what no other writer will change before the commit. SQLite does
it with ``BEGIN IMMEDIATE``, PostgreSQL with an advisory lock of the schema that ends with the transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from homelab_llm.core.errors import DaemonRunning, DatabaseUnavailable, HomelabError, InternalError
from homelab_llm.data.address import Address, Dialect

BUSY_S = 60.0
CLAIM_S = 5.0
_POLL_S = 0.05
_WRITERS, _DAEMON = 0x686C01, 0x686C03  # classes of advisory locks; the second half of a lock is the schema
MIGRATION = 0x686C02


class Database:
    """The system database. Connections are opened when first needed and may be used from any thread.

    Args:
        durable: a commit survives a power cut. Without it the last commits may be lost then (never a crash of this
            process, and nothing is ever damaged), and PostgreSQL's writers are not serial: for records only.
        busy_s: how long a writer waits for others.
    """

    def __init__(self, address: Address, *, durable: bool = True, busy_s: float = BUSY_S) -> None:
        self.address = address
        self._durable = durable
        self._claim: Connection | None = None
        make = _sqlite if address.dialect == "sqlite" else _postgresql
        self._engine = make(address, durable, busy_s)

    @classmethod
    def open(cls, url: str, sqlite_path: Path, *, durable: bool = True, busy_s: float = BUSY_S) -> Database:
        """The database of the setting ``data.url``; nothing is created, nothing is connected yet.

        Raises:
            InvalidInput: not an address of a database.
            DatabaseUnavailable: the driver is not installed.
        """
        return cls(Address.of(url, sqlite_path), durable=durable, busy_s=busy_s)

    @property
    def dialect(self) -> Dialect:
        return self.address.dialect

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for who needs more than a transaction (migrations, copies)."""
        return self._engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of everything, for the block.

        Raises:
            DatabaseUnavailable: it cannot be opened or read.
        """
        with self._translated(), self._engine.connect() as connection:
            if self.dialect == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in one transaction, committed at the end of the block and undone when it raises.

        Raises:
            DatabaseUnavailable: it cannot be opened or written, or others wrote for too long.
        """
        with self._translated(), self._engine.connect() as connection:
            connection.execution_options(homelab_writes=True)
            with connection.begin():
                if self.dialect == "postgresql" and self._durable:
                    connection.execute(advisory_lock("pg_advisory_xact_lock", _WRITERS))
                yield connection

    @contextmanager
    def outside_transactions(self) -> Iterator[Connection]:
        """A connection whose statements stand alone, for what cannot run in a transaction (``VACUUM``).

        Raises:
            DatabaseUnavailable: as ``write``.
        """
        with self._translated(), self._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT", homelab_alone=True)
            yield connection

    def claim(self, wait_s: float = CLAIM_S) -> None:
        """Be the one daemon of this PostgreSQL schema until ``release`` or ``close``. SQLite: the home's lock says so.

        Args:
            wait_s: how long to wait for a daemon that just ended or is handing over.

        Raises:
            DaemonRunning: another daemon is; the message says which.
            DatabaseUnavailable: as ``read``.
        """
        if self.dialect == "sqlite" or self._claim is not None:
            return
        deadline_s = time.monotonic() + wait_s
        with self._translated():
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            while not connection.execute(advisory_lock("pg_try_advisory_lock", _DAEMON)).scalar():
                if time.monotonic() >= deadline_s:
                    holder = connection.execute(_HOLDER, {"lock": _DAEMON}).scalar() or "unknown"
                    connection.close()
                    raise DaemonRunning(
                        f"another daemon uses {self.address} ({holder})",
                        hint="give this one a schema of its own: ?schema=NAME",
                    )
                time.sleep(_POLL_S)
            connection.detach()  # the pool must never take it back and reset it
            self._claim = connection

    def release(self) -> None:
        """End the claim, if there is one; another daemon may take it at once."""
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def close(self) -> None:
        """Close every connection. Using the database again opens new ones."""
        self.release()
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise translate(error, self.address) from error


def advisory_lock(function: str, kind: int, schema: str = "") -> Any:
    """``SELECT`` of an advisory lock function; the lock is that of this kind and schema, else the connection's."""
    which = f"'{schema}'" if schema else "current_schema()"
    return text(f"SELECT {function}({kind}, hashtext({which}))")


_HOLDER = text(
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' "
    "AND l.granted AND l.classid::bigint = :lock AND l.database = (SELECT oid FROM pg_database "
    "WHERE datname = current_database()) AND l.objid = hashtext(current_schema())::bit(32)::bigint::oid"
)


def translate(error: SQLAlchemyError, address: Address) -> HomelabError:
    """The error of our tree; one line, without statement, values or password."""
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip() or type(error).__name__
    shown = address.hide(reason.splitlines()[0])[:300]
    if isinstance(error, IntegrityError | DataError):
        return InternalError(f"the database refused a value: {shown}")
    missing = "no such table" in reason or "does not exist" in reason
    return DatabaseUnavailable(
        f"the database {address} cannot be used: {shown}",
        hint="mlxctl db upgrade" if missing else "mlxctl db status",
    )


def _sqlite(address: Address, durable: bool, busy_s: float) -> Engine:
    engine = create_engine(
        "sqlite://",
        creator=lambda: _sqlite_connection(address.path, durable, busy_s),
        poolclass=QueuePool,
        pool_size=2,
        max_overflow=-1,
    )
    event.listen(engine, "begin", _begin)
    return engine


def _sqlite_connection(path: Path, durable: bool, busy_s: float) -> Any:
    import sqlite3

    # isolation_level None: transactions begin and end where we say so, also around CREATE TABLE
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode=WAL", f"synchronous={'FULL' if durable else 'NORMAL'}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    return connection


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("homelab_alone"):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("homelab_writes") else "BEGIN")


def _postgresql(address: Address, durable: bool, busy_s: float) -> Engine:
    from homelab_llm.data.postgresql import connect

    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(address, durable=durable, busy_s=busy_s),
        pool_pre_ping=True,
        pool_size=2,
        max_overflow=20,
    )
