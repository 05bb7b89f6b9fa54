"""Alembic's environment: runs inside the transaction of ``data/migrate.py``, which alone starts and ends it."""

from __future__ import annotations

from alembic import context

from homelab_llm.data.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
