"""Migrate: bring a database to the newest schema. Runs as a program of its own, because Alembic is heavy.

    python -m homelab_llm.data.migrate  < {"url": "…", "home_root": "…"}

Everything happens in one transaction, after a copy was made: killed at any moment, the schema is the old one or the
new one. One migration runs at a time; who comes second finds nothing left to do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.failpoints import failpoint
from homelab_llm.data.address import Address
from homelab_llm.data.backup import back_up
from homelab_llm.data.creation import migration_lock
from homelab_llm.data.database import MIGRATION, Database, advisory_lock, translate
from homelab_llm.data.schema import HEAD, is_current, revision_of

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(address: Address, backups: Path, *, scripts: Path = SCRIPTS, head: str = HEAD) -> bool:
    """Bring the database to revision ``head``; False when it was already there.

    Args:
        backups: a folder; a copy is made there when there is something to copy.
        scripts: Alembic's folder of revisions.

    Raises:
        SchemaTooNew, DatabaseUnavailable, StoreBusy.
        OSError: the copy could not be written; nothing was changed.
    """
    database = Database(address)
    try:
        with _alone(database):
            if is_current(address, head):
                return False
            if found := revision_of(address):
                back_up(database, backups, found)
            failpoint("migration.before")
            with database.write() as connection:
                _run(connection, scripts, head)
                failpoint("migration.inside")
            failpoint("migration.after")
            return True
    finally:
        database.close()


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Hold the one lock of migrations of this database."""
    address = database.address
    if address.dialect == "sqlite":
        with migration_lock(address.path):
            address.path.touch(mode=0o600)
            yield
        return
    try:
        with database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(advisory_lock("pg_advisory_lock", MIGRATION, address.schema))
            if address.schema:
                connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {address.schema}")
            try:
                yield
            finally:
                connection.invalidate()  # its end is the end of the lock
    except SQLAlchemyError as error:
        raise translate(error, address) from error


def _run(connection: Connection, scripts: Path, head: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, head)


def main() -> int:
    """Read what to do from standard input; an error is one JSON object on standard error."""
    told = json.loads(sys.stdin.buffer.read())
    home_root = Path(told["home_root"])
    try:
        migrate(Address.of(told["url"], home_root / "system.db"), home_root / "backups")
    except HomelabError as error:
        print(json.dumps(error.as_dict()), file=sys.stderr)  # noqa: T201 — the last words the parent reads
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
