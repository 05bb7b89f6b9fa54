"""A daemon with jobs, and a file that comes only as far as a test allows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.paced import PacedFile

MB = 10**6


@pytest.fixture
def paced(tmp_path: Path) -> Iterator[PacedFile]:
    """A model of 24 MB."""
    with PacedFile(write_fake_model(tmp_path / "paced.gguf", weights_bytes=24 * MB).read_bytes()) as served:
        yield served


@pytest.fixture
def environ() -> dict[str, str]:
    """Variables with which models come from this machine."""
    return {"HOMELAB_STORE__ALLOW_PRIVATE_HOSTS": "true", "HOMELAB_STORE__FREE_FLOOR_BYTES": "0"}


@pytest.fixture
def daemon(home: Home, environ: dict[str, str]) -> Iterator[Daemon]:
    """A running daemon with the fake engine."""
    with Daemon(home, environ=environ, fake=True) as running:
        yield running


@pytest.fixture(scope="module")
def one_daemon() -> Iterator[Daemon]:
    """One daemon for many questions."""
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        with Daemon(Home.at(Path(folder) / "home").ensure()) as running:
            yield running
