"""Settings: defaults < ``config.yaml`` < environment (``HOMELAB_<SECTION>__<KEY>``) < flags. Unknown keys are errors.

Imports pydantic: the command line must not import this module for verbs that only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from homelab_llm.core.errors import InvalidInput, InvalidSettings
from homelab_llm.core.registry.slots import ALIASES, SlotTable
from homelab_llm.core.units import parse_bytes, parse_duration

PREFIX = "HOMELAB_"


def _pydantic_error(parse: Any) -> Any:
    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except InvalidInput as error:
            raise ValueError(error.message) from error

    return validate


def _list(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_pydantic_error(parse_duration))]
Bytes = Annotated[int, BeforeValidator(_pydantic_error(parse_bytes)), Field(ge=0)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_list)]


class Section(BaseModel):
    """A group of settings; immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    """The front door."""

    listen: Strings = Field(
        ("127.0.0.1:1234", "127.0.0.1:11434"),
        description="TCP addresses to serve on. Port 0 takes a free one. A taken default is skipped with a warning.",
    )
    allowed_hosts: Strings = Field(
        (), description="Host header names accepted besides loopback names and the addresses listened on."
    )
    allowed_origins: Strings = Field(
        (), description="Origin header values accepted from browsers besides loopback ones."
    )
    max_body_bytes: Bytes = Field(32 * 10**6, description="Largest request body.")
    max_depth: int = Field(64, ge=4, le=512, description="Deepest JSON nesting of a request.")
    receive_deadline_s: Seconds = Field(
        30.0, gt=0, description="A request must have arrived completely within this time."
    )
    request_deadline_s: Seconds = Field(
        3600.0, gt=0, description="A request, waiting and streaming included, ends after this."
    )
    max_connections: int = Field(2048, ge=8, description="Connections at once; more are answered 503.")


class SlotSettings(Section):
    """Ports whose numbers and names never move, while the models behind them are swapped."""

    ports: str = Field("8100-8109", description="The ports: `none`, a range, or a list such as `8100,8102-8104`.")
    aliases: Strings = Field(ALIASES, description="Their names, in order; a port beyond the last is `slot-PORT`.")
    bind: str = Field("127.0.0.1", description="Address of the slot ports. One beyond loopback needs a key.")
    default_model: str = Field("", description="Model of a slot to which none is assigned; empty = it answers 503.")
    auto_load: bool = Field(True, description="Load what the registry assigns when the daemon starts.")

    @model_validator(mode="after")
    def _check(self) -> SlotSettings:
        try:
            self.table()
        except InvalidInput as error:
            raise ValueError(error.message) from error
        return self

    def table(self) -> SlotTable:
        """The slots these settings describe."""
        return SlotTable.of(self.ports, self.aliases)


class FleetSettings(Section):
    """Memory, queues and lifetimes of loaded models."""

    memory_fraction: float = Field(
        0.9, gt=0, le=1, description="Part of the usable memory that all models together may take."
    )
    memory_budget_bytes: Bytes = Field(0, description="A fixed budget in place of the fraction; 0 = use the fraction.")
    keep_alive: Seconds = Field(300.0, description="How long an idle model stays loaded; negative = for ever.")
    queue_limit: int = Field(256, ge=1, description="Requests that may wait for one model; more are refused with 503.")
    max_wait_s: Seconds = Field(600.0, gt=0, description="A request waits at most this long for a worker.")
    turn_s: Seconds = Field(
        30.0, ge=0, description="A model that fits only without a busy one waits at most this long for its turn to end."
    )
    min_stay_s: Seconds = Field(
        2.0, ge=0, description="A model just loaded stays this long (at most as long as its load took) before another."
    )
    max_running: int = Field(0, ge=0, description="Requests that run at once over all models; 0 = no limit.")
    reserved_slots: int = Field(
        1, ge=0, description="Slots of each worker that batch requests leave free; a worker with one slot has none."
    )
    quarantine_after: int = Field(
        3, ge=1, description="A model that fails this often in a row is not tried again until the operator says so."
    )
    canary: bool = Field(True, description="A model must answer one request before it gets the first real one.")
    orphan_grace_s: Seconds = Field(
        300.0, ge=0, description="How long workers outlive a daemon that died, waiting to be adopted by the next."
    )
    load_timeout_s: Seconds = Field(900.0, gt=0, description="A model must be ready within this time.")
    stall_timeout_s: Seconds = Field(
        300.0, gt=0, description="A worker that sends nothing for this long during a request is ended."
    )
    drain_s: Seconds = Field(5.0, ge=0, description="Time between TERM and KILL for a worker.")


class EngineSettings(Section):
    """How models are run."""

    prefer: Literal["auto", "llama.cpp", "mlx"] = Field("auto", description="Engine to use where several run a model.")
    context_tokens: int = Field(0, ge=0, description="Context of one request; 0 = the model's own, at most 8192.")
    parallel: int = Field(4, ge=1, le=64, description="Requests that run at once in one worker.")
    threads: int = Field(0, ge=0, description="CPU threads of one worker; 0 = all physical cores.")


