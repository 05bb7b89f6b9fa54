"""Backup: a whole copy of the system database in one SQLite file, made while others read and write."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from pathlib import Path

from homelab_llm.core.atomic import publish
from homelab_llm.core.errors import DatabaseUnavailable
from homelab_llm.data.address import Address
from homelab_llm.data.copying import copy_as_found
from homelab_llm.data.database import Database

KEPT = 5
_PATTERN = "system-*.db"


def back_up(database: Database, folder: Path, revision: str) -> Path:
    """Copy into ``folder``, named by time and revision; the newest five such copies are kept.

    Raises:
        DatabaseUnavailable: the database cannot be read.
        OSError: the copy cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now_ns = time.time_ns()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // 10**9))
    path = copy_to_file(database, folder / f"system-{stamp}.{now_ns // 1000 % 10**6:06}Z-{revision or 'empty'}.db")
    for old in sorted(folder.glob(_PATTERN))[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def copy_to_file(database: Database, path: Path) -> Path:
    """A consistent copy at ``path``, whole or not at all; replaces what is there.

    Raises:
        DatabaseUnavailable, OSError: as ``back_up``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if database.dialect == "sqlite":
            _copy_sqlite(database.address.path, temporary)
        else:
            target = Database(Address("sqlite", path=temporary))
            with contextlib.closing(target):
                copy_as_found(database, target)
        _settle(temporary)
        publish(temporary, path)
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"no copy could be made: {error}", hint="mlxctl db status") from error
    finally:
        for leftover in (temporary, *(temporary.with_name(temporary.name + end) for end in ("-wal", "-shm"))):
            leftover.unlink(missing_ok=True)
    return path


def _copy_sqlite(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as reader:
        with contextlib.closing(sqlite3.connect(target)) as writer:
            reader.backup(writer)


def _settle(path: Path) -> None:
    """One file, on the disk: a copy must not need a log beside it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").close()
    path.chmod(0o600)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
