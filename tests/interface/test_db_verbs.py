"""``mlxctl db`` and ``mlxctl key`` on a real database, with and without a daemon."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.postgres import Postgres

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl


@pytest.mark.requirement("R-D1", "R-U1")
def test_a_home_without_a_database_gets_one_and_says_so(mlxctl: Mlxctl, home: Home) -> None:
    before = mlxctl("db", "status", "--json").json()
    assert (before["revision"], before["current"]) == ("", False)
    assert not home.database.exists()
    assert mlxctl("db", "upgrade", "--json").json()["upgraded"] is True
    assert mlxctl("db", "upgrade", "--json").json()["upgraded"] is False
    after = mlxctl("db", "status", "--json").json()
    assert after["current"]
    assert after["rows"]["keys"] == 0
    assert after["size_bytes"] > 0
    assert "v_slot_drift" in mlxctl("db", "status").out


@pytest.mark.requirement("R-G6", "R-U1", "B-10")
def test_keys_are_made_without_a_daemon_and_valid_in_one(mlxctl: Mlxctl, home: Home) -> None:
    home.keys.write_text(
        json.dumps(
            {
                "version": 1,
                "keys": [
                    {"name": "old", "scopes": ["inference"], "sha256": "0" * 64, "hint": "abcd", "created_unix_s": 5.0}
                ],
            }
        )
    )
    made = mlxctl("key", "create", "night", "--batch", "--json").json()
    assert (made["priority"], made["scopes"]) == ("batch", ["inference"])
    listed = mlxctl("key", "list", "--json").json()["keys"]
    assert [(key["name"], key["priority"]) for key in listed] == [("old", "interactive"), ("night", "batch")]
    assert not home.keys.exists()
    with Daemon(home) as daemon:
        assert mlxctl("key", "revoke", "old").code == 0
        assert daemon.call("GET", "/healthz")[0] == 200
        assert [key["name"] for key in mlxctl("key", "list", "--json").json()["keys"]] == ["night"]
        assert mlxctl("key", "revoke", "old").code != 0


@pytest.mark.requirement("R-D1", "B-13")
def test_a_query_shows_a_table_or_json_and_cannot_write(mlxctl: Mlxctl, home: Home) -> None:
    mlxctl("key", "create", "mine")
    shown = mlxctl("db", "query", "SELECT name, scopes FROM keys")
    assert shown.out.split() == ["name", "scopes", "mine", "inference"]
    assert mlxctl("db", "query", "--json", "SELECT name FROM keys").json() == {
        "columns": ["name"],
        "rows": [["mine"]],
        "more": False,
    }
    assert mlxctl("db", "query", "--limit", "1", "--json", "SELECT 1 UNION SELECT 2").json()["more"] is True
    refused = mlxctl("db", "query", "DELETE FROM keys", "--json")
    assert refused.code != 0
    assert refused.json()["error"]["code"] == "invalid_input"
    assert mlxctl("db", "query", "SELECT count(*) FROM keys", "--json").json()["rows"] == [[1]]


@pytest.mark.requirement("R-D5")
def test_backup_and_vacuum_work_while_the_daemon_runs(mlxctl: Mlxctl, home: Home, tmp_path: Path) -> None:
    with Daemon(home):
        mlxctl("key", "create", "mine")
        path = tmp_path / "copy.db"
        assert mlxctl("db", "backup", str(path), "--json").json()["path"] == str(path)
        assert Path(mlxctl("db", "backup", "--json").json()["path"]).parent == home.backups
        assert mlxctl("db", "vacuum", "--json").json()["deleted"] == 0
    with closing(sqlite3.connect(path)) as copy:
        assert copy.execute("SELECT name FROM keys").fetchall() == [("mine",)]


@pytest.mark.requirement("R-D1")
def test_a_database_is_copied_to_postgresql_and_the_daemon_runs_on_it(
    mlxctl: Mlxctl, home: Home, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url()
    token = mlxctl("key", "create", "mine", "--json").json()["key"]
    copied = mlxctl("db", "copy", "--to", url, "--json").json()
    assert copied["rows"]["keys"] == 1
    again = mlxctl("db", "copy", "--to", url, "--json")
    assert again.json()["error"]["code"] == "already_exists"
    assert mlxctl("db", "copy", "--to", url, "--force").code == 0
    assert mlxctl("db", "copy", "--to", f"sqlite:///{home.database}", "--json").json()["error"]["code"] == (
        "invalid_input"
    )
    monkeypatch.setenv("HOMELAB_DATA__URL", url)
    assert mlxctl("db", "status", "--json").json()["dialect"] == "postgresql"
    assert [key["name"] for key in mlxctl("key", "list", "--json").json()["keys"]] == ["mine"]
    home.database.unlink()
    with Daemon(home) as daemon:
        assert daemon.call("GET", "/readyz")[0] == 200
        assert mlxctl("db", "query", "SELECT hint FROM keys", "--json").json()["rows"] == [[token[-4:]]]
    assert not home.database.exists()


@pytest.mark.requirement("R-D2", "R-D3")
def test_services_are_up_while_the_daemon_lives_and_down_after(mlxctl: Mlxctl, home: Home) -> None:
    query = "SELECT e.url, s.state FROM services s JOIN endpoints e ON e.service_id = s.service_id"
    asked = ("db", "query", f"{query} WHERE e.kind = 'health' AND s.service_id = 'mlxserve' ORDER BY e.url", "--json")
    with Daemon(home) as daemon:
        deadline_s = time.monotonic() + 30
        while not (rows := mlxctl(*asked).json()["rows"]) and time.monotonic() < deadline_s:
            threading.Event().wait(0.1)
        assert [f"{daemon.url}/readyz", "up"] in rows
    assert {state for _, state in mlxctl(*asked).json()["rows"]} == {"down"}
