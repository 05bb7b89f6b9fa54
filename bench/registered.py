"""What many registered models cost: start, ``/v1/models`` and routing with 1,000 of them beside one; a long run."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil

from bench.figures import Figure, spread
from bench.rig import MODEL, chat, fake_rig, load, temporary_home
from bench.start import MLXCTL
from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.models import write_fake_model

MODELS = 1000
ROUNDS = 7
CALLS = 400
REQUESTS = 10_000


def measure() -> Iterator[Figure]:
    """1,000 models beside one, then 10,000 requests in a row."""
    yield from _many()
    yield from _long_run()


def _many() -> Iterator[Figure]:
    with _house(1) as few, _house(MODELS) as many:
        starts: dict[int, list[float]] = {1: [], MODELS: []}
        for turn in range(ROUNDS):
            for home, count in ((few, 1), (many, MODELS)) if turn % 2 else ((many, MODELS), (few, 1)):
                with _daemon(home) as daemon:
                    starts[count].append(daemon.ready_s)
        more_s = statistics.median(starts[MODELS]) - statistics.median(starts[1])
        one = f"with one model {statistics.median(starts[1]):.3f} s"
        yield Figure("registered.start_more", more_s, "s", "<= 0.15", one, spread(starts[MODELS], 3))
        with _daemon(few) as small, _daemon(many) as large:
            listing = _milliseconds(lambda c: _get(c, "/v1/models"), large)
            yield Figure("registered.v1_models_p50", statistics.median(listing), "ms", "<= 2.0", "", spread(listing, 3))
            load(small, "m0:latest")
            load(large, "m0:latest")
            alone: list[float] = []
            among: list[float] = []
            for turn in range(ROUNDS):  # in turns, and who is first changes: this machine's pace does too
                for taken, daemon in ((alone, small), (among, large))[:: 1 if turn % 2 else -1]:
                    taken += _milliseconds(_ask, daemon)
            ratio = statistics.median(among) / statistics.median(alone)
            beside = f"{statistics.median(among):.3f} ms, with one model {statistics.median(alone):.3f} ms"
            yield Figure("registered.routing_ratio", ratio, "x", "<= 1.1", beside)


@contextlib.contextmanager
def _house(count: int) -> Iterator[Home]:
    """A home in which ``count`` models are stored and registered; all are one file under many names."""
    with temporary_home() as home:
        store = ModelStore(home.store)
        store.import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("m0"))
        for number in range(1, count):
            store.copy(ModelRef.parse("m0"), ModelRef.parse(f"m{number}"))
        path = str(next(iter(store.resolve("m0").files.values())))
        document = {
            "version": 1,
            "models": {
                f"m{number}-latest": {
                    "repo_id": "",
                    "model_id": f"m{number}:latest",
                    "cache_path": path,
                    "format": "gguf",
                    "port": None,
                }
                for number in range(count)
            },
        }
        subprocess.run(
            [str(MLXCTL), "registry", "import", "-"],
            input=json.dumps(document).encode(),
            env={**os.environ, "HOMELAB_HOME": str(home.root)},
            check=True,
            capture_output=True,
        )
        yield home


def _daemon(home: Home) -> Daemon:
    return Daemon(home, fake=True, environ={"XDG_RUNTIME_DIR": str(home.runtime.parent)})


def _milliseconds(call: Callable[[http.client.HTTPConnection], None], daemon: Daemon) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    taken = []
    try:
        for _ in range(CALLS):
            started = time.perf_counter()
            call(connection)
            taken.append((time.perf_counter() - started) * 1000)
    finally:
        connection.close()
    return taken[CALLS // 10 :]


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    reply = connection.getresponse()
    if reply.status != 200 or not reply.read():
        raise RuntimeError(f"{path} answered {reply.status}")


def _ask(connection: http.client.HTTPConnection) -> None:
    body = json.dumps({**chat("tokens=1"), "model": "m0:latest"})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise RuntimeError(f"answered {reply.status}: {content[:200]!r}")


def _long_run() -> Iterator[Figure]:
    """Memory and open sockets of the daemon before and after 10,000 requests on many connections."""
    with fake_rig("pooled") as rig:
        process = psutil.Process(rig.daemon.pid)
        _requests(rig.door[1], 1000)  # caches and pools fill first
        memory_bytes, sockets = process.memory_info().rss, _settled_sockets(process, 0)
        _requests(rig.door[1], REQUESTS)
        after = _settled_sockets(process, sockets)
        grown = (process.memory_info().rss - memory_bytes) / 1e6
        yield Figure("soak.memory_growth", grown, "MB", "<= 5", f"{REQUESTS} requests for {MODEL}")
        yield Figure("soak.sockets_left", float(after - sockets), "sockets", "<= 0", f"{sockets} before")


def _requests(port: int, count: int) -> None:
    body = json.dumps(chat("tokens=2"))
    for start in range(0, count, 100):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(min(100, count - start)):
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                raise RuntimeError(f"answered {reply.status}: {reply.read()[:200]!r}")
            reply.read()
        connection.close()


def _settled_sockets(process: psutil.Process, at_most: int, within_s: float = 10.0) -> int:
    """Open sockets of the daemon, once they no longer fall or are as few as wanted."""
    deadline_s = time.monotonic() + within_s
    while (count := len(process.net_connections("all"))) > at_most and time.monotonic() < deadline_s:
        time.sleep(0.2)
    return count
