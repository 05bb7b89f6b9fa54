"""Homes for tests: a data root of its own, with short socket paths, that vanishes afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from homelab_llm.core.paths import Home


@contextmanager
def temporary_home() -> Iterator[Home]:
    """A home for a block. Processes of it need ``XDG_RUNTIME_DIR``, which is the parent of ``home.runtime``."""
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        runtime = Path(folder) / "r"
        runtime.mkdir(mode=0o700)
        yield Home.at(Path(folder) / "home", environ={"XDG_RUNTIME_DIR": str(runtime)}).ensure()
