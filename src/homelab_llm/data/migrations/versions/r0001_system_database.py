"""The first tables and views.

Frozen: what changes later is a revision of its own, and ``data/tables.py`` says where all of them lead.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

revision = "0001"
down_revision = None

_metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite numbers rows by itself only when the type is INTEGER
_Id = BigInteger().with_variant(Integer, "sqlite")


def _id(name: str) -> Column[int]:
    return Column(name, _Id, primary_key=True, autoincrement=True)


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default)


def _integer(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _real(name: str) -> Column[float]:
    return Column(name, Double, nullable=False, server_default=text("0"))


Table(
    "hosts",
    _metadata,
    Column("host_id", Text, primary_key=True),
    _text("system"),
    _text("architecture"),
    _integer("memory_bytes"),
    _integer("cpus"),
    _text("version"),
    _text("doc"),
    _real("first_seen_unix_s"),
    _real("last_seen_unix_s"),
)

Table(
    "services",
    _metadata,
    Column("service_id", Text, primary_key=True),
    Column("host_id", Text, ForeignKey("hosts.host_id"), nullable=False),
    _text("layer"),
    _text("label"),
    _text("state"),
    _text("base_url"),
    _text("health_url"),
    _text("doc"),
    _real("created_unix_s"),
    _real("updated_unix_s"),
)

Table(
    "endpoints",
    _metadata,
    _id("endpoint_id"),
    Column("service_id", Text, ForeignKey("services.service_id", ondelete="CASCADE"), nullable=False),
    _text("kind"),
    _text("method"),
    _text("url"),
    _text("doc"),
    UniqueConstraint("service_id", "method", "url"),
)

Table(
    "models",
    _metadata,
    Column("model", Text, primary_key=True),
    _text("digest"),
    _integer("size_on_disk_bytes"),
    _integer("weights_bytes"),
    _integer("footprint_estimated_bytes"),
    _integer("footprint_measured_bytes"),
    _text("format"),
    _text("architecture"),
    _integer("parameters"),
    _text("quantization"),
    _integer("context_tokens"),
    _text("licence"),
    _text("source"),
    _text("doc"),
    _real("created_unix_s"),
    _real("updated_unix_s"),
)

Table(
    "model_files",
    _metadata,
    Column("model", Text, ForeignKey("models.model", ondelete="CASCADE"), primary_key=True),
    Column("file", Text, primary_key=True),
    _text("path"),
    _integer("size_bytes"),
)

Table(
    "footprints",
    _metadata,
    Column("key", Text, primary_key=True),
    _text("digest"),
    _integer("measured_bytes"),
    _real("measured_unix_s"),
    Index(None, "digest"),
)

Table(
    "registry_entries",
    _metadata,
    Column("slug", Text, primary_key=True),
    _text("model_id"),
    _text("repo_id"),
    _text("cache_path"),
    _text("format"),
    _text("source_path"),
    _text("chat_template"),
    _text("tool_call_parser"),
    _text("reasoning_parser"),
    _integer("context_length"),
    _integer("max_output_tokens"),
    _text("request_params_json", default="{}"),
    _text("draft_model"),
    _text("engine"),
    _text("flags_json", default="[]"),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("keep_alive_s", Double, nullable=True),
    _text("extra_json", default="{}"),
    Index(None, "model_id"),
)

Table(
    "slots",
    _metadata,
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("alias", Text, nullable=False, unique=True),
)

Table(
    "assignments",
    _metadata,
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column(
        "desired",
        Text,
        ForeignKey("registry_entries.slug", deferrable=True, initially="DEFERRED"),
        unique=True,
        nullable=True,
    ),
    _text("actual"),
    _text("last_good"),
    _text("foreign_model"),
    _text("last_failure"),
    _real("failed_unix_s"),
    _real("changed_unix_s"),
)

Table(
    "registry_meta",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    _integer("revision"),
)

Table(
    "registry_exports",
    _metadata,
    Column("place", Text, primary_key=True),
    _text("exported_sha256"),
    _text("before_sha256"),
)

Table(
    "deployments",
    _metadata,
    _id("deployment_id"),
    _text("worker_id"),
    _text("model"),
    _text("engine"),
    _integer("port"),
    _integer("pid"),
    _real("started_unix_s"),
    Column("ready_unix_s", Double, nullable=True),
    Column("ended_unix_s", Double, nullable=True),
    _text("reason"),
    _integer("footprint_bytes"),
    Index(None, "worker_id"),
    Index(None, "model", "started_unix_s"),
)

Table(
    "keys",
    _metadata,
    Column("name", Text, primary_key=True),
    _text("scopes"),
    _text("priority", default="interactive"),
    _text("sha256"),
    _text("hint"),
    _real("created_unix_s"),
)

Table(
    "key_meta",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    _integer("revision"),
)

Table(
    "events",
    _metadata,
    _id("event_id"),
    _real("unix_s"),
    _text("kind"),
    _text("level"),
    _text("service"),
    _text("model"),
    _integer("port"),
    _text("text"),
    _text("facts_json", default="{}"),
    Index(None, "unix_s"),
    Index(None, "service", "event_id"),
)

Table(
    "requests",
    _metadata,
    _id("row_id"),
    _text("request_id"),
    _real("started_unix_s"),
    _text("endpoint"),
    _text("model"),
    _text("alias"),
    _integer("port"),
    _text("key"),
    _text("priority", default="interactive"),
    _integer("status"),
    _text("error"),
    Column("streamed", Boolean, nullable=False, server_default=false()),
    _real("wait_ms"),
    _real("first_token_ms"),
    _real("total_ms"),
    _integer("prompt_tokens"),
    _integer("cached_tokens"),
    _integer("completion_tokens"),
    _text("client"),
    _text("facts_json", default="{}"),
    Index(None, "started_unix_s"),
    Index(None, "model", "started_unix_s"),
    Index(None, "request_id"),
)

_SERVICE_HEALTH = """
CREATE VIEW v_service_health AS
SELECT s.service_id, s.host_id, s.layer, s.label, s.state, s.updated_unix_s,
    CASE
        WHEN s.state = 'down' THEN 'down'
        WHEN s.state = 'failed' OR e.level = 'error' THEN 'error'
        WHEN e.level = 'warning' THEN 'warning'
        ELSE 'ok'
    END AS health,
    COALESCE(e.kind, '') AS event, COALESCE(e.level, '') AS level, COALESCE(e.text, '') AS text,
    COALESCE(e.unix_s, 0) AS event_unix_s, s.base_url, s.health_url
