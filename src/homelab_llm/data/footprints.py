"""Footprints: the memory that loaded models were seen to take, remembered across restarts."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, select

from homelab_llm.data.database import Database
from homelab_llm.data.tables import footprints, models


class Footprints:
    """Asked and told on the event loop; memory only, written by whoever ``write_later`` gives the work to."""

    def __init__(
        self,
        write_later: Callable[[Callable[[Connection], None]], None],
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._write_later = write_later
        self._unix_s = unix_s
        self._known: dict[str, int] = {}

    def load(self, database: Database) -> None:
        """Read what is known; blocks.

        Raises:
            DatabaseUnavailable: it cannot be read.
        """
        with database.read() as connection:
            rows = connection.execute(select(footprints.c.key, footprints.c.measured_bytes))
            self._known = {str(row.key): int(row.measured_bytes) for row in rows}

    def known_bytes(self, key: str) -> int:
        """What a model with these options was seen to take; 0 = never seen."""
        return self._known.get(key, 0)

    def learned(self, key: str, digest: str, measured_bytes: int) -> None:
        """A loaded model takes this much."""
        if self._known.get(key) == measured_bytes:
            return
        self._known[key] = measured_bytes
        now_s = self._unix_s()
        self._write_later(lambda connection: _keep(connection, key, digest, measured_bytes, now_s))


def _keep(connection: Connection, key: str, digest: str, measured_bytes: int, now_s: float) -> None:
    values = {"digest": digest, "measured_bytes": measured_bytes, "measured_unix_s": now_s}
    if connection.execute(footprints.update().where(footprints.c.key == key).values(values)).rowcount == 0:
        connection.execute(footprints.insert().values(key=key, **values))
    connection.execute(models.update().where(models.c.digest == digest).values(footprint_measured_bytes=measured_bytes))
