"""Facts of models: what they can do, what they take at which context, which engine runs them here, what they came from.

Frozen: what changes later is a revision of its own, and ``data/tables.py`` says where all of them lead.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Text, text

revision = "0003"
down_revision = "0002"

_CAPACITY = """
CREATE VIEW v_model_capacity AS
SELECT model, size_on_disk_bytes, memory_bytes, memory_source, weights_bytes, memory_4k_bytes, memory_32k_bytes,
    memory_full_bytes, format, architecture, parameters, quantization, context_tokens, capabilities, licence, engine,
    RANK() OVER (ORDER BY size_on_disk_bytes DESC) AS size_rank,
    RANK() OVER (ORDER BY memory_bytes DESC) AS memory_rank
FROM (
    SELECT m.*,
        CASE
            WHEN footprint_measured_bytes > 0 THEN footprint_measured_bytes
            WHEN footprint_estimated_bytes > 0 THEN footprint_estimated_bytes
            ELSE weights_bytes
        END AS memory_bytes,
        CASE
            WHEN footprint_measured_bytes > 0 THEN 'measured'
            WHEN footprint_estimated_bytes > 0 THEN 'estimated'
            ELSE 'weights'
        END AS memory_source
    FROM models m
) weighed
ORDER BY size_on_disk_bytes DESC, memory_bytes DESC, model
"""


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, server_default="")


def _integer(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def upgrade() -> None:
    """Add the columns; the rows are copies of what the store says, and the daemon writes them anew."""
    connection = op.get_bind()
    connection.exec_driver_sql("DROP VIEW v_model_capacity")
    connection.exec_driver_sql("DELETE FROM model_files")
    connection.exec_driver_sql("DELETE FROM models")
    for column in (
        _text("capabilities"),
        _integer("kv_bytes_per_token"),
        _integer("memory_4k_bytes"),
        _integer("memory_32k_bytes"),
        _integer("memory_full_bytes"),
        _text("engine"),
        _text("engine_reason"),
        _text("pulled_from"),
        _text("base"),
        _text("action"),
    ):
        op.add_column("models", column)
    connection.exec_driver_sql(_CAPACITY)
