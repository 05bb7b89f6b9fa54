"""Service files, rendered by pure functions; and what is done with them, against a ``systemctl`` that keeps a diary."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from homelab_llm.core.errors import HomelabError, UnsupportedRequest
from homelab_llm.core.paths import Home
from homelab_llm.ops.service.choose import choose_manager, file_manager
from homelab_llm.ops.service.launchd import LABEL, LaunchdUser, render_agent
from homelab_llm.ops.service.spec import ServiceSpec
from homelab_llm.ops.service.systemd import UNIT, SystemdUser, quote, render_unit

ODD = ServiceSpec(
    ("/opt/a b/python", "-m", "x", "--home", '/h/100%/$HOME/"q"\\'), Path("/h"), Path("/h/logs/daemon.log")
)


@pytest.fixture
def spec(home: Home) -> ServiceSpec:
    return ServiceSpec.of(home)


def tool(folder: Path, name: str, script: str) -> dict[str, str]:
    """A program of that name on the PATH, and nothing else of the system's; it writes its arguments to ``diary``."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(folder / "diary"))}\n{script}\n')
    program.chmod(0o755)
    return {"PATH": str(folder), "HOME": str(folder / "user")}


def diary(folder: Path) -> list[str]:
    return (folder / "diary").read_text().splitlines()


@pytest.mark.requirement("R-U3")
def test_the_unit_tells_ready_itself_and_restarts_after_a_crash_only(spec: ServiceSpec) -> None:
    unit = render_unit(spec)
    assert "Type=notify\n" in unit
    assert "Restart=on-failure\n" in unit
    assert "WantedBy=default.target" in unit
    assert "NoNewPrivileges=yes" in unit
    assert f'"--home" "{spec.home}"' in unit
    assert all(re.fullmatch(r"\[\w+\]|\w+=.*|", line) for line in unit.splitlines())


@pytest.mark.requirement("B-5", "R-U3")
def test_workers_outlive_the_service_and_can_be_proven(spec: ServiceSpec) -> None:
    options = dict(line.split("=", 1) for line in render_unit(spec).splitlines() if "=" in line)
    assert options["KillMode"] == "process"
    assert options["RuntimeDirectoryPreserve"] == "yes"
    assert options["NotifyAccess"] == "main"
    assert not options.keys() & {"ProcSubset", "ProtectProc", "ProtectHome", "PrivateTmp", "PrivatePIDs"}
    assert plistlib.loads(render_agent(spec))["AbandonProcessGroup"] is True


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(spec: ServiceSpec, tmp_path: Path) -> None:
    unit = tmp_path / UNIT
    unit.write_text(render_unit(spec))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert UNIT not in done.stderr, "every option is known and well-formed"


def test_nothing_in_an_argument_is_expanded_by_systemd() -> None:
    assert quote('/h/100%/$HOME/"q"\\') == '"/h/100%%/$$HOME/\\"q\\"\\\\"'
    assert quote("a\nExecStartPre=/bin/evil") == '"a\\nExecStartPre=/bin/evil"'
    assert render_unit(ODD).count("\nExec") == 2


@pytest.mark.requirement("R-U3")
def test_the_agent_starts_at_login_and_again_after_a_crash_only() -> None:
    agent = plistlib.loads(render_agent(ODD))
    assert agent["Label"] == LABEL
    assert agent["ProgramArguments"] == list(ODD.argv)
    assert agent["RunAtLoad"] is True
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["StandardErrorPath"] == "/h/logs/daemon.log"


@pytest.mark.requirement("R-U3")
def test_install_writes_enables_and_starts_and_hints_at_lingering(tmp_path: Path, spec: ServiceSpec) -> None:
    environ = tool(tmp_path / "bin", "systemctl", "exit 0")
    state = SystemdUser(environ).install(spec)
    assert state.path.read_text() == render_unit(spec)
    assert diary(tmp_path / "bin")[:3] == ["--user daemon-reload", f"--user enable {UNIT}", f"--user restart {UNIT}"]
    assert (state.installed, state.enabled, state.running) == (True, True, True)
    assert "loginctl enable-linger" in state.hint
    assert SystemdUser(environ).uninstall()
    assert not state.path.exists()
    assert SystemdUser(environ).uninstall() is False


@pytest.mark.requirement("R-U3")
def test_a_service_disabled_by_hand_stays_disabled_when_it_is_installed_again(
    tmp_path: Path, spec: ServiceSpec
) -> None:
    environ = tool(tmp_path / "bin", "systemctl", 'case "$*" in *is-enabled*|*is-active*) exit 1;; esac')
    manager = SystemdUser(environ)
    manager.install(spec)
    (tmp_path / "bin" / "diary").unlink()
    state = manager.install(spec)
    assert not any(" enable " in said or " restart " in said for said in diary(tmp_path / "bin"))
    assert state.enabled is False
    assert "enable --now" in state.hint


def test_a_tool_that_fails_is_quoted_in_the_error(tmp_path: Path, spec: ServiceSpec) -> None:
    environ = tool(tmp_path / "bin", "systemctl", 'case "$*" in *reload*) echo "no such bus" >&2; exit 1;; esac')
    with pytest.raises(HomelabError, match="no such bus"):
        SystemdUser(environ).install(spec)


def test_launchd_is_asked_to_load_the_agent_in_the_users_domain(tmp_path: Path, spec: ServiceSpec) -> None:
    script = 'case "$1" in print) echo "state = running";; esac'
    environ = tool(tmp_path / "bin", "launchctl", script)
    manager = LaunchdUser(environ, uid=501)
    state = manager.install(spec)
    assert f"bootstrap gui/501 {state.path}" in diary(tmp_path / "bin")
    assert (state.installed, state.enabled, state.running) == (True, True, True)
    assert manager.uninstall()
    assert f"bootout gui/501/{LABEL}" in diary(tmp_path / "bin")


def test_an_agent_disabled_by_hand_is_not_loaded(tmp_path: Path, spec: ServiceSpec) -> None:
    script = f'case "$1" in print-disabled) echo \'"{LABEL}" => disabled\';; print) exit 113;; esac'
    environ = tool(tmp_path / "bin", "launchctl", script)
    state = LaunchdUser(environ, uid=501).install(spec)
    assert not any(said.startswith("bootstrap") for said in diary(tmp_path / "bin"))
    assert (state.installed, state.enabled, state.running) == (True, False, False)


def test_a_machine_without_systemd_refuses_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        choose_manager("linux", {"PATH": str(tmp_path)})
    assert "mlxctl daemon start" in caught.value.hint


def test_a_user_without_a_systemd_instance_is_told_why(tmp_path: Path) -> None:
    environ = tool(tmp_path / "bin", "systemctl", 'echo "Failed to connect to bus" >&2; exit 1')
    with pytest.raises(UnsupportedRequest, match="Failed to connect to bus"):
        choose_manager("linux", environ)


def test_the_file_can_be_printed_anywhere(spec: ServiceSpec) -> None:
    assert file_manager("linux", os.environ).render(spec) == render_unit(spec)
    assert file_manager("darwin", os.environ).render(spec).startswith("<?xml")
