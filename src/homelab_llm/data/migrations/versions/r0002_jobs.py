"""Jobs: long work on models.

Frozen: what changes later is a revision of its own, and ``data/tables.py`` says where all of them lead.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Double, Text, text

revision = "0002"
down_revision = "0001"

_JOBS_RECENT = """
CREATE VIEW v_jobs_recent AS
SELECT job_id, kind, state, stage, done_bytes, total_bytes,
    CASE WHEN total_bytes > 0 THEN done_bytes * 1.0 / total_bytes END AS share, bytes_per_s,
    created_unix_s, started_unix_s, finished_unix_s, started_unix_s - created_unix_s AS waited_s,
    finished_unix_s - started_unix_s AS took_s, error_code, error_message, error_hint, parameters_json, host_id
FROM jobs
ORDER BY created_unix_s DESC, job_id
"""


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default)


def _integer(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _real(name: str) -> Column[float]:
    return Column(name, Double, nullable=False, server_default=text("0"))


def upgrade() -> None:
    """Add the table of jobs and its view."""
    op.create_table(
        "jobs",
        Column("job_id", Text, primary_key=True),
        _text("kind"),
        _text("parameters_json", default="{}"),
        _text("state"),
        _text("stage"),
        _text("file"),
        _integer("done_bytes"),
        Column("total_bytes", BigInteger, nullable=True),
        _real("bytes_per_s"),
        _integer("attempts"),
        _text("error_code"),
        _text("error_message"),
        _text("error_hint"),
        _text("error_facts_json", default="{}"),
        _text("result_json", default="{}"),
        _real("created_unix_s"),
        Column("started_unix_s", Double, nullable=True),
        Column("finished_unix_s", Double, nullable=True),
        _text("host_id"),
        _text("doc"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_created_unix_s", "jobs", ["created_unix_s"])
    op.get_bind().exec_driver_sql(_JOBS_RECENT)
