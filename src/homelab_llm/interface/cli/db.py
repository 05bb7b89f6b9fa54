"""``mlxctl db``: the system database. Works with and without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from homelab_llm.data.address import Address
    from homelab_llm.data.database import Database

_HERE = "homelab_llm.interface.cli.db"
_NAMES = ("status", "upgrade", "query", "backup", "vacuum", "copy")


@click.group("db", cls=LazyGroup, verbs={name: f"{_HERE}:{name}" for name in _NAMES})
def db() -> None:
    """Look into the system database, copy it, keep it small."""


@contextmanager
def opened(invocation: Invocation) -> Iterator[Database]:
    """The database of this home for a block, brought to the newest schema first."""
    from homelab_llm.data.database import Database
    from homelab_llm.data.upgrade import upgraded

    url = invocation.settings.data.url
    upgraded(invocation.home.root, url)
    database = Database.open(url, invocation.home.database)
    try:
        yield database
    finally:
        database.close()


def _address(invocation: Invocation) -> Address:
    from homelab_llm.data.address import Address

    return Address.of(invocation.settings.data.url, invocation.home.database)


@verb("status")
def status(invocation: Invocation) -> None:
    """Show where the database is, its schema, size, tables and copies; changes nothing."""
    from homelab_llm.core.units import format_bytes
    from homelab_llm.data.condition import condition

    found = condition(_address(invocation), invocation.home.backups)
    lines = [
        f"database  {found.address} ({found.dialect})",
        f"schema    {found.revision or 'none'}" + ("" if found.current else f" (newest: {found.newest})"),
        f"size      {format_bytes(found.size_bytes)}",
        f"copies    {len(found.backups)} in {invocation.home.backups}",
    ]
    lines += ["", *(f"{name:24}{rows:>10}" for name, rows in found.rows.items()), "", *found.views]
    invocation.output.result(found.as_dict(), lambda: lines)
    if not found.current:
        invocation.output.warning("the schema is not the newest", "mlxctl db upgrade")


@verb("upgrade")
def upgrade(invocation: Invocation) -> None:
    """Bring the database to the newest schema; a copy of an older one is made first.

    The daemon does it too when it starts.
    """
    from homelab_llm.data.schema import HEAD
    from homelab_llm.data.upgrade import upgraded

    done = upgraded(invocation.home.root, invocation.settings.data.url)
    text = f"upgraded to schema {HEAD}" if done else f"schema {HEAD} is the newest; nothing to do"
    invocation.output.result({"upgraded": done, "schema": HEAD}, text)


@verb("query")
@click.argument("sql")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Most rows shown.")
def query(invocation: Invocation, sql: str, limit: int) -> None:
    """Run one SELECT, which can change nothing: mlxctl db query 'SELECT * FROM v_service_health'."""
    from homelab_llm.data.query import ask
    from homelab_llm.data.upgrade import upgraded
    from homelab_llm.interface.cli.output import escape_line

    upgraded(invocation.home.root, invocation.settings.data.url)
    answer = ask(_address(invocation), sql, limit=limit)
    rows = ([_shown(value) for value in row] for row in answer.rows)
    data = {"columns": list(answer.columns), "rows": [list(row) for row in answer.rows], "more": answer.more}
    invocation.output.table([escape_line(name) for name in answer.columns], rows, data)
    if answer.more:
        invocation.output.note(f"there are more rows than {limit}: --limit N shows more")


@verb("backup")
@click.argument("path", required=False, type=click.Path(path_type=Path, dir_okay=False))
def backup(invocation: Invocation, path: Path | None) -> None:
    """Copy the database into one SQLite file, while others use it; else into HOME/backups, which keeps five."""
    from homelab_llm.data.backup import back_up, copy_to_file
    from homelab_llm.data.schema import HEAD

    with opened(invocation) as database:
        made = copy_to_file(database, path.absolute()) if path else back_up(database, invocation.home.backups, HEAD)
    invocation.output.result({"path": str(made), "size_bytes": made.stat().st_size}, str(made))


@verb("vacuum")
def vacuum(invocation: Invocation) -> None:
    """Delete what is older than data.keep_requests and data.keep_events, and give the space back."""
    from homelab_llm.core.units import format_bytes
    from homelab_llm.data.retention import Retention, compact

    settings = invocation.settings.data
    with opened(invocation) as database:
        deleted = Retention(database, settings.keep_requests, settings.keep_events).sweep()
        freed_bytes = compact(database)
    text = f"deleted {deleted} rows, freed {format_bytes(freed_bytes)}"
    invocation.output.result({"deleted": deleted, "freed_bytes": freed_bytes}, text)


@verb("copy")
@click.option("--to", "target_url", required=True, metavar="URL", help="postgresql://… or sqlite:////path.")
@click.option("--force", is_flag=True, help="Empty the target first.")
def copy(invocation: Invocation, target_url: str, force: bool) -> None:
    """Copy every row into another database, PostgreSQL or SQLite, which is made ready first.

    What is recorded meanwhile is not in it: stop the daemon before, and set data.url afterwards.
    """
    from homelab_llm.core.errors import InvalidInput
    from homelab_llm.data.copying import copy_database
    from homelab_llm.data.database import Database
    from homelab_llm.data.upgrade import upgraded

    home = invocation.home
    target = Database.open(target_url, home.database)
    try:
        if target.address == _address(invocation):
            raise InvalidInput("this is the database itself", field="to")
        upgraded(home.root, target_url)
        with opened(invocation) as source, invocation.output.loading(f"copying to {target.address}") as progress:
            told = _told(progress)
            copied = copy_database(source, target, force=force, progress=told)
    finally:
        target.close()
    total = sum(copied.values())
    invocation.output.result({"rows": copied, "total": total}, f"copied {total} rows to {target.address}")


def _told(progress: Any) -> Any:
    return lambda table, done, total: progress.update(table, done / max(total, 1), 1)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