FROM services s
LEFT JOIN events e ON e.event_id = (SELECT MAX(l.event_id) FROM events l WHERE l.service = s.service_id)
"""

_MODEL_DEPLOYMENTS = """
CREATE VIEW v_model_deployments AS
SELECT d.deployment_id, d.model, d.engine, d.port, d.worker_id, d.pid,
    CASE WHEN d.ended_unix_s IS NULL THEN 1 ELSE 0 END AS active,
    d.started_unix_s, d.ready_unix_s, d.ended_unix_s, d.ready_unix_s - d.started_unix_s AS load_s, d.reason,
    d.footprint_bytes, COALESCE(m.format, '') AS format, COALESCE(m.architecture, '') AS architecture,
    COALESCE(m.quantization, '') AS quantization, COALESCE(m.size_on_disk_bytes, 0) AS size_on_disk_bytes
FROM deployments d
LEFT JOIN models m ON m.model = d.model
"""

_SLOT_DRIFT = """
CREATE VIEW v_slot_drift AS
SELECT p.port, COALESCE(s.alias, '') AS alias, COALESCE(a.desired, '') AS desired, COALESCE(a.actual, '') AS actual,
    COALESCE(a.last_good, '') AS last_good, COALESCE(a.foreign_model, '') AS foreign_model,
    COALESCE(a.last_failure, '') AS last_failure, COALESCE(a.changed_unix_s, 0) AS changed_unix_s,
    CASE
        WHEN s.port IS NULL AND a.desired IS NOT NULL THEN 'the node has no such slot'
        WHEN COALESCE(a.desired, '') = COALESCE(a.actual, '') THEN ''
        WHEN a.desired IS NULL THEN 'serves a model that is not assigned'
        WHEN a.last_failure <> '' THEN 'its model failed'
        WHEN a.actual = '' THEN 'its model was never proven to answer'
        ELSE 'serves another model'
    END AS drift
