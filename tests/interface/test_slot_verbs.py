"""The verbs of slots against a daemon that follows a script: what they ask, what they show, how they fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.errors import SlotNotFound
from homelab_llm.interface.cli.slots import chosen_slots
from homelab_llm.interface.cli.status import slot_lines

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, ScriptedDaemon

EMPTY: dict[str, Any] = {
    "port": 8101,
    "alias": "jerry-l",
    "address": "127.0.0.1:8101",
    "state": "empty",
    "desired": "",
    "actual": "",
    "last_good": "",
    "model": "",
    "engine": "",
    "pid": 0,
    "since_unix_s": 0,
    "memory_bytes": 0,
    "in_flight": 0,
    "waiting": 0,
    "context_tokens": 0,
    "pinned": False,
    "keep_alive_s": None,
    "drift": "",
    "last_failure": "",
    "foreign": None,
}
SERVING: dict[str, Any] = {
    **EMPTY,
    "port": 8100,
    "alias": "jerry-xl",
    "state": "serving",
    "desired": "smollm2-135m",
    "actual": "smollm2-135m",
    "model": "smollm2:135m",
    "engine": "llama.cpp",
    "pid": 4711,
    "since_unix_s": 1_000,
    "memory_bytes": 250_000_000,
    "in_flight": 2,
    "waiting": 1,
}
READY = json.dumps({"stage": "ready", "done": 1, "port": 8100, "alias": "jerry-xl", "model": "smollm2:135m"})
STATUS: dict[str, Any] = {
    "version": "0",
    "pid": 1,
    "home": "/h",
    "uptime_s": 5,
    "budget_bytes": 8,
    "used_bytes": 1,
    "workers": [{"model": "smollm2:135m", "state": "ready"}, {"model": "loose:1", "state": "ready"}],
}


@pytest.mark.requirement("R-F3")
def test_load_asks_for_the_slot_and_says_where_the_model_answers(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.streams("/admin/slots/load", '{"stage":"loading","done":0.5,"text":"warming"}', READY)
    shown = mlxctl("load", "smollm2:135m", "jerry-xl", "--force")
    assert (shown.code, shown.out) == (0, "smollm2:135m answers on 8100 (jerry-xl)\n")
    assert daemon.asked[-1] == (
        "/admin/slots/load",
        {"model": "smollm2:135m", "slot": "jerry-xl", "force": True},
    )
    assert mlxctl("load", "smollm2:135m", "--json").json() == {
        "port": 8100,
        "alias": "jerry-xl",
        "model": "smollm2:135m",
    }
    assert daemon.asked[-1][1]["slot"] == "auto"


@pytest.mark.requirement("R-F3")
def test_a_used_slot_is_a_conflict_with_the_command_that_swaps(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    error = {"code": "slot_in_use", "message": "port 8100 serves a", "hint": "mlxctl load m 8100 --force"}
    daemon.streams("/admin/slots/load", json.dumps({"error": error}))
    shown = mlxctl("load", "m", "8100")
    assert shown.code == 6
    assert shown.err == "error: port 8100 serves a\n  try: mlxctl load m 8100 --force\n"


def test_a_daemon_that_goes_away_before_the_end_is_an_error_and_no_success(
    mlxctl: Mlxctl, daemon: ScriptedDaemon
) -> None:
    daemon.streams("/admin/slots/swap", '{"stage":"loading","done":0.5}')
    shown = mlxctl("swap", "8100", "m", "--json")
    assert shown.code == 10
    assert shown.json()["error"]["hint"] == "mlxctl status"


@pytest.mark.requirement("R-F3")
def test_swap_names_slot_and_model(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.streams("/admin/slots/swap", READY)
    assert mlxctl("swap", "jerry-xl", "smollm2:135m").out == "smollm2:135m answers on 8100 (jerry-xl)\n"
    assert daemon.asked[-1] == ("/admin/slots/swap", {"slot": "jerry-xl", "model": "smollm2:135m"})


@pytest.mark.requirement("R-F4")
def test_control_c_calls_a_load_off_by_closing_the_connection(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    step = '{"stage":"loading","done":0.5}\n'
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    daemon.replies["/admin/slots/load"] = f"{head}{len(step):x}\r\n{step}\r\n3\r\n...".encode()
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "load", "m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert daemon.waiting.wait(20)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
        assert running.stderr is not None
        assert b"called off: the slot serves what it served before" in running.stderr.read()
    assert daemon.hung_up.wait(10)


@pytest.mark.requirement("R-F3")
def test_unload_takes_ports_aliases_and_models(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/slots", 200, {"slots": [SERVING, EMPTY], "drift": False})
    daemon.says("/admin/slots/unload", 200, {"port": 8100, "unloaded": True})
    shown = mlxctl("unload", "smollm2:135m", "8101", "jerry-xl")
    assert shown.out == "8100 (jerry-xl) is empty\n8101 (jerry-l) is empty\n"
    assert [body for path, body in daemon.asked if path == "/admin/slots/unload"] == [
        {"slot": "8100"},
        {"slot": "8101"},
    ]
    missing = mlxctl("unload", "nothing")
    assert missing.code == 4
    assert "mlxctl stop nothing" in missing.err


def test_a_model_is_found_by_slug_by_name_and_by_a_name_without_its_tag() -> None:
    row = {**SERVING, "desired": "tiny", "actual": "", "model": "tiny:latest"}
    for text in ("8100", "jerry-xl", "tiny", "tiny:latest"):
        assert [found["port"] for found in chosen_slots([EMPTY, row], [text, text])] == [8100]
    with pytest.raises(SlotNotFound):
        chosen_slots([EMPTY], [""])


@pytest.mark.requirement("R-F3")
def test_unload_all_asks_nothing_without_a_terminal(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    gone = {"port": 8100, "alias": "jerry-xl", "model": "a:1", "unloaded": True, "cleared": "a"}
    daemon.says("/admin/slots/unload-all", 200, {"slots": [gone], "cleared_ports": [], "failed": []})
    assert mlxctl("unload-all").out == "8100 (jerry-xl) is empty, a:1 was there\n"
    failed = {"code": "worker_stalled", "message": "it does not end"}
    daemon.says("/admin/slots/unload-all", 200, {"slots": [], "cleared_ports": [], "failed": [failed]})
    shown = mlxctl("unload-all")
    assert (shown.code, shown.out) == (1, "not emptied: it does not end\n")


@pytest.mark.requirement("R-F3")
def test_reconcile_only_tells_unless_it_shall_apply(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    would = json.dumps({"stage": "would", "text": "8100 (jerry-xl): load a: not loaded", "port": 8100})
    end = {"stage": "done", "text": "1 to do; mlxctl reconcile --apply does it", "failed": [], "left": 1}
    daemon.streams("/admin/reconcile", would, json.dumps(end))
    shown = mlxctl("reconcile")
    assert shown.out.splitlines() == ["8100 (jerry-xl): load a: not loaded", end["text"]]
    assert daemon.asked[-1] == ("/admin/reconcile", {"apply": False})
    wrong = [{"port": 8100, "error": {"code": "load_failed", "message": "it ended"}}]
    steps = [json.dumps({"stage": stage, "text": "t", "port": 8100}) for stage in ("applying", "loading", "failed")]
    daemon.streams("/admin/reconcile", *steps, json.dumps({"stage": "done", "text": "x", "failed": wrong, "left": 1}))
    failed = mlxctl("reconcile", "--apply", "--json")
    assert failed.code == 1
    assert failed.json() == {
        "applied": True,
        "actions": [{"stage": "failed", "text": "t", "port": 8100}],
        "failed": wrong,
        "left": 1,
    }


@pytest.mark.requirement("R-F3")
def test_verify_ends_with_1_on_drift_and_names_the_next_command(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    problem = {"port": 8100, "text": "serves nothing, shall serve a", "hint": "mlxctl reconcile --apply"}
    daemon.says("/admin/verify", 200, {"ok": False, "problems": [problem]})
    shown = mlxctl("verify")
    assert (shown.code, shown.out) == (1, "8100: serves nothing, shall serve a\n")
    assert "try: mlxctl reconcile --apply" in shown.err
    daemon.says("/admin/verify", 200, {"ok": True, "problems": []})
    assert mlxctl("verify", "--json").code == 0


def test_pins_and_quarantine_reach_the_daemon(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/models/pin", 200, {"model": "m", "pinned": True})
    daemon.says("/admin/models/unquarantine", 200, {"model": "m", "released": False})
    assert mlxctl("pin", "m").out == "m is pinned\n"
    assert mlxctl("unpin", "m").code == 0
    assert [body for path, body in daemon.asked if path == "/admin/models/pin"] == [
        {"model": "m", "pinned": True},
        {"model": "m", "pinned": False},
    ]
    assert mlxctl("unquarantine", "m").out == "m was not in quarantine\n"


@pytest.mark.requirement("R-F5")
def test_fit_shows_the_numbers_and_ends_with_1_when_it_does_not_fit(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    numbers = {
        "fits": False,
        "needed_bytes": 9 * 10**9,
        "weights_bytes": 8 * 10**9,
        "free_bytes": 10**9,
        "budget_bytes": 8 * 10**9,
        "evicts": [],
        "largest_context_tokens": 2048,
        "measured": False,
        "engine": "llama.cpp",
    }
    daemon.says("/admin/fit", 200, numbers)
    shown = mlxctl("fit", "m", "--context", "8192")
    assert shown.code == 1
    assert "m does not fit" in shown.out
    assert "    9.0 GB  needed, estimated\n" in shown.out
    assert "     2,048  tokens of context at most\n" in shown.out
    assert daemon.asked[-1] == ("/admin/fit", {"model": "m", "context_tokens": 8192})
    daemon.says("/admin/fit", 200, {**numbers, "fits": True, "evicts": ["old:1"]})
    assert mlxctl("fit", "m").out.startswith("m fits, after unloading old:1\n")


def test_explain_takes_a_model_a_file_or_standard_input(mlxctl: Mlxctl, daemon: ScriptedDaemon, tmp_path: Any) -> None:
    daemon.says("/admin/explain", 200, {"model": "a:1", "why": ["jerry-xl is slot 8100", "it serves a:1"]})
    shown = mlxctl("explain", "jerry-xl", "--slot", "8100")
    assert shown.out.startswith("1. jerry-xl is slot 8100\n2. it serves a:1\n")
    assert daemon.asked[-1][1] == {"request": {"model": "jerry-xl"}, "slot": "8100"}
    body = {"model": "a", "messages": []}
    (tmp_path / "request.json").write_text(json.dumps(body))
    assert mlxctl("explain", str(tmp_path / "request.json")).code == 0
    assert mlxctl("explain", "-", stdin=json.dumps(body).encode()).code == 0
    assert [asked[1] for asked in daemon.asked[-3:] if asked[1]][-2:] == [{"request": body}] * 2
    assert mlxctl("explain", "-", stdin=b"nonsense").code == 3


@pytest.mark.requirement("R-F3")
def test_status_shows_a_table_of_slots_and_the_drift_in_words(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    drifting = {**EMPTY, "desired": "b", "state": "failed", "drift": "shall serve b, serves nothing"}
    drifting["last_failure"] = "the worker\nended"
    daemon.says("/admin/status", 200, STATUS)
    daemon.says("/admin/slots", 200, {"slots": [SERVING, drifting], "drift": True, "registry_drift": "edited"})
    shown = mlxctl("status")
    lines = shown.out.splitlines()
    assert "PORT  ALIAS     STATE    MODEL" in shown.out
    assert "drift    8101: shall serve b, serves nothing" in lines
    assert "failed   8101: the worker ended" in lines
    assert "drift    registry: edited" in lines
    assert [line for line in lines if line.startswith("model ")] == ["model    loose:1 on ?, ready, 0 B"]
    assert mlxctl("status", "--json").json()["slots"] == [SERVING, drifting]


@pytest.mark.requirement("R-F3")
def test_the_table_of_slots_fits_a_hundred_columns_whatever_the_names_are() -> None:
    name = "mlx-community-qwen3-235b-a22b-instruct-2507-6bit-and-then-some-more-words"
    long = {**SERVING, "desired": name, "actual": name, "pid": 4_194_304, "memory_bytes": 198_700_000_000}
    long |= {"since_unix_s": 1.0, "in_flight": 255, "waiting": 9_999, "pinned": True, "state": "swapping"}
    foreign = {**EMPTY, "state": "foreign", "foreign": {"pid": 12, "name": "llama-server", "model": "their-model"}}
    lines = list(slot_lines([long, foreign], now_s=400_000_000))
    assert max(map(len, lines)) <= 100
    assert lines[1].split()[3].startswith("mlx-community")
    assert "…" in lines[1]
    assert lines[2].split()[:6] == ["8101", "jerry-l", "foreign", "their-model", "12", "-"]
    coming = {**EMPTY, "state": "swapping", "desired": "a", "changing_to": "b"}
    assert "a → b" in list(slot_lines([coming]))[1]


def test_a_slot_verb_without_a_daemon_starts_one_and_status_does_not(mlxctl: Mlxctl) -> None:
    assert mlxctl("events").code == 10
    assert "mlxctl daemon start" in mlxctl("events", "-f").err
    assert mlxctl("status", "--json").json()["running"] is False


def test_completion_offers_slots_by_port_and_alias(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/slots", 200, {"slots": [SERVING, EMPTY]})
    environ = {"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": "mlxctl swap jer", "COMP_CWORD": "2"}
    assert mlxctl(environ=environ).out.split() == ["plain,jerry-xl", "plain,jerry-l"]
    environ = {"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": "mlxctl load m a", "COMP_CWORD": "3"}
    assert mlxctl(environ=environ).out.split() == ["plain,auto"]
    environ = {"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": "mlxctl run je", "COMP_CWORD": "2"}
    assert mlxctl(environ=environ).out.split() == ["plain,jerry-xl"], "an empty slot answers nothing"
