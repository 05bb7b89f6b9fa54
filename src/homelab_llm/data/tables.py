"""Tables of the system database, as this version reads and writes them. Migrations bring a database to this state.

Portable on purpose: the same types and statements on SQLite and PostgreSQL. Times are Unix seconds (``…_unix_s``,
0 or NULL = never), sizes bytes, ``…_json`` columns JSON texts. A text that says nothing is empty, not NULL, except
where a foreign key needs NULL.
"""

from __future__ import annotations

from typing import Any

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

metadata = MetaData(
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


def _text(name: str, comment: str = "", default: str = "", **options: Any) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default, doc=comment or None, **options)


def _integer(name: str, comment: str = "") -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"), doc=comment or None)


def _real(name: str, comment: str = "") -> Column[float]:
    return Column(name, Double, nullable=False, server_default=text("0"), doc=comment or None)


hosts = Table(
    "hosts",
    metadata,
    Column("host_id", Text, primary_key=True, doc="the machine's name"),
    _text("system", "linux or darwin"),
    _text("architecture", "x86_64, arm64, …"),
    _integer("memory_bytes"),
    _integer("cpus"),
    _text("version", "of this product"),
    _text("doc", "where to read more"),
    _real("first_seen_unix_s"),
    _real("last_seen_unix_s"),
    info={"doc": "Machines that run the platform."},
)

services = Table(
    "services",
    metadata,
    Column("service_id", Text, primary_key=True, doc="mlxserve, or slot:PORT"),
    Column("host_id", Text, ForeignKey("hosts.host_id"), nullable=False),
    _text("layer", "gateway or inference"),
    _text("label", "the name people use"),
    _text("state", "up, down, or a slot's state"),
    _text("base_url"),
    _text("health_url"),
    _text("doc", "where to read more"),
    _real("created_unix_s"),
    _real("updated_unix_s", "when the state was written last"),
    info={"doc": "What runs and can be asked; the daemon keeps it."},
)

endpoints = Table(
    "endpoints",
    metadata,
    _id("endpoint_id"),
    Column("service_id", Text, ForeignKey("services.service_id", ondelete="CASCADE"), nullable=False),
    _text("kind", "api, health or admin"),
    _text("method"),
    _text("url"),
    _text("doc", "where to read more"),
    UniqueConstraint("service_id", "method", "url"),
    info={"doc": "Addresses that a service answers."},
)

models = Table(
    "models",
    metadata,
    Column("model", Text, primary_key=True, doc="name in the store"),
    _text("digest", "of its manifest"),
    _integer("size_on_disk_bytes"),
    _integer("weights_bytes"),
    _integer("footprint_estimated_bytes", "memory by calculation, 0 = never planned"),
    _integer("footprint_measured_bytes", "memory when it ran last, 0 = never"),
    _text("format"),
    _text("architecture"),
    _integer("parameters", "how many, 0 = unknown"),
    _text("quantization"),
    _integer("context_tokens"),
    _text("licence"),
    _text("source", "where it came from"),
    _text("doc", "where to read more"),
    _real("created_unix_s"),
    _real("updated_unix_s"),
    _text("capabilities", "chat, tools, vision, thinking, embedding, …, by commas"),
    _integer("kv_bytes_per_token", "of the 16-bit KV cache, 0 = unknown"),
    _integer("memory_4k_bytes", "one request with 4,096 tokens of context, 0 = it has no such context"),
    _integer("memory_32k_bytes", "one request with 32,768 tokens"),
    _integer("memory_full_bytes", "one request with all its context"),
    _text("engine", "that would run it here; empty = none"),
    _text("engine_reason", "why none does, or a warning"),
    _text("pulled_from", "the reference that repairs it"),
    _text("base", "the model it was made from here"),
    _text("action", "how: create, convert, quantize or fuse"),
    info={"doc": "Models that lie in the store."},
)

model_files = Table(
    "model_files",
    metadata,
    Column("model", Text, ForeignKey("models.model", ondelete="CASCADE"), primary_key=True),
    Column("file", Text, primary_key=True, doc="path inside the model"),
    _text("path", "where its bytes lie"),
    _integer("size_bytes"),
    info={"doc": "Files of a model; several models may share one."},
)

footprints = Table(
    "footprints",
    metadata,
    Column("key", Text, primary_key=True, doc="model, engine and the options that change memory"),
    _text("digest", "of the model's manifest"),
    _integer("measured_bytes"),
    _real("measured_unix_s"),
    Index(None, "digest"),
    info={"doc": "Memory that loaded models were seen to take."},
)

registry_entries = Table(
    "registry_entries",
    metadata,
    Column("slug", Text, primary_key=True),
    _text("model_id", "name in the store"),
    _text("repo_id", "where it comes from, as pull takes it"),
    _text("cache_path", "its main file or folder, empty for an intent"),
    _text("format"),
    _text("source_path"),
    _text("chat_template"),
    _text("tool_call_parser"),
    _text("reasoning_parser"),
    _integer("context_length", "0 = not set"),
    _integer("max_output_tokens", "0 = not set"),
    _text("request_params_json", default="{}"),
    _text("draft_model"),
    _text("engine"),
    _text("flags_json", default="[]"),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("keep_alive_s", Double, nullable=True, doc="negative = for ever, NULL = the setting"),
    _text("extra_json", "fields this version does not know", default="{}"),
    Index(None, "model_id"),
    info={"doc": "The registry: models that are known or wanted."},
)

