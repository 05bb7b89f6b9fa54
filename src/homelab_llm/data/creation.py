"""Creation: a new SQLite database of the newest schema, from one script, in a few milliseconds. Standard library only.

The script is what all migrations lead to, written by ``make docs`` and held against them by a test. Whatever is there
already, an empty file excepted, is left to the migrations.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from homelab_llm.core.errors import DatabaseUnavailable
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.locks import locked
from homelab_llm.data.address import Address

SCRIPT = Path(__file__).parent / "migrations" / "newest.sql"
_WAIT_S = 120.0


def migration_lock(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the one lock of whoever changes the schema of this file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return locked(path.with_name(f".{path.name}.migration"), wait_s=_WAIT_S)


def created(address: Address) -> bool:
    """Make the database if nothing is there; False when something is. Killed at any moment, it has all tables or none.

    Raises:
        DatabaseUnavailable: it cannot be written.
        StoreBusy: somebody else is at it, and takes too long.
    """
    path = address.path
    try:
        with migration_lock(path):
            if path.exists() and path.stat().st_size > 0:
                return False
            path.touch(mode=0o600)
            failpoint("migration.before")
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=WAL").close()
                connection.executescript(f"BEGIN IMMEDIATE;\n{SCRIPT.read_text('utf-8')}")
                failpoint("migration.inside")
                connection.execute("COMMIT").close()
            failpoint("migration.after")
            return True
    except (sqlite3.Error, OSError) as error:
        raise DatabaseUnavailable(
            f"the database {address} cannot be made: {error}", hint="mlxctl doctor shows free space and rights"
        ) from error


def script_of(path: Path) -> str:
    """The script that makes a database such as the one at ``path``, rows included; the same for the same schema."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = [line for line in connection.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
    later = ("CREATE INDEX", "CREATE VIEW")  # these come in an order of chance
    lines = [line for line in found if not line.startswith(later)]
    return "\n".join([*lines, *sorted(line for line in found if line.startswith(later)), ""])
