"""Condition: what can be said of the system database without changing it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, inspect, select

from homelab_llm.data.address import Address
from homelab_llm.data.database import Database
from homelab_llm.data.retention import size_bytes
from homelab_llm.data.schema import HEAD, revision_of
from homelab_llm.data.tables import metadata
from homelab_llm.data.views import VIEWS


@dataclass(frozen=True, slots=True)
class Condition:
    """``revision`` is empty when there is no database yet; ``rows`` counts those of each table."""

    address: str
    dialect: str
    revision: str
    newest: str = HEAD
    size_bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    views: tuple[str, ...] = ()
    backups: tuple[str, ...] = ()

    @property
    def current(self) -> bool:
        return self.revision == self.newest

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"current": self.current}


def condition(address: Address, backups: Path) -> Condition:
    """Look; blocks.

    Raises:
        DatabaseUnavailable: it is there and cannot be read.
    """
    copies = tuple(sorted(path.name for path in backups.glob("system-*.db")))
    revision = revision_of(address)
    if not revision:
        return Condition(str(address), address.dialect, "", backups=copies)
    with closing(Database(address)) as database:
        with database.read() as connection:
            there = set(inspect(connection).get_table_names())
            rows = {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
                if table.name in there
            }
        return Condition(
            str(address),
            address.dialect,
            revision,
            size_bytes=size_bytes(database),
            rows=dict(sorted(rows.items())),
            views=tuple(VIEWS),
            backups=copies,
        )
