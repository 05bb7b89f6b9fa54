"""What the views tell, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Select, literal_column, select, table

from homelab_llm.data.database import Database
from homelab_llm.data.tables import (
    assignments,
    deployments,
    events,
    hosts,
    jobs,
    models,
    registry_entries,
    requests,
    services,
    slots,
)

HOUR = 3600.0
DAY_1 = 1_700_006_400.0  # 2023-11-15T00:00:00Z


def rows(database: Database, view: str) -> list[dict[str, Any]]:
    with database.read() as connection:
        everything: Select[Any] = select(literal_column("*")).select_from(table(view))
        return [dict(row) for row in connection.execute(everything).mappings()]


@pytest.mark.requirement("R-D2")
def test_every_service_is_shown_with_its_latest_event_healthy_ones_too(database: Database) -> None:
    with database.write() as connection:
        connection.execute(hosts.insert().values(host_id="h"))
        for name, state in (("quiet", "up"), ("well", "up"), ("ill", "up"), ("gone", "down")):
            connection.execute(services.insert().values(service_id=name, host_id="h", state=state))
        for service, level, text in (
            ("well", "error", "long ago"),
            ("well", "info", "well again"),
            ("ill", "info", "fine"),
            ("ill", "error", "broken"),
            ("gone", "warning", "odd"),
        ):
            connection.execute(events.insert().values(service=service, level=level, text=text, kind="k", unix_s=1.0))
    told = {row["service_id"]: (row["health"], row["text"]) for row in rows(database, "v_service_health")}
    assert told == {
        "quiet": ("ok", ""),
        "well": ("ok", "well again"),
        "ill": ("error", "broken"),
        "gone": ("down", "odd"),
    }


@pytest.mark.requirement("R-D2")
def test_drift_is_said_in_words_for_every_slot(database: Database) -> None:
    with database.write() as connection:
        for slug in ("a", "b", "c", "d"):
            connection.execute(registry_entries.insert().values(slug=slug))
        for port in range(8100, 8105):
            connection.execute(slots.insert().values(port=port, alias=f"s{port}"))
        for values in (
            {"port": 8101, "desired": "a", "actual": "a"},
            {"port": 8102, "desired": "b", "actual": "x"},
            {"port": 8103, "desired": "c", "last_failure": "no memory"},
            {"port": 8104, "actual": "y"},
            {"port": 9000, "desired": "d", "actual": "d"},
        ):
            connection.execute(assignments.insert().values(**values))
    told = {row["port"]: row["drift"] for row in rows(database, "v_slot_drift")}
    assert told[8100] == told[8101] == ""
    assert told[8102] == "serves another model"
    assert told[8103] == "its model failed"
    assert told[8104] == "serves a model that is not assigned"
    assert told[9000] == "the node has no such slot"


@pytest.mark.requirement("R-D2", "B-13")
def test_latency_is_told_per_model_and_whole_hour(database: Database) -> None:
    with database.write() as connection:
        for number in range(1, 201):
            connection.execute(
                requests.insert().values(
                    model="m",
                    status=200,
                    started_unix_s=DAY_1 + number,
                    total_ms=float(number),
                    first_token_ms=float(number) if number <= 100 else 0.0,
                )
            )
        late = {"model": "m", "status": 200, "started_unix_s": DAY_1 + HOUR, "total_ms": 7.0, "first_token_ms": 0.0}
        connection.execute(requests.insert().values(**late))
        connection.execute(requests.insert().values(model="m", status=500, started_unix_s=DAY_1, total_ms=9e9))
    first, second = sorted(rows(database, "v_request_latency"), key=lambda row: row["hour_unix_s"])
    assert (first["hour_unix_s"], second["hour_unix_s"]) == (DAY_1, DAY_1 + HOUR)
    assert [first[f"total_ms_p{n}"] for n in (50, 95, 99)] == [100.0, 190.0, 198.0]
    assert [first[f"first_token_ms_p{n}"] for n in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert (first["requests"], second["requests"]) == (200, 1)
    assert (second["total_ms_p50"], second["total_ms_p99"], second["first_token_ms_p50"]) == (7.0, 7.0, None)


@pytest.mark.requirement("R-D2")
def test_usage_is_told_per_key_model_and_day(database: Database) -> None:
    with database.write() as connection:
        for started, key, error in ((0.0, "k", ""), (86399.0, "k", "queue_full"), (86400.0, "k", ""), (0.0, "", "")):
            connection.execute(
                requests.insert().values(
                    started_unix_s=DAY_1 + started, key=key, model="m", error=error, prompt_tokens=10, total_ms=500.0
                )
            )
    told = {(row["key"], row["day"]): row for row in rows(database, "v_usage")}
    assert set(told) == {("k", "2023-11-15"), ("k", "2023-11-16"), ("", "2023-11-15")}
    day = told["k", "2023-11-15"]
    assert (int(day["requests"]), int(day["errors"]), int(day["prompt_tokens"]), day["total_s"]) == (2, 1, 20, 1.0)


@pytest.mark.requirement("R-D2")
def test_errors_of_requests_and_events_are_one_list(database: Database) -> None:
    with database.write() as connection:
        connection.execute(requests.insert().values(request_id="r1", error="queue_full", endpoint="/v1/x"))
        connection.execute(requests.insert().values(request_id="r2"))
        connection.execute(events.insert().values(kind="crashed", level="error", text="signal 9", service="worker:a"))
        connection.execute(events.insert().values(kind="loaded", level="info"))
    told = sorted((row["source"], row["code"], row["place"], row["text"]) for row in rows(database, "v_errors"))
    assert told == [("event", "crashed", "worker:a", "signal 9"), ("request", "queue_full", "/v1/x", "r1")]


@pytest.mark.requirement("R-D2")
def test_models_are_ordered_by_size_and_the_best_known_memory(database: Database) -> None:
    with database.write() as connection:
        for name, size, weights, estimated, measured in (
            ("small", 1, 1, 9, 0),
            ("large", 3, 3, 4, 5),
            ("same", 3, 2, 0, 0),
        ):
            connection.execute(
                models.insert().values(
                    model=name,
                    size_on_disk_bytes=size,
                    weights_bytes=weights,
                    footprint_estimated_bytes=estimated,
                    footprint_measured_bytes=measured,
                )
            )
    told = [
        (row["model"], row["memory_bytes"], row["memory_source"], row["size_rank"], row["memory_rank"])
        for row in rows(database, "v_model_capacity")
    ]
    assert told == [
        ("large", 5, "measured", 1, 2),
        ("same", 2, "weights", 1, 3),
        ("small", 9, "estimated", 3, 1),
    ]


@pytest.mark.requirement("R-D2")
def test_deployments_are_told_with_their_model_even_when_it_was_removed(database: Database) -> None:
    with database.write() as connection:
        connection.execute(models.insert().values(model="m", format="gguf"))
        connection.execute(deployments.insert().values(model="m", started_unix_s=1.0, ready_unix_s=3.0))
        connection.execute(deployments.insert().values(model="gone", ended_unix_s=1.0))
    told = {
        row["model"]: (row["active"], row["format"], row["load_s"]) for row in rows(database, "v_model_deployments")
    }
    assert told == {"m": (1, "gguf", 2.0), "gone": (0, "", None)}


def test_jobs_are_shown_newest_first_with_what_is_done_of_them(database: Database) -> None:
    with database.write() as connection:
        for values in (
            {"job_id": "old", "created_unix_s": 1.0, "started_unix_s": 3.0, "finished_unix_s": 10.0},
            {"job_id": "new", "created_unix_s": 5.0, "done_bytes": 1, "total_bytes": 4},
        ):
            connection.execute(jobs.insert().values(kind="pull", state="queued", **values))
    told = rows(database, "v_jobs_recent")
    assert [(row["job_id"], row["share"], row["waited_s"], row["took_s"]) for row in told] == [
        ("new", 0.25, None, None),
        ("old", None, 2.0, 7.0),
    ]
