"""``mlxctl login push pack logout`` against a real registry: secrets unseen, progress as data, Ctrl-C goes on later."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.registries import PASSWORD, USER, Registry
from homelab_llm.testing.registry_front import FaultyRegistry, RegistryFaults, TokenAuth

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

WEIGHTS_BYTES = 30_000_000


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's home without credentials."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "user"


@pytest.fixture
def model(mlxctl: Mlxctl, home: Home, tmp_path: Path) -> str:
    file = write_fake_model(tmp_path / "m.gguf", weights_bytes=WEIGHTS_BYTES)
    assert mlxctl("import", str(file), "mine:1").code == 0
    return "mine:1"


@pytest.mark.requirement("R-M7")
def test_log_in_push_and_log_out(mlxctl: Mlxctl, user: Path, registry: Registry, model: str) -> None:
    with TokenAuth(registry, anonymous="") as front:
        target = f"oci://{front.host}/cli/mine:1"
        refused = mlxctl("push", model, target)
        assert refused.code == 5
        assert f"mlxctl login {front.host}" in refused.err
        wrong = mlxctl("login", front.host, "-u", USER, "--password-stdin", stdin=b"wrong\n")
        assert (wrong.code, "wrong" in wrong.out + wrong.err) == (5, False)
        done = mlxctl("login", front.host, "-u", USER, "--password-stdin", stdin=PASSWORD.encode() + b"\n")
        assert done.code == 0, done
        assert PASSWORD not in done.out + done.err
        assert str(user / ".docker" / "config.json") in done.out
        pushed = mlxctl("push", model, target, "--json")
        assert pushed.code == 0, pushed
        *lines, last = [json.loads(line) for line in pushed.out.splitlines()]
        assert {line["status"] for line in lines} == {"pushing"}
        assert (last["status"], last["push"]["target"]) == ("done", target)
        assert last["push"]["sent_bytes"] > WEIGHTS_BYTES
        again = mlxctl("push", model, target)
        assert "nothing had to be sent" in again.out
        assert mlxctl("logout", front.host).code == 0
        assert mlxctl("logout", front.host).out == f"there were no credentials for {front.host}\n"
        assert mlxctl("push", model, f"oci://{front.host}/cli/other:1").code == 5


def test_without_a_terminal_login_says_how(mlxctl: Mlxctl, user: Path, registry: Registry) -> None:
    done = mlxctl("login", registry.host)
    assert (done.code, "--password-stdin" in done.err) == (2, True)
    assert mlxctl("login", registry.host, "-u", "x", "--password-stdin").code == 3
    assert mlxctl("login", "not a host", "-u", "x", "--password-stdin", stdin=b"x").code == 3


def test_ctrl_c_keeps_what_was_sent(mlxctl: Mlxctl, home: Home, user: Path, registry: Registry, model: str) -> None:
    with FaultyRegistry(registry) as front:
        front.faults = RegistryFaults(bytes_per_s=30_000_000)
        target = f"oci://{front.host}/cli/stopped:1"
        command = [sys.executable, "-m", "homelab_llm.interface.cli.main", "push", model, target, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if json.loads(line)["done_bytes"] > 9_000_000:
                    break
            running.send_signal(signal.SIGINT)
            out, err = running.communicate(timeout=60)
        assert running.returncode == 130, (out, err)
        assert f"mlxctl push {model} {target}" in out.decode() + err.decode()
        front.faults = RegistryFaults(times=0)
        done = mlxctl("push", model, target, "--json")
        assert done.code == 0, done
        assert json.loads(done.out.splitlines()[-1])["push"]["sent_bytes"] < WEIGHTS_BYTES - 8_000_000


def test_pack_writes_a_file(mlxctl: Mlxctl, model: str, tmp_path: Path) -> None:
    done = mlxctl("pack", model, "--output", str(tmp_path / "m.tar"))
    assert done.code == 0, done
    assert (tmp_path / "m.tar").stat().st_size > WEIGHTS_BYTES
    again = mlxctl("pack", model, "--output", str(tmp_path / "m.tar"), "--json")
    assert again.code == 6


def test_a_password_typed_on_a_terminal_is_not_shown(user: Path, home: Home, registry: Registry) -> None:
    with TokenAuth(registry, anonymous="") as front:
        said, code = typed(["login", front.host], [("user name", USER), ("password", PASSWORD)])
        assert (code, PASSWORD in said, f"logged in to {front.host}" in said) == (0, False, True), said
        said, code = typed(["login", front.host], [("user name", USER), ("password", "\x03")])
        assert code == 130, said


def typed(argv: list[str], dialogue: list[tuple[str, str]]) -> tuple[str, int]:
    """What a terminal shows when each prompt is answered, and the exit code."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "homelab_llm.interface.cli.main", *argv]
    said = ""
    with subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=dict(os.environ),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 — one call into the system, no lock
    ) as running:
        os.close(slave)
        try:
            for prompt, answer in dialogue:
                while prompt not in said.rpartition("\n")[2]:
                    said += os.read(master, 1024).decode()
                os.write(master, answer.encode() + (b"" if answer == "\x03" else b"\n"))
            while part := os.read(master, 1024):
                said += part.decode()
        except OSError:  # the other end is gone
            pass
        finally:
            os.close(master)
        return said, running.wait(30)
