"""Glance: what a SQLite system database says of models and ports, for a command that must answer at once.

Standard library only, read-only, one query. Whoever changes anything takes ``registry.py``.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from homelab_llm.core.errors import DatabaseUnavailable

_QUERY = """
SELECT e.slug, e.model_id, e.repo_id, e.format, e.cache_path = '' AS wanted, e.pinned, a.port
FROM registry_entries AS e LEFT JOIN assignments AS a ON a.desired = e.slug
ORDER BY e.slug
"""
_WAIT_S = 5.0  # for a writer; readers do not wait for each other


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A registered model: ``port`` is the slot that shall serve it, 0 = none; ``wanted``: it is not stored yet."""

    slug: str
    model_id: str
    repo_id: str = ""
    format: str = ""
    wanted: bool = False
    pinned: bool = False
    port: int = 0


def glance(database: Path) -> list[Glimpse]:
    """The registered models by slug; none where there is no database, or nothing in it yet.

    Raises:
        DatabaseUnavailable: it is there and cannot be read.
    """
    if not database.exists():
        return []
    try:
        connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=_WAIT_S)
        with contextlib.closing(connection):
            rows = connection.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return []
        raise DatabaseUnavailable(
            f"the database {database} cannot be read: {error}",
            hint="mlxctl doctor, or restore a copy from HOME/backups",
        ) from error
    return [
        Glimpse(slug, model_id, repo_id, form, wanted=bool(wanted), pinned=bool(pinned), port=port or 0)
        for slug, model_id, repo_id, form, wanted, pinned, port in rows
    ]