class StoreSettings(Section):
    """The model store and its sources."""

    free_floor_bytes: Bytes = Field(2 * 10**9, description="A pull is refused when less than this would stay free.")
    hf_endpoint: str = Field("https://huggingface.co", description="Base URL of the Hugging Face hub.")
    allow_private_hosts: bool = Field(False, description="Let sources point to loopback and private addresses.")
    ollama_registry: str = Field("https://registry.ollama.ai", description="Base URL of the Ollama library.")
    registries: Strings = Field(
        (),
        description="Registries `host[:port]`, or `http://…` or `https://…`, that may be at private addresses or "
        "without TLS, and token servers that may have credentials; loopback always may be without TLS.",
    )
    connections_per_host: int = Field(8, ge=1, le=32, description="Connections of one download to one host.")
    rate_limit_bytes_per_s: Bytes = Field(
        0, description="Most bytes per second of all downloads of a process; 0 = no limit."
    )
    max_jobs: int = Field(2, ge=1, le=16, description="Jobs (pull, push, convert, …) that run at once; others wait.")
    verify: Literal["changed", "never"] = Field(
        "changed",
        description="Before a load: `changed` hashes what is new, changed or was in a crash; `never` trusts all.",
    )


class DataSettings(Section):
    """The system database."""

    url: str = Field("", description="`postgresql://…` (extra `postgres`); empty = SQLite in HOME/system.db.")
    registry_file: str = Field(
        "",
        description="Where the registry is exported; empty = registry.json in the Hugging Face hub cache, or in HOME "
        "when HOME is not the default one.",
    )
    requests: bool = Field(True, description="Record every request, never its content.")
    keep_requests: Seconds = Field(90 * 86400.0, gt=0, description="Requests older than this are deleted.")
    keep_events: Seconds = Field(
        90 * 86400.0, gt=0, description="Events, and jobs that ended, older than this are deleted."
    )


class RemoteSettings(Section):
    """Commanding the platform of another machine."""

    inference_host: str = Field("", description="`mlxctl` runs there over ssh, as `[user@]host`; empty = here.")
    command: str = Field("mlxctl", description="The command to run on that machine, as its shell reads it.")
    ssh_config: str = Field("", description="File of options for ssh (`ssh -F`); empty = ssh's own.")


class LogSettings(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level written.")
    format: Literal["json", "console"] = Field("json", description="Form of the daemon's log on standard error.")


class Settings(Section):
    """Everything that can be set."""

    server: ServerSettings = ServerSettings()
    slots: SlotSettings = SlotSettings()
    fleet: FleetSettings = FleetSettings()
    engine: EngineSettings = EngineSettings()
    store: StoreSettings = StoreSettings()
    data: DataSettings = DataSettings()
    remote: RemoteSettings = RemoteSettings()
    log: LogSettings = LogSettings()


def load_settings(
    file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]] | None = None
) -> Settings:
    """Read and merge all layers; a missing file is an empty one.

    Args:
        flags: ``{"server": {"listen": [...]}}``, the strongest layer.

    Raises:
        InvalidSettings: names the file and line, the variable or the flag, and the key.
    """
    merged: dict[str, dict[str, Any]] = {}
    origins: dict[tuple[str, str], dict[str, Any]] = {}
    for layer in (_from_file(file), _from_environment(environ), _from_flags(flags or {})):
        for (section, key), (value, origin) in layer.items():
            merged.setdefault(section, {})[key] = value
            origins[section, key] = origin
            origins.setdefault((section, ""), origin)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        origin = origins.get((path[0], path[1] if len(path) > 1 else ""), {"where": "settings"})
        raise InvalidSettings(
            f"{origin['where']}: {'.'.join(path[:2])}: {_reason(first['type'], first['msg'])}",
            hint="every setting is in docs/reference/settings.md",
            key=".".join(path[:2]),
            file=origin.get("file"),
            line=origin.get("line"),
        ) from error


_Layer = dict[tuple[str, str], tuple[Any, dict[str, Any]]]


def _reason(kind: str, text: str) -> str:
    return "no such setting" if kind == "extra_forbidden" else text


def _from_file(file: Path | None) -> _Layer:
    if file is None or not file.exists():
        return {}
    try:
        root = yaml.compose(file.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise InvalidSettings(f"{file.name}:{line or '?'}: not YAML", file=str(file), line=line) from error
    if root is None:
        return {}
    layer: _Layer = {}
    for section, section_node in _pairs(root, file, "the file"):
        for key, node in _pairs(section_node, file, section):
            line = node.start_mark.line + 1
            value = yaml.safe_load(yaml.serialize(node, Dumper=yaml.SafeDumper))
            layer[section, key] = (value, {"where": f"{file.name}:{line}", "file": str(file), "line": line})
    return layer


def _pairs(node: yaml.Node, file: Path, what: str) -> list[tuple[str, yaml.Node]]:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise InvalidSettings(
            f"{file.name}:{line}: {what} must be a mapping of names to values", file=str(file), line=line, key=what
        )
    return [(str(key.value), value) for key, value in node.value]


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    for name, value in environ.items():
        if name.startswith(PREFIX) and "__" in name:
            section, _, key = name[len(PREFIX) :].lower().partition("__")
            layer[section, key] = (value, {"where": name})
    return layer


def _from_flags(flags: Mapping[str, Mapping[str, Any]]) -> _Layer:
    return {
        (section, key): (value, {"where": f"--{key.replace('_', '-')}"})
        for section, keys in flags.items()
        for key, value in keys.items()
    }