FROM (SELECT port FROM slots UNION SELECT port FROM assignments) p
LEFT JOIN slots s ON s.port = p.port
LEFT JOIN assignments a ON a.port = p.port
"""

# nearest rank: the smallest value that at least n of a hundred do not exceed
_RANK = "MIN(CASE WHEN {rank} * 100 >= {percent} * {count} AND {value} > 0 THEN {value} END) AS {name}_p{percent}"
_PERCENTILES = ",\n    ".join(
    _RANK.format(rank=f"{name}_rank", percent=percent, count=f"{name}_count", value=name, name=name)
    for name in ("total_ms", "first_token_ms")
    for percent in (50, 95, 99)
)
_REQUEST_LATENCY = """
CREATE VIEW v_request_latency AS
SELECT model, hour_unix_s, COUNT(*) AS requests,
    {percentiles}
FROM (
    SELECT model, hour_unix_s, total_ms, first_token_ms,
        ROW_NUMBER() OVER (PARTITION BY model, hour_unix_s ORDER BY total_ms) AS total_ms_rank,
        COUNT(*) OVER (PARTITION BY model, hour_unix_s) AS total_ms_count,
        ROW_NUMBER() OVER (PARTITION BY model, hour_unix_s, told ORDER BY first_token_ms) AS first_token_ms_rank,
        COUNT(*) OVER (PARTITION BY model, hour_unix_s, told) AS first_token_ms_count
    FROM (
        SELECT model, {hour} AS hour_unix_s, total_ms, first_token_ms,
            CASE WHEN first_token_ms > 0 THEN 1 ELSE 0 END AS told
        FROM requests WHERE status BETWEEN 200 AND 299 AND model <> ''
    ) answered
) ranked
GROUP BY model, hour_unix_s
"""

_USAGE = """
CREATE VIEW v_usage AS
SELECT key, model, day, COUNT(*) AS requests, SUM(CASE WHEN error = '' THEN 0 ELSE 1 END) AS errors,
    SUM(prompt_tokens) AS prompt_tokens, SUM(cached_tokens) AS cached_tokens,
    SUM(completion_tokens) AS completion_tokens, SUM(total_ms) / 1000 AS total_s
FROM (SELECT r.*, {day} AS day FROM requests r) dated
GROUP BY key, model, day
"""

_ERRORS = """
CREATE VIEW v_errors AS
SELECT started_unix_s AS unix_s, 'request' AS source, 'error' AS level, error AS code, model, port, endpoint AS place,
    request_id AS text
FROM requests WHERE error <> ''
UNION ALL
SELECT unix_s, 'event' AS source, level, kind AS code, model, port, service AS place, text
FROM events WHERE level IN ('warning', 'error')
"""

_MODEL_CAPACITY = """
CREATE VIEW v_model_capacity AS
SELECT model, size_on_disk_bytes, memory_bytes, memory_source, weights_bytes, format, architecture, parameters,
    quantization, context_tokens,
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

# The two things that the dialects do not share: whole hours, and days that people read (UTC)
_TIMES = {
    "sqlite": {
        "hour": "CAST(started_unix_s / 3600 AS INTEGER) * 3600",
        "day": "strftime('%Y-%m-%d', r.started_unix_s, 'unixepoch')",
    },
    "postgresql": {
        "hour": "CAST(FLOOR(started_unix_s / 3600) AS BIGINT) * 3600",
        "day": "to_char(to_timestamp(r.started_unix_s) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    },
}


def upgrade() -> None:
    """From nothing."""
    connection = op.get_bind()
    _metadata.create_all(connection, checkfirst=False)
    for name in ("registry_meta", "key_meta"):
        connection.exec_driver_sql(f"INSERT INTO {name} (id, revision) VALUES (1, 0)")  # noqa: S608
    times = _TIMES[connection.dialect.name]
    for view in (
        _SERVICE_HEALTH,
        _MODEL_DEPLOYMENTS,
        _SLOT_DRIFT,
        _REQUEST_LATENCY.format(percentiles=_PERCENTILES, hour=times["hour"]),
        _USAGE.format(day=times["day"]),
        _ERRORS,
        _MODEL_CAPACITY,
    ):
        connection.execute(text(view.replace(":", "\\:")))
