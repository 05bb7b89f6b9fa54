"""What a newcomer does: clone, one command, a real answer; in a clean clone with empty caches and no daemon."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.rig import ROOT

PROMPT = "What is the capital of France? Answer in one sentence."
_KEPT = (
    "PATH",
    "LANG",
    "SSL_CERT_FILE",
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
)


@contextlib.contextmanager
def clean_clone() -> Iterator[tuple[Path, dict[str, str]]]:
    """The committed tree in a folder of its own, and an environment with nothing cached; its daemon is stopped."""
    with tempfile.TemporaryDirectory(prefix="hl-", dir="/tmp") as name:
        folder = Path(name)
        clone = folder / "homelab-llm"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environ = {key: value for key, value in os.environ.items() if key in _KEPT or key.endswith("_proxy")}
        environ |= {
            "HOME": str(Path.home()),
            "HOMELAB_HOME": str(folder / "home"),
            "HOMELAB_SERVER__LISTEN": "127.0.0.1:0",
            "UV_CACHE_DIR": str(folder / "uv"),
            "PIP_CACHE_DIR": str(folder / "pip"),
        }
        try:
            yield clone, environ
        finally:
            program = clone / ".venv" / "bin" / "mlxctl"
            if program.exists():
                subprocess.run([str(program), "daemon", "stop"], env=environ, check=False, capture_output=True)


def measure(*, tests: bool = True) -> Iterator[Figure]:
    """Seconds from the clone to the answer, on both engines, and `make test` from the same clone."""
    with clean_clone() as (clone, environ):
        for identity, extra in (("newcomer.run", []), ("newcomer.run_again", []), ("newcomer.run_mlx", ["ENGINE=mlx"])):
            started = time.perf_counter()
            done = _make(clone, environ, "run", f"PROMPT={PROMPT}", *extra)
            says = done.returncode == 0 and "Paris" in done.stdout
            sys.stderr.write("" if says else f"{done.stdout}\n{done.stderr}\n")
            yield Figure(identity, float(says), "answered", "= 1", f"{time.perf_counter() - started:.1f} s")
        if tests:
            started = time.perf_counter()
            done = _make(clone, environ, "test")
            sys.stderr.write("" if done.returncode == 0 else done.stdout[-4000:] + done.stderr[-2000:])
            took = time.perf_counter() - started
            yield Figure("newcomer.test", float(done.returncode == 0), "green", "= 1", f"{took:.0f} s")


def _make(clone: Path, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=clone, env=environ, capture_output=True, text=True, check=False)
