"""``ps``, ``stop``, ``status`` and ``version`` against a daemon that follows a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, ScriptedDaemon

LOADED: dict[str, Any] = {
    "id": "abc12",
    "model": "smollm2:135m",
    "digest": "sha256:" + "0" * 64,
    "engine": "llama.cpp",
    "state": "ready",
    "pid": 17,
    "memory_bytes": 250_000_000,
    "footprint_bytes": 300_000_000,
    "leases": 1,
    "waiting": 0,
    "parallel": 4,
    "context_tokens": 2048,
    "loaded_unix_s": 1.0,
    "expires_in_s": 120,
    "progress": None,
    "warning": None,
}
STATUS = {
    "version": "0.0.9",
    "pid": 16,
    "home": "/h",
    "uptime_s": 75,
    "listeners": ["127.0.0.1:1234"],
    "budget_bytes": 8 * 10**9,
    "used_bytes": 10**9,
    "workers": [LOADED],
    "waiting": 2,
    "warnings": [{"text": "a GPU is present but unused", "hint": "install it"}],
}


def test_ps_without_a_daemon_is_an_empty_list_and_starts_none(mlxctl: Mlxctl) -> None:
    shown = mlxctl("ps", "--json")
    assert shown.code == 0
    assert shown.json() == {"running": False, "models": []}
    assert "not running" in mlxctl("ps").err
    assert mlxctl("daemon", "status").code == 10


def test_ps_shows_memory_requests_and_when_a_model_goes(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    idle = {**LOADED, "model": "other:latest", "leases": 0}
    forever = {**LOADED, "model": "third:latest", "leases": 0, "expires_in_s": None}
    loading = {**LOADED, "model": "fourth:latest", "state": "loading", "progress": {"stage": "convert", "done": 0.25}}
    daemon.says("/admin/models", 200, {"models": [LOADED, idle, forever, loading]})
    lines = mlxctl("ps").out.splitlines()
    assert lines[0].split() == ["MODEL", "WORKER", "ENGINE", "STATE", "MEMORY", "BUSY", "CONTEXT", "UNLOADS"]
    assert lines[1].split() == [
        "smollm2:135m",
        "abc12",
        "llama.cpp",
        "ready",
        "250.0",
        "MB",
        "1/4",
        "2048",
        "in",
        "use",
    ]
    assert lines[2].endswith("in 2m")
    assert lines[3].endswith("for ever")
    assert "convert 25 %" in lines[4]
    assert mlxctl("ps", "--json").json()["models"][0] == LOADED


@pytest.mark.requirement("B-11")
def test_ps_says_aloud_that_a_gpu_is_unused_and_what_mends_it(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    slow = {**LOADED, "warning": {"text": "runs on the CPU though there is a GPU", "hint": "put llama-server on PATH"}}
    daemon.says("/admin/models", 200, {"models": [slow]})
    shown = mlxctl("ps")
    assert "warning: runs on the CPU though there is a GPU\n  try: put llama-server on PATH" in shown.err


def test_status_tells_memory_listeners_and_warnings(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/status", 200, STATUS)
    shown = mlxctl("status")
    assert "serves   http://127.0.0.1:1234" in shown.out
    assert "1.0 GB of 8.0 GB" in shown.out
    assert "a GPU is present but unused" in shown.err
    assert mlxctl("status", "--json").json()["waiting"] == 2


def test_stop_unloads_the_named_models_and_says_which_were_not_there(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/models/unload", 200, {"unloaded": True})
    shown = mlxctl("stop", "smollm2:135m", "--force")
    assert shown.out == "stopped smollm2:135m\n"
    assert daemon.asked[-1] == ("/admin/models/unload", {"model": "smollm2:135m", "force": True})
    daemon.says("/admin/models/unload", 200, {"unloaded": False})
    assert mlxctl("stop", "x").out == "x was not loaded\n"


def test_stop_all_asks_for_every_loaded_model(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/models", 200, {"models": [LOADED, {**LOADED, "model": "b:latest"}]})
    daemon.says("/admin/models/unload", 200, {"unloaded": True})
    assert mlxctl("stop", "--all", "--json").json()["unloaded"] == ["smollm2:135m", "b:latest"]


def test_stop_without_a_daemon_has_nothing_to_do(mlxctl: Mlxctl) -> None:
    assert mlxctl("stop", "--all", "--json").json() == {"running": False, "unloaded": []}


def test_an_error_of_the_daemon_arrives_with_code_and_hint(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    error = {"code": "model_in_use", "message": "busy", "hint": "mlxctl stop --force x", "facts": {"leases": 2}}
    daemon.says("/admin/models/unload", 409, {"error": error})
    shown = mlxctl("stop", "x", "--json")
    assert shown.code == 6
    assert shown.json()["error"]["facts"] == {"leases": 2}
