"""Models, services, footprints and deployments as rows, on SQLite and PostgreSQL."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from homelab_llm.core.digests import Digest
from homelab_llm.core.events import Event
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.data.database import Database
from homelab_llm.data.deployments import end_others, follow_events
from homelab_llm.data.footprints import Footprints
from homelab_llm.data.inventory import Forecast, Inventory, Service
from homelab_llm.data.tables import deployments, endpoints, hosts, model_files, models, services


def model(name: str, digit: str = "a", path: Path | None = None) -> StoredModel:
    facts = ModelFacts("gguf", "llama", 90, parameters=7, quantization="Q4_1", licence="apache-2.0")
    files = {"model.gguf": path} if path else {}
    return StoredModel(name, Digest(f"sha256:{digit * 64}"), facts, files, size_bytes=100, source="hf:o/r")


@pytest.mark.requirement("R-D1", "R-D3", "R-M9")
def test_models_become_rows_and_leave_with_their_files(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"12345")
    inventory = Inventory(database)
    foreseen = Forecast(500, 1, 2, 3, "llama.cpp", "warm")
    assert inventory.sync_models([model("a:latest", path=file), model("b:latest", "b")], lambda _: Forecast(400)) == 2
    assert inventory.sync_models([model("a:latest", path=file), model("b:latest", "b")]) == 0
    assert inventory.sync_models([model("a:latest", "c", file)], lambda _: foreseen) == 2
    with database.read() as connection:
        row = connection.execute(select(models)).mappings().one()
        files = connection.execute(select(model_files.c.path, model_files.c.size_bytes)).all()
    assert (row["model"], row["weights_bytes"], row["size_on_disk_bytes"]) == ("a:latest", 90, 100)
    assert (row["footprint_estimated_bytes"], row["licence"], row["source"]) == (500, "apache-2.0", "hf:o/r")
    assert row["doc"] == "mlxctl show a:latest"
    assert (row["memory_4k_bytes"], row["memory_32k_bytes"], row["memory_full_bytes"]) == (1, 2, 3)
    assert (row["engine"], row["engine_reason"]) == ("llama.cpp", "warm")
    assert [tuple(found) for found in files] == [(str(file), 5)]


@pytest.mark.requirement("R-D1")
def test_a_thousand_models_are_synced_once_and_then_only_compared(database: Database) -> None:
    many = [model(f"m{number}:latest") for number in range(1000)]
    inventory = Inventory(database)
    assert inventory.sync_models(many) == 1000
    began_s = time.perf_counter()
    assert inventory.sync_models(many) == 0
    assert inventory.sync_models(many[:-1]) == 1
    print(f"1,000 models compared in {(time.perf_counter() - began_s) * 500:.1f} ms")  # noqa: T201


@pytest.mark.requirement("R-D1", "R-D3")
def test_services_that_are_not_named_any_more_are_down(database: Database) -> None:
    front = Service("mlxserve", "gateway", "front", "http://127.0.0.1:1", endpoints=(("api", "POST", "/v1/x"),))
    slot = Service("slot:8100", "inference", "jerry-xl", "http://127.0.0.1:2")
    inventory = Inventory(database, unix_s=lambda: 5.0)
    inventory.sync_services([front, slot])
    inventory.sync_services([replace(front, base_url="http://127.0.0.1:3")])
    with database.read() as connection:
        states = {row.service_id: row.state for row in connection.execute(select(services))}
        urls = list(connection.execute(select(endpoints.c.url)).scalars())
        host = connection.execute(select(hosts)).mappings().one()
    assert states == {"mlxserve": "up", "slot:8100": "down"}
    assert urls == ["http://127.0.0.1:3/v1/x"]
    assert host["memory_bytes"] > 10**8


@pytest.mark.requirement("R-F5")
def test_measured_footprints_are_known_after_a_restart(database: Database) -> None:
    def now(job: object) -> None:
        with database.write() as connection:
            job(connection)  # type: ignore[operator]

    Inventory(database).sync_models([model("a:latest")])
    first = Footprints(now)
    assert first.known_bytes("k") == 0
    first.learned("k", str(model("a").digest), 1000)
    first.learned("k", str(model("a").digest), 2000)
    second = Footprints(now)
    second.load(database)
    assert second.known_bytes("k") == 2000
    with database.read() as connection:
        assert connection.execute(select(models.c.footprint_measured_bytes)).scalar_one() == 2000
    Inventory(database).sync_models([model("b:latest")])
    with database.read() as connection:
        assert connection.execute(select(models.c.footprint_measured_bytes)).scalar_one() == 2000


@pytest.mark.requirement("R-D1")
def test_deployments_follow_the_events_of_workers(database: Database) -> None:
    def worker(kind: str, name: str, unix_s: float, **facts: object) -> Event:
        return Event(kind, f"{name} {kind}", service=f"worker:{name}", model="m", unix_s=unix_s, facts=facts)

    story = [
        worker("loading", "a", 1, engine="llama.cpp"),
        Event("queued", service="mlxserve", unix_s=1),
        worker("loaded", "a", 2, footprint_bytes=77),
        worker("evicted", "a", 3),
        worker("unloaded", "a", 4),
        worker("adopted", "b", 5, pid=12),
        Event("swapped", service="slot:8101", model="m", port=8101, unix_s=5.5),
        worker("loading", "c", 6),
        worker("failed", "c", 7),
        worker("loading", "d", 8),
    ]
    with database.write() as connection:
        follow_events(connection, story)
        assert end_others(connection, ["b"], 9.0) == 1
    with database.read() as connection:
        found = connection.execute(select(deployments).order_by(deployments.c.deployment_id)).mappings().all()
    told = [
        (row["worker_id"], row["started_unix_s"], row["ready_unix_s"], row["ended_unix_s"], row["reason"])
        for row in found
    ]
    assert told == [
        ("a", 1.0, 2.0, 3.0, "a evicted"),
        ("b", 5.0, 5.0, None, ""),
        ("c", 6.0, None, 7.0, "c failed"),
        ("d", 8.0, None, 9.0, "its daemon ended"),
    ]
    assert (found[0]["engine"], found[0]["footprint_bytes"], found[1]["pid"]) == ("llama.cpp", 77, 12)
    assert [row["port"] for row in found] == [0, 8101, 0, 0]
