"""The registry changed by another process while a daemon runs: the daemon follows, and says what differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.slotted import rows, slotted, steps


def registry(daemon: Daemon, ports: list[int], *argv: str, stdin: bytes = b"") -> str:
    """``mlxctl registry`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "homelab_llm.interface.cli.main", "registry", *argv],
        env={
            **os.environ,
            "HOMELAB_HOME": str(daemon.home.root),
            "XDG_RUNTIME_DIR": str(daemon.home.runtime.parent),
            "HOMELAB_SLOTS__PORTS": ",".join(map(str, ports)),
        },
        input=stdin,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode()


def an_import(**models: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "models": models}).encode()


@pytest.mark.requirement("R-F2", "R-F3")
def test_an_import_is_drift_until_reconcile_brings_it_about_and_an_edited_file_is_reported() -> None:
    with slotted() as daemon:
        ports = [int(row["port"]) for row in rows(daemon)]
        steps(daemon.call("POST", "/admin/slots/load", {"model": "a", "slot": str(ports[0])}))
        content = an_import(
            a={"model_id": "a", "format": "gguf", "port": ports[1]},
            b={"model_id": "b", "format": "gguf", "port": ports[0]},
        )
        registry(daemon, ports, "import", "-", stdin=content)
        assert [row["desired"] for row in rows(daemon)] == ["b", "a"]
        assert rows(daemon)[0]["drift"]
        steps(daemon.call("POST", "/admin/reconcile", {"apply": True}))
        assert [(row["model"], row["drift"]) for row in rows(daemon)] == [("b:latest", ""), ("a:latest", "")]
        file = daemon.home.root / "registry.json"
        exported = json.loads(file.read_bytes())
        assert {slug: entry["port"] for slug, entry in exported["models"].items()} == {"a": ports[1], "b": ports[0]}
        exported["models"]["a"]["pinned"] = True
        file.write_text(json.dumps(exported))
        found = daemon.call("GET", "/admin/slots")[1]
        assert found["registry_drift"].endswith("was edited: a has another pinned")
        registry(daemon, ports, "import", str(file))
        assert daemon.call("GET", "/admin/slots")[1]["registry_drift"] == ""
        assert rows(daemon)[1]["pinned"] is True
