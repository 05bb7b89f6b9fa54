"""The verbs of slots through a real daemon with the fake engine: what a person types, from an empty node to drift."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.events import eventually
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.slotted import free_ports

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-F3")


@pytest.fixture
def node(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon with two slots and the models ``a``, ``b``, ``slow`` (loads for a minute) and ``bad`` (never loads)."""
    store = ModelStore(home.store)
    for name, more in {"a": {}, "b": {}, "slow": {"load_s": 60.0}, "bad": {"load": "crash"}}.items():
        path = write_fake_model(home.root / f"{name}.gguf", name=name, **more)  # type: ignore[arg-type]
        store.import_path(path, ModelRef.parse(name))
    ports = ",".join(map(str, free_ports(2)))
    monkeypatch.setenv("HOMELAB_SLOTS__PORTS", ports)
    with Daemon(home, fake=True, slots=ports) as running:
        yield running


def started(*argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rows(mlxctl: Mlxctl) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mlxctl("status", "--json").json()["slots"]
    return found


def test_a_node_is_filled_swapped_pinned_and_emptied_by_hand(mlxctl: Mlxctl, node: Daemon) -> None:
    first, second = (row["port"] for row in rows(mlxctl))
    assert mlxctl("load", "a").out == f"a:latest answers on {first} (jerry-xl)\n"
    used = mlxctl("load", "b", "jerry-xl")
    assert used.code == 6
    assert "--force" in used.err
    assert mlxctl("load", "b", str(second)).out == f"b:latest answers on {second} (jerry-l)\n"
    listed = {m["name"]: (m["state"], m["port"]) for m in mlxctl("list", "--json").json()["models"]}
    assert listed["a:latest"] == ("loaded", first)
    assert listed["slow:latest"] == ("stored", None)
    assert mlxctl("unload", "b").out == f"{second} (jerry-l) is empty\n"
    assert mlxctl("swap", "jerry-xl", "b").out == f"b:latest answers on {first} (jerry-xl)\n"
    assert [(row["model"], row["state"]) for row in rows(mlxctl)] == [("b:latest", "serving"), ("", "empty")]
    assert mlxctl("pin", "b").out == "b is pinned\n"
    assert rows(mlxctl)[0]["pinned"] is True
    assert mlxctl("unpin", "b").code == 0
    answer = mlxctl("run", "jerry-xl", "fake: tokens=2")
    assert answer.out == "tok0 tok1\n", answer
    assert mlxctl("stop", "b").out == "stopped b\n"
    assert rows(mlxctl)[0]["state"] == "resting"
    assert mlxctl("verify").out == "every slot serves what the registry says\n"
    assert mlxctl("unload-all").out.startswith(f"{first} (jerry-xl) is empty")
    assert mlxctl("unload-all").out == "every slot was empty already\n"


def test_what_would_happen_is_told_before_it_does(mlxctl: Mlxctl, node: Daemon) -> None:
    assert mlxctl("fit", "a").out.startswith("a fits\n")
    assert mlxctl("fit", "a", "--json").json()["budget_bytes"] > 0
    assert mlxctl("fit", "nowhere").code == 4
    empty = mlxctl("explain", "jerry-xl")
    assert empty.code == 7
    assert re.search(r"try: mlxctl load \S+ \d+", empty.err)
    mlxctl("load", "a", "jerry-xl")
    told = mlxctl("explain", "jerry-xl")
    assert told.out.startswith("1. ")
    assert "a:latest" in told.out
    by_slot = mlxctl("explain", "-", "--slot", "jerry-xl", "--json", stdin=b'{"model": "other", "temperature": 0}')
    assert (by_slot.json()["model"], by_slot.json()["params"]) == ("a:latest", {"temperature": 0})


def test_a_load_that_fails_says_why_and_leaves_the_slot_as_it_was(mlxctl: Mlxctl, node: Daemon) -> None:
    assert mlxctl("load", "a", "jerry-xl").code == 0
    failed = mlxctl("load", "bad", "jerry-xl", "--force", "--json")
    assert failed.code == 8
    assert failed.json()["error"]["code"] in ("load_failed", "worker_crashed")
    (row, _) = rows(mlxctl)
    assert (row["model"], row["state"]) == ("a:latest", "serving")
    assert "failed   " in mlxctl("status").out
    assert mlxctl("load", "a", "jerry-nobody").code == 4
    assert mlxctl("load", "nowhere", "jerry-l").code == 4


async def test_control_c_calls_a_load_off_at_the_daemon_too(mlxctl: Mlxctl, node: Daemon) -> None:
    with started("load", "slow", "jerry-xl") as running:

        def models() -> list[str]:
            return [entry["model"] for entry in node.call("GET", "/admin/models")[1]["models"]]

        await eventually(lambda: models() == ["slow:latest"])
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    await eventually(lambda: models() == [])
    assert [row["state"] for row in rows(mlxctl)] == ["empty", "empty"]


async def test_drift_is_told_and_reconciled(mlxctl: Mlxctl, node: Daemon, home: Home) -> None:
    mlxctl("load", "a", "jerry-xl")
    document = json.loads((home.root / "registry.json").read_text())
    (entry,) = document["models"].values()
    port, entry["port"] = entry["port"], None
    document["models"]["b"] = {"repo_id": "", "model_id": "b:latest", "cache_path": "", "format": "gguf", "port": port}
    (home.root / "wanted.json").write_text(json.dumps(document))
    assert mlxctl("registry", "import", str(home.root / "wanted.json")).code == 0
    drift = mlxctl("verify")
    assert drift.code == 1
    assert drift.out.startswith(f"{port}: ")
    assert "mlxctl reconcile --apply" in drift.err
    assert f"{port} (jerry-xl): swap b" in mlxctl("reconcile").out
    assert rows(mlxctl)[0]["model"] == "a:latest", "without --apply nothing changes"
    applied = mlxctl("reconcile", "--apply")
    assert applied.code == 0, applied
    assert rows(mlxctl)[0]["model"] == "b:latest"
    assert mlxctl("verify").code == 0


async def test_events_tell_of_a_load_and_follow_what_comes(mlxctl: Mlxctl, node: Daemon) -> None:
    mlxctl("load", "a", "jerry-xl")
    seen = [json.loads(line) for line in mlxctl("events", "--json").out.splitlines()]
    assert "loaded" in {event["kind"] for event in seen}
    last = seen[-1]["id"]
    with started("events", "-f", "--after", str(last), "--json") as following:
        assert following.stdout is not None
        assert mlxctl("stop", "a").code == 0
        while json.loads(following.stdout.readline())["kind"] != "unloaded":
            pass
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 130


def test_status_fits_a_terminal_and_a_slot_answers_on_its_port(mlxctl: Mlxctl, node: Daemon) -> None:
    mlxctl("load", "a", "jerry-xl")
    shown = mlxctl("status").out
    assert max(map(len, shown.splitlines())) <= 100
    (row, _) = rows(mlxctl)
    os.kill(row["pid"], 0)  # it is there
    connection = http.client.HTTPConnection("127.0.0.1", row["port"], timeout=30)
    connection.request("GET", "/v1/models")
    assert [model["id"] for model in json.load(connection.getresponse())["data"]] == ["a:latest"]
    connection.close()
