"""``doctor``: each trouble is found, with the reason and the next step; nothing is changed by looking."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import homelab_llm
from homelab_llm.core.errors import StoreDamaged
from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.ops import checks
from homelab_llm.ops.checks_engines import engines, memory
from homelab_llm.ops.doctor import Check, Finding, Surroundings, examine
from homelab_llm.ops.record import DaemonRecord, write_record
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.models import write_fake_model


def look(check: Check, home: Home, ask: Any = None, **environ: str) -> list[Finding]:
    return list(examine(Surroundings(home, {**os.environ, **environ}, ask), (check,)))


def raising(error: Exception) -> Iterator[Finding]:
    raise error


def status_of(**changes: Any) -> Any:
    told = {"version": homelab_llm.__version__, "pid": 1, "warnings": []}
    return lambda _path: {**told, **changes}


def test_a_check_that_fails_is_a_finding_and_the_others_still_run(home: Home) -> None:
    def broken(_: Surroundings) -> Iterator[Finding]:
        return raising(StoreDamaged("unreadable", hint="mend it"))

    def denied(_: Surroundings) -> Iterator[Finding]:
        return raising(PermissionError(13, "Permission denied", "/x"))

    found = list(examine(Surroundings(home, {}, None), (broken, denied, checks.disk)))
    assert [(f.name, f.status, f.why) for f in found[:2]] == [
        ("broken", "fail", "unreadable"),
        ("denied", "fail", "Permission denied: /x"),
    ]
    assert found[0].step == "mend it"
    assert found[2].name == "disk"


def test_settings_that_cannot_be_read_fail_with_line_and_key(home: Home) -> None:
    home.config.write_text("log:\n  level: loud\n")
    (found,) = look(checks.settings, home)
    assert found.status == "fail"
    assert "config.yaml:2: log.level" in found.why


@pytest.mark.requirement("R-U4")
def test_a_daemon_of_another_version_fails_and_is_to_be_restarted(home: Home) -> None:
    (found,) = look(checks.daemon, home, status_of(version="0.0.1"))
    assert (found.status, found.step) == ("fail", "mlxctl daemon restart")


def test_the_daemons_own_warnings_are_told(home: Home) -> None:
    warning = {"text": "127.0.0.1:1234 is taken", "hint": "free it"}
    found = look(checks.daemon, home, status_of(warnings=[warning]))
    assert [(f.status, f.why, f.step) for f in found[1:]] == [("warn", warning["text"], warning["hint"])]


def test_a_daemon_that_was_killed_is_noticed(home: Home) -> None:
    write_record(home, DaemonRecord(pid=99, version="1", started_unix_s=0, socket=""))
    (found,) = look(checks.daemon, home)
    assert found.status == "warn"
    assert "99" in found.why
    home.daemon_json.unlink()
    (found,) = look(checks.daemon, home)
    assert found.status == "ok"


def test_a_port_that_another_program_holds_is_named(home: Home) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        (found,) = look(checks.ports, home, HOMELAB_SERVER__LISTEN=address)
        assert found.status == "warn"
        assert address in found.why
        write_record(home, DaemonRecord(pid=1, version="1", started_unix_s=0, socket="", listeners=[address]))
        (found,) = look(checks.ports, home, status_of(), HOMELAB_SERVER__LISTEN=address)
        assert found.status == "ok"


def test_a_damaged_model_fails_by_name(home: Home) -> None:
    store = ModelStore(home.store)
    model = store.import_path(write_fake_model(home.root / "m.gguf"), ModelRef.parse("m:1"))
    assert [f.status for f in look(checks.models, home)] == ["ok"]
    blob = next(iter(model.files.values()))
    blob.chmod(0o600)
    blob.unlink()
    found = look(checks.models, home)
    assert found[0].status == "fail"
    assert "m:1" in found[0].why + str(found[0].facts)
    assert found[0].step


def test_little_memory_is_a_warning_with_the_setting(home: Home) -> None:
    (found,) = look(memory, home, HOMELAB_FLEET__MEMORY_BUDGET_BYTES="200MB")
    assert (found.status, found.facts["budget_bytes"]) == ("warn", 200_000_000)
    assert "memory_budget_bytes" in found.step


def test_each_engine_is_told_with_its_version_and_what_the_used_one_leaves_idle(home: Home) -> None:
    told = {finding.name: finding for finding in look(engines, home, HOMELAB_ENGINE__PREFER="llama.cpp")}
    assert told["engine llama.cpp"].why.startswith("xllamacpp ")
    assert "engine mlx" in told
    assert "llama.cpp" in told["accelerator"].why


def test_a_home_that_is_not_private_fails(home: Home) -> None:
    home.runtime.chmod(0o755)
    (found,) = look(checks.home, home)
    assert found.status == "fail"
    assert "not a private folder" in found.why


def test_looking_changes_nothing(home: Home) -> None:
    def everything() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_size) for path in Path(home.root).rglob("*"))

    before = everything()
    around = Surroundings(home, os.environ, None)
    every = (checks.python, checks.home, checks.disk, checks.settings, checks.ports, engines, memory, checks.models)
    assert list(examine(around, every))
    assert everything() == before