slots = Table(
    "slots",
    metadata,
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("alias", Text, nullable=False, unique=True),
    info={"doc": "Ports whose numbers and names never move, as the settings say."},
)

assignments = Table(
    "assignments",
    metadata,
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column(
        "desired",
        Text,
        ForeignKey("registry_entries.slug", deferrable=True, initially="DEFERRED"),
        unique=True,
        nullable=True,
        doc="slug the port shall serve; NULL = none",
    ),
    _text("actual", "slug last proven to answer there"),
    _text("last_good", "slug before a failure"),
    _text("foreign_model", "model of an adopted server of another origin"),
    _text("last_failure", "one sentence, empty after a success"),
    _real("failed_unix_s"),
    _real("changed_unix_s"),
    info={"doc": "Which model a port shall serve, serves and served; one model is on one port."},
)

registry_meta = Table(
    "registry_meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, doc="always 1"),
    _integer("revision", "grows by one with each change of the registry"),
    info={"doc": "One row: how often the registry was changed."},
)

registry_exports = Table(
    "registry_exports",
    metadata,
    Column("place", Text, primary_key=True, doc="HOST:PATH of a registry.json"),
    _text("exported_sha256", "of what was last written there, empty = nothing"),
    _text("before_sha256", "of what lay there while it is written, empty when that has ended"),
    info={"doc": "Copies of the registry in files; another content was written by somebody else."},
)

deployments = Table(
    "deployments",
    metadata,
    _id("deployment_id"),
    _text("worker_id"),
    _text("model", "name in the store"),
    _text("engine"),
    _integer("port", "the slot it was loaded for, 0 = none"),
    _integer("pid", "of the engine"),
    _real("started_unix_s"),
    Column("ready_unix_s", Double, nullable=True, doc="NULL = never ready"),
    Column("ended_unix_s", Double, nullable=True, doc="NULL = it runs"),
    _text("reason", "why it ended"),
    _integer("footprint_bytes", "memory as measured, else as reserved"),
    Index(None, "worker_id"),
    Index(None, "model", "started_unix_s"),
    info={"doc": "Loads of models: one row for each worker that was started."},
)

keys = Table(
    "keys",
    metadata,
    Column("name", Text, primary_key=True),
    _text("scopes", "inference, admin; separated by commas"),
    _text("priority", "interactive or batch", default="interactive"),
    _text("sha256", "of the token, which is nowhere kept"),
    _text("hint", "the token's last four characters"),
    _real("created_unix_s"),
    info={"doc": "API keys."},
)

key_meta = Table(
    "key_meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False, doc="always 1"),
    _integer("revision", "grows by one with each change of the keys"),
    info={"doc": "One row: how often the keys were changed."},
)

events = Table(
    "events",
    metadata,
    _id("event_id"),
    _real("unix_s"),
    _text("kind"),
    _text("level", "info, warning or error"),
    _text("service", "mlxserve, slot:PORT or worker:ID"),
    _text("model"),
    _integer("port"),
    _text("text", "one sentence for people"),
    _text("facts_json", "values for programs", default="{}"),
    Index(None, "unix_s"),
    Index(None, "service", "event_id"),
    info={"doc": "What happened."},
)

requests = Table(
    "requests",
    metadata,
    _id("row_id"),
    _text("request_id", "as the client may have chosen it; not unique"),
    _real("started_unix_s"),
    _text("endpoint"),
    _text("model", "name in the store"),
    _text("alias", "the slot's name that was asked for"),
    _integer("port", "the slot that was asked, 0 = the front address"),
    _text("key", "name of the API key"),
    _text("priority", "interactive or batch", default="interactive"),
    _integer("status", "of HTTP"),
    _text("error", "code of the error"),
    Column("streamed", Boolean, nullable=False, server_default=false()),
    _real("wait_ms", "for a worker"),
    _real("first_token_ms"),
    _real("total_ms"),
    _integer("prompt_tokens"),
    _integer("cached_tokens"),
    _integer("completion_tokens"),
    _text("client", "its address"),
    _text("facts_json", "more values for programs", default="{}"),
    Index(None, "started_unix_s"),
    Index(None, "model", "started_unix_s"),
    Index(None, "request_id"),
    info={"doc": "Finished requests, never their content."},
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    _text("kind", "pull, push, verify, …"),
    _text("parameters_json", "what was asked for", default="{}"),
    _text("state", "queued, running, succeeded, failed or cancelled"),
    _text("stage", "what it does or did last"),
    _text("file", "that it works on"),
    _integer("done_bytes"),
    Column("total_bytes", BigInteger, nullable=True, doc="NULL = not known"),
    _real("bytes_per_s"),
    _integer("attempts", "how often a program was started for it"),
    _text("error_code"),
    _text("error_message"),
    _text("error_hint", "the next step"),
    _text("error_facts_json", "values of the error for programs", default="{}"),
    _text("result_json", "what came of it", default="{}"),
    _real("created_unix_s"),
    Column("started_unix_s", Double, nullable=True, doc="NULL = not yet"),
    Column("finished_unix_s", Double, nullable=True, doc="NULL = not yet"),
    _text("host_id", "the machine whose daemon does it"),
    _text("doc", "where to read more"),
    Index(None, "state"),
    Index(None, "created_unix_s"),
    info={"doc": "Long work on models: pulls, pushes, conversions, …; the daemon of the home does it."},
)
