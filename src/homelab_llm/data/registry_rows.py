"""Rows of the registry: the state read from its tables and changes written to them, in a transaction of the caller."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, Table, bindparam, select

from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.registry.state import Assignment, RegistryState
from homelab_llm.data.tables import assignments, registry_entries, registry_exports, registry_meta, slots

# Entry's fields in their order, each with its column; three are kept as JSON texts.
_JSON_COLUMNS = {"request_params_json": "request_params", "flags_json": "flags", "extra_json": "extra"}
_FIELDS = tuple(field.name for field in fields(Entry))
_COLUMNS = tuple(f"{name}_json" if f"{name}_json" in _JSON_COLUMNS else name for name in _FIELDS)
_JSON_POSITIONS = tuple(_COLUMNS.index(name) for name in _JSON_COLUMNS)
_FLAGS = _FIELDS.index("flags")
_ENTRIES = select(*(registry_entries.c[name] for name in _COLUMNS))
_ASSIGNMENTS = select(assignments)
_REVISION = select(registry_meta.c.revision)
_EXPORTED = select(registry_exports).where(registry_exports.c.place == bindparam("place"))


@dataclass(frozen=True, slots=True)
class Exported:
    """What was last written to one file; sha256 in hex, empty for nothing.

    While it is being written ``new`` is the new content and ``before`` what lay there; ``before`` is empty when that
    has ended. A process killed in between leaves both, and either may lie there.
    """

    new: str = ""
    before: str = ""


def read_revision(connection: Connection) -> int:
    """How often the registry was changed."""
    return connection.execute(_REVISION).scalar() or 0


def write_revision(connection: Connection, revision: int) -> None:
    """Note how often the registry was changed."""
    if not connection.execute(registry_meta.update().values(revision=revision)).rowcount:
        connection.execute(registry_meta.insert().values(id=1, revision=revision))


def read_exported(connection: Connection, place: str) -> Exported:
    """What was last written to the file ``HOST:PATH``."""
    row = connection.execute(_EXPORTED, {"place": place}).one_or_none()
    return Exported(row.exported_sha256, row.before_sha256) if row else Exported()


def write_exported(connection: Connection, place: str, exported: Exported) -> None:
    """Note what was last written to the file ``HOST:PATH``."""
    values = {"place": place, "exported_sha256": exported.new, "before_sha256": exported.before}
    connection.execute(registry_exports.delete().where(registry_exports.c.place == place))
    connection.execute(registry_exports.insert().values(values))


def read_state(connection: Connection) -> RegistryState:
    """Everything the registry says."""
    entries = {row[0]: _entry(row) for row in connection.execute(_ENTRIES).all()}
    held = {row.port: _assignment(row._mapping) for row in connection.execute(_ASSIGNMENTS)}
    return RegistryState(entries, held, read_revision(connection))


def write_changes(connection: Connection, before: RegistryState, after: RegistryState) -> None:
    """Make the rows of ``before`` those of ``after``; only changed ones are touched.

    Changed rows are deleted and inserted again, so that two ports can swap their models although no model is ever on
    two: foreign keys are looked at when the transaction ends.
    """
    gone, new = _changed(before.entries, after.entries)
    ports_gone, ports_new = _changed(before.assignments, after.assignments)
    _delete(connection, assignments, "port", ports_gone)
    _delete(connection, registry_entries, "slug", gone)
    if new:
        connection.execute(registry_entries.insert(), [_entry_row(entry) for entry in new])
    if ports_new:
        connection.execute(assignments.insert(), [_assignment_row(held) for held in ports_new])


def write_slots(connection: Connection, table: SlotTable) -> bool:
    """Make the rows of ``slots`` those of the settings; returns whether any changed."""
    wanted = {slot.port: slot.alias for slot in table.slots}
    if wanted == {row.port: row.alias for row in connection.execute(select(slots))}:
        return False
    connection.execute(slots.delete())
    if wanted:
        connection.execute(slots.insert(), [{"port": port, "alias": alias} for port, alias in wanted.items()])
    return True


def _changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Keys whose rows go, and values whose rows come."""
    new = {key: value for key, value in after.items() if before.get(key) != value}
    return [key for key in before if key in new or key not in after], list(new.values())


def _delete(connection: Connection, table: Table, column: str, keys: Iterable[Any]) -> None:
    rows = [{"key": key} for key in keys]
    if rows:
        connection.execute(table.delete().where(table.c[column] == bindparam("key")), rows)


def _entry(row: Row[Any]) -> Entry:
    values = list(row)
    for position in _JSON_POSITIONS:
        text = values[position]
        values[position] = json.loads(text) if len(text) > 2 else {}
    values[_FLAGS] = tuple(values[_FLAGS])
    return Entry(*values)


def _entry_row(entry: Entry) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in _COLUMNS if name not in _JSON_COLUMNS}
    for column, attribute in _JSON_COLUMNS.items():
        held = getattr(entry, attribute)
        row[column] = json.dumps(list(held) if isinstance(held, tuple) else dict(held), ensure_ascii=False)
    return row


def _assignment(row: RowMapping) -> Assignment:
    return Assignment(
        port=row["port"],
        desired=row["desired"] or "",
        actual=row["actual"],
        last_good=row["last_good"],
        foreign=row["foreign_model"],
        last_failure=row["last_failure"],
        failed_unix_s=row["failed_unix_s"],
        changed_unix_s=row["changed_unix_s"],
    )


def _assignment_row(held: Assignment) -> dict[str, Any]:
    return {
        "port": held.port,
        "desired": held.desired or None,
        "actual": held.actual,
        "last_good": held.last_good,
        "foreign_model": held.foreign,
        "last_failure": held.last_failure,
        "failed_unix_s": held.failed_unix_s,
        "changed_unix_s": held.changed_unix_s,
    }
