"""Inventory: what this node consists of, for people and monitors: its host, services, endpoints and models.

Nothing here decides anything: the store knows the models. Everything blocks; the daemon calls it in a thread.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, select

from homelab_llm import __version__
from homelab_llm.core.facts import StoredModel
from homelab_llm.data.database import Database
from homelab_llm.data.tables import endpoints, footprints, hosts, model_files, models, services


@dataclass(frozen=True, slots=True)
class Service:
    """Something that can be asked. ``endpoints`` are ``(kind, method, path)`` below ``base_url``."""

    service_id: str
    layer: str
    label: str
    base_url: str
    health_path: str = "/readyz"
    doc: str = ""
    endpoints: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What running a model here would take, by calculation; 0 or empty = not known.

    ``footprint_bytes`` is for the context and the requests at once that are set, the others for one request.
    ``engine_reason`` says why no engine runs it, or what is not as good as it could be.
    """

    footprint_bytes: int = 0
    memory_4k_bytes: int = 0
    memory_32k_bytes: int = 0
    memory_full_bytes: int = 0
    engine: str = ""
    engine_reason: str = ""


NOTHING_FORESEEN = Forecast()


class Inventory:
    """Writes the inventory of one host."""

    def __init__(self, database: Database, unix_s: Callable[[], float] = time.time) -> None:
        self._database = database
        self._unix_s = unix_s
        self._host_id = platform.node() or "localhost"

    def sync_services(self, present: Sequence[Service]) -> None:
        """These run on this host now; what ran here before and is not named is down.

        Raises:
            DatabaseUnavailable: nothing was changed.
        """
        now_s = self._unix_s()
        with self._database.write() as connection:
            self._sync_host(connection, now_s)
            connection.execute(
                services.update()
                .where(services.c.host_id == self._host_id, services.c.state != "down")
                .values(state="down", updated_unix_s=now_s)
            )
            for service in present:
                _sync_service(connection, service, self._host_id, now_s)

    def sync_models(
        self, present: Iterable[StoredModel], foresee: Callable[[StoredModel], Forecast] = lambda _: NOTHING_FORESEEN
    ) -> int:
        """These models lie in the store; returns how many rows were added, changed or removed.

        Args:
            foresee: what running a model would take, asked for new and changed models only.
        """
        wanted = {model.name: model for model in present}
        with self._database.read() as connection:
            known = {row.model: row.digest for row in connection.execute(select(models.c.model, models.c.digest))}
        changed = [model for name, model in wanted.items() if known.get(name) != str(model.digest)]
        gone = [name for name in known if name not in wanted]
        if not changed and not gone:
            return 0
        forecasts = {model.name: foresee(model) for model in changed}
        with self._database.write() as connection:
            for name in [*gone, *(model.name for model in changed)]:
                connection.execute(models.delete().where(models.c.model == name))
            self._insert_models(connection, changed, forecasts)
        return len(changed) + len(gone)

    def _insert_models(
        self, connection: Connection, new: Sequence[StoredModel], forecasts: Mapping[str, Forecast]
    ) -> None:
        if not new:
            return
        largest = select(footprints.c.digest, func.max(footprints.c.measured_bytes)).group_by(footprints.c.digest)
        measured: dict[str, int] = {row[0]: row[1] for row in connection.execute(largest)}
        now_s = self._unix_s()
        rows = [
            _model_row(model, forecasts[model.name], now_s)
            | {"footprint_measured_bytes": measured.get(str(model.digest), 0)}
            for model in new
        ]
        connection.execute(models.insert(), rows)
        files = [
            {"model": model.name, "file": file, "path": str(path), "size_bytes": _size(path)}
            for model in new
            for file, path in model.files.items()
        ]
        if files:
            connection.execute(model_files.insert(), files)

    def _sync_host(self, connection: Connection, now_s: float) -> None:
        _put(
            connection,
            hosts,
            {"host_id": self._host_id},
            {
                "system": platform.system().lower(),
                "architecture": platform.machine(),
                "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                "cpus": os.cpu_count() or 0,
                "version": __version__,
                "doc": "ARCHITECTURE.md",
                "last_seen_unix_s": now_s,
            },
            {"first_seen_unix_s": now_s},
        )


def _sync_service(connection: Connection, service: Service, host_id: str, now_s: float) -> None:
    _put(
        connection,
        services,
        {"service_id": service.service_id},
        {
            "host_id": host_id,
            "layer": service.layer,
            "label": service.label,
            "state": "up",
            "base_url": service.base_url,
            "health_url": service.base_url + service.health_path,
            "doc": service.doc,
            "updated_unix_s": now_s,
        },
        {"created_unix_s": now_s},
    )
    connection.execute(endpoints.delete().where(endpoints.c.service_id == service.service_id))
    rows = [
        {
            "service_id": service.service_id,
            "kind": kind,
            "method": method,
            "url": service.base_url + path,
            "doc": "docs/reference/endpoints.md",
        }
        for kind, method, path in service.endpoints
    ]
    if rows:
        connection.execute(endpoints.insert(), rows)


def _put(
    connection: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any], first: Mapping[str, Any]
) -> None:
    """Update the row of ``key``, or add it with ``first`` too; the transaction is the only writer."""
    same = [table.c[name] == value for name, value in key.items()]
    if connection.execute(table.update().where(*same).values(**values)).rowcount == 0:
        connection.execute(table.insert().values(**key, **values, **first))


def _model_row(model: StoredModel, forecast: Forecast, now_s: float) -> dict[str, Any]:
    facts = model.facts
    return {
        "model": model.name,
        "digest": str(model.digest),
        "size_on_disk_bytes": model.size_bytes,
        "weights_bytes": facts.size_bytes,
        "format": facts.format,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "quantization": facts.quantization,
        "context_tokens": facts.context_tokens,
        "licence": facts.licence[:200],
        "source": model.source,
        "doc": f"mlxctl show {model.name}",
        "created_unix_s": model.created_unix_s,
        "updated_unix_s": now_s,
        "capabilities": ",".join(facts.capabilities),
        "kv_bytes_per_token": facts.kv_bytes_per_token,
        "footprint_estimated_bytes": forecast.footprint_bytes,
        "memory_4k_bytes": forecast.memory_4k_bytes,
        "memory_32k_bytes": forecast.memory_32k_bytes,
        "memory_full_bytes": forecast.memory_full_bytes,
        "engine": forecast.engine,
        "engine_reason": forecast.engine_reason[:500],
        "pulled_from": model.pulled_from,
        "base": model.provenance.base,
        "action": model.provenance.action,
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # removed since the store was listed
