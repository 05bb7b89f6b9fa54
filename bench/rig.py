"""The rig: a daemon with fake models behind it, LiteLLM beside it, and load from wrk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clients import connect, exchange, post
from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing import homes
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.models import write_fake_model

ROOT = Path(__file__).resolve().parent.parent
LITELLM = ROOT / ".venv-bench" / "bin" / "litellm"
MODEL = "fake:latest"
LITELLM_KEY = f"sk-{secrets.token_hex(32)}"


@contextlib.contextmanager
def temporary_home() -> Iterator[Home]:
    """A home that vanishes afterwards; processes started meanwhile find its sockets."""
    with homes.temporary_home() as home:
        os.environ["XDG_RUNTIME_DIR"] = str(home.runtime.parent)
        yield home


@dataclass(frozen=True, slots=True)
class Rig:
    """A running daemon whose fake model is loaded: ``door`` is its TCP address, ``worker`` the worker's socket."""

    daemon: Daemon
    door: tuple[str, int]
    worker: Path


@contextlib.contextmanager
def fake_rig(kind: str, *, parallel: int = 32) -> Iterator[Rig]:
    """A daemon with one loaded fake model; ``kind`` is ``pooled`` (our own workers) or ``llama``."""
    with temporary_home() as home:
        model = write_fake_model(home.root / "fake.gguf")
        ModelStore(home.store).import_path(model, ModelRef.parse(MODEL))
        environ = {"FAKE_ENGINE": kind, "HOMELAB_ENGINE__PARALLEL": str(parallel)}
        with Daemon(home, fake=True, environ=environ) as daemon:
            yield Rig(daemon, ("127.0.0.1", daemon.port), load(daemon, MODEL))


def load(daemon: Daemon, model: str) -> Path:
    """Load a model for ever and return its worker's socket."""
    status, text = daemon.call("POST", "/admin/models/load", {"model": model, "keep_alive": -1})
    if status != 200 or '"ready"' not in str(text):
        raise RuntimeError(f"{model} did not load: {text}")
    _, answer = daemon.call("GET", "/admin/models")
    (worker,) = (row for row in answer["models"] if row["model"] == model)
    return daemon.home.runtime / f"{worker['id']}.http"


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    """A chat body for the fake model."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}


def wrk(url: str, body: dict[str, Any], *, connections: int, seconds: int) -> tuple[float, float]:
    """Load from wrk (one thread): requests per second and bytes per second; any error reply fails.

    Raises:
        RuntimeError: wrk is missing, or a reply was not 2xx.
    """
    program = shutil.which("wrk")
    if program is None:
        raise RuntimeError("wrk is not installed: apt-get install wrk, or brew install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method='POST'\nwrk.body={_lua(json.dumps(body))}\n")
        script.write("wrk.headers['Content-Type']='application/json'\n")
        script.flush()
        command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script.name, url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    transfer = re.search(r"Transfer/sec:\s+([\d.]+)(\w?)B", out)
    if not rate or not transfer:
        raise RuntimeError(out)
    return float(rate[1]), float(transfer[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[transfer[2]]


def _lua(text: str) -> str:
    return f"[==[{text}]==]"


@contextlib.contextmanager
def litellm(upstream_port: int) -> Iterator[tuple[str, int]]:
    """LiteLLM's proxy, one worker, without database, in front of an OpenAI server on loopback; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(
            f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/fake\n    api_key: none\n"
            f"    api_base: http://127.0.0.1:{upstream_port}/v1\n"
            "litellm_settings: {drop_params: true}\nrouter_settings: {num_retries: 0}\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        environ = {k: v for k, v in os.environ.items() if k not in ("HOST", "PORT")}
        environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": LITELLM_KEY}
        command = [str(LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
        try:
            _wait_for(("127.0.0.1", port), process, Path(folder) / "log")
            yield ("127.0.0.1", port)
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(address: tuple[str, int], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ConnectionError):
            with contextlib.closing(connect(address)) as connection:
                if (
                    exchange(connection, post("/v1/chat/completions", chat("fake: tokens=1"), key=LITELLM_KEY)).status
                    == 200
                ):
                    return
        time.sleep(0.2)
    raise RuntimeError(f"LiteLLM did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def fake_upstream() -> Iterator[int]:
    """A fake engine of its own on a TCP port, for LiteLLM; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        command = [sys.executable, "-m", "homelab_llm.testing.fake_engine", "--socket", f"{folder}/fake.http"]
        process = subprocess.Popen([*command, "--port", str(port), "--parallel", "32"], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    connect(("127.0.0.1", port)).close()
                    break
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def awake_cores() -> Iterator[None]:
    """Keep every core from sleeping with loops that run only when nothing else wants to (Linux).

    A sleeping core of a virtual machine takes tens of microseconds to wake, at every switch between processes. That
    is a property of the machine, not of a server, and it is the same for everything measured inside the block.
    """
    if not hasattr(os, "SCHED_IDLE"):
        yield
        return
    program = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
