"""Schema page: the tables and views of the system database as a page of the documentation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Boolean, Column, Double, Integer, Table

from homelab_llm.data.schema import HEAD
from homelab_llm.data.tables import metadata
from homelab_llm.data.views import VIEWS

_OPENING = """# The system database

What the platform knows about itself: registry, slots, keys, models, deployments, jobs, events and requests. SQLite in
`HOME/system.db`, or PostgreSQL by `data.url`; the same tables, views and statements on both. Monitoring is views over
it: `mlxctl db query 'SELECT * FROM v_service_health'`. This page shows schema {head}.

Times are Unix seconds (`…_unix_s`), sizes bytes, `…_json` columns JSON texts. A text that says nothing is empty.
Nothing here holds the content of a request, and no key: only its hash.
"""


def render(view_columns: Mapping[str, Sequence[str]]) -> str:
    """The page.

    Args:
        view_columns: the columns of each view, as a migrated database tells them.
    """
    parts = [_OPENING.format(head=HEAD), "## Tables\n"]
    parts += [_table(metadata.tables[name]) for name in sorted(metadata.tables)]
    parts.append("## Views\n")
    for name, meaning in sorted(VIEWS.items()):
        parts.append(f"### {name}\n\n{meaning}\n\n{', '.join(f'`{column}`' for column in view_columns[name])}\n")
    return "\n".join(parts)


def _table(table: Table) -> str:
    lines = [f"### {table.name}", "", str(table.info["doc"]), "", "| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{column.name}` | {_type(column)} | {_meaning(column)} |" for column in table.columns]
    return "\n".join([*lines, ""])


def _type(column: Column[object]) -> str:
    kinds = {Boolean: "boolean", Integer: "integer", Double: "real"}
    kind = next((word for kind, word in kinds.items() if isinstance(column.type, kind)), "text")
    return f"{kind} or NULL" if column.nullable else kind


def _meaning(column: Column[object]) -> str:
    said = [column.doc] if column.doc else []
    said += ["key"] if column.primary_key else []
    said += ["unique"] if column.unique else []
    said += [f"→ {key.target_fullname}" for key in sorted(column.foreign_keys, key=lambda key: key.target_fullname)]
    return "; ".join(said)
