"""Schema: which revision a database has, told by one cheap read. Imports only what the dialect's driver needs."""

from __future__ import annotations

import contextlib
import sqlite3
from urllib.parse import quote

from homelab_llm.core.errors import DatabaseUnavailable, SchemaTooNew
from homelab_llm.data.address import Address

HEAD = "0003"  # the newest revision of data/migrations
_READ = "SELECT version_num FROM alembic_version"


def is_current(address: Address, head: str = HEAD) -> bool:
    """Whether the database has the newest revision; False also when there is no database yet.

    Args:
        head: the newest revision that is known.

    Raises:
        SchemaTooNew: a newer version of this product wrote it.
        DatabaseUnavailable: it is there and cannot be read.
    """
    found = revision_of(address)
    if found > head:  # revisions are numbers of four digits
        raise SchemaTooNew(
            f"the database {address} was written by a newer version (schema {found}, this version knows {head})",
            hint="install that version again, or restore a copy from HOME/backups",
            found=found,
            known=head,
        )
    return found == head


def revision_of(address: Address) -> str:
    """The revision of a database; empty when there is none, or nothing in it.

    Raises:
        DatabaseUnavailable: it is there and cannot be read.
    """
    return _sqlite_revision(address) if address.dialect == "sqlite" else _postgresql_revision(address)


def _sqlite_revision(address: Address) -> str:
    if not address.path.exists():
        return ""
    try:
        connection = sqlite3.connect(f"file:{quote(str(address.path))}?mode=ro", uri=True, timeout=10)
        with contextlib.closing(connection):
            row = connection.execute(_READ).fetchone()
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return ""
        raise DatabaseUnavailable(
            f"the database {address} cannot be read: {error}",
            hint="restore a copy from HOME/backups, or move the file away to begin anew",
        ) from error
    return str(row[0]) if row else ""


def _postgresql_revision(address: Address) -> str:
    from homelab_llm.data.postgresql import connect, psycopg

    try:
        with contextlib.closing(connect(address)) as connection:
            row = connection.execute(_READ).fetchone()
    except psycopg.errors.UndefinedTable:
        return ""
    except psycopg.Error as error:
        reason = address.hide(str(error).splitlines()[0])
        raise DatabaseUnavailable(
            f"the database {address} cannot be read: {reason}", hint="mlxctl db status"
        ) from error
    return str(row[0]) if row else ""
