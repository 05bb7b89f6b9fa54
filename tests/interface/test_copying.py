"""``mlxctl cp`` between the stores of two machines, over a real ssh and a real sshd on loopback."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.sshd import NAME, running_sshd, sshd_installed

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-M5")


@pytest.fixture(scope="module")
def ssh_options() -> Iterator[Path]:
    if not sshd_installed():  # continuous integration installs it, and takes a skipped test for a failed one
        pytest.skip("OpenSSH's server is missing: apt-get install openssh-client openssh-server")
    with TemporaryDirectory(prefix="hl-ssh-", dir="/tmp") as folder, running_sshd(Path(folder)) as options:
        yield options


@pytest.fixture
def far(home: Home, ssh_options: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The home on the far side, which is called ``far``; verbs run here unless they name it."""
    place = tmp_path / "far home"
    given = {"HOMELAB_HOME": str(place), "PYTHONPATH": os.pathsep.join(sys.path), "HOMELAB_SLOTS__PORTS": "none"}
    words = ["env", *(f"{name}={value}" for name, value in given.items()), sys.executable]
    monkeypatch.setenv("HOMELAB_REMOTE__SSH_CONFIG", str(ssh_options))
    monkeypatch.setenv("HOMELAB_REMOTE__COMMAND", shlex.join([*words, "-m", "homelab_llm.interface.cli.main"]))
    return place


def test_a_model_goes_there_and_comes_back_under_another_name(mlxctl: Mlxctl, far: Path, tmp_path: Path) -> None:
    model = write_fake_model(tmp_path / "tiny.gguf", weights_bytes=1 << 20)
    assert mlxctl("import", str(model), "tiny:1").code == 0
    there = mlxctl("cp", "tiny:1", "--to", NAME, "copied:2")
    assert there.code == 0, there.err
    assert "copied:2 is in the store of far" in there.out
    assert (far / "store" / "index.json").exists()
    back = mlxctl("cp", "copied:2", "--from", NAME, "back:3")
    assert back.code == 0, back.err
    models = {m["name"]: m["digest"] for m in mlxctl("list", "--json").json()["models"]}
    assert models["back:3"] == models["tiny:1"]


def test_what_the_far_side_cannot_do_is_said_once_with_its_reason(mlxctl: Mlxctl, far: Path) -> None:
    gone = mlxctl("cp", "nothing:1", "--from", NAME)
    assert gone.code == 4
    assert gone.err.count("no model nothing:1 in the store") == 1
    assert mlxctl("cp", "nothing:1", "--from", "gone").code == 10
    assert mlxctl("cp", "a:1", "--from", NAME, "--to", NAME).code == 2
    assert mlxctl("cp", "a:1").code == 2
