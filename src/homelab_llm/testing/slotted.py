"""A daemon with slots and two fake models, and clients that keep asking one of its slots."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.homes import temporary_home
from homelab_llm.testing.models import write_fake_model

ONE_MODEL_BYTES = 30_000_000
"""A budget into which one fake model fits (about 17 MB), two do not."""


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return sorted(sock.getsockname()[1] for sock in sockets)


@contextlib.contextmanager
def slotted(*, slots: int = 2, environ: Mapping[str, str] | None = None, names: str = "ab") -> Iterator[Daemon]:
    """A daemon (fake engine) with fake models of these one-letter names and some slots on free ports."""
    with temporary_home() as home:
        store = ModelStore(home.store)
        for name in names:
            store.import_path(write_fake_model(home.root / f"{name}.gguf", name=name), ModelRef.parse(name))
        ports = ",".join(map(str, free_ports(slots)))
        given = {"XDG_RUNTIME_DIR": str(home.runtime.parent), **(environ or {})}
        with Daemon(home, fake=True, slots=ports, environ=given) as daemon:
            yield daemon


def rows(daemon: Daemon) -> list[dict[str, Any]]:
    """The rows of ``/admin/slots``, by port."""
    status, answer = daemon.call("GET", "/admin/slots")
    if status != 200:
        raise RuntimeError(f"/admin/slots answered {status}: {answer}")
    return list(answer["slots"])


def steps(answer: tuple[int, Any]) -> list[dict[str, Any]]:
    """The lines of a streamed verb; fails when it did not end well."""
    status, text = answer
    lines = [json.loads(line) for line in str(text).splitlines()] if isinstance(text, str) else [text]
    if status != 200 or lines[-1].get("stage") not in ("ready", "done"):
        raise RuntimeError(f"it did not end well: {lines[-1]}")
    return lines


@dataclass
class Clients:
    """Threads that ask without a pause until told to stop; every other one streams, each has its connection."""

    daemon_port: int
    slot_port: int
    alias: str
    count: int
    failures: list[str] = field(default_factory=list)
    taken_s: list[float] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        for number in range(self.count):
            thread = threading.Thread(target=self._live, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _live(self, number: int) -> None:
        by_slot, stream = number % 2 == 0, number % 4 < 2
        port = self.slot_port if by_slot else self.daemon_port
        body = {
            "model": "whatever" if by_slot else self.alias,
            "messages": [{"role": "user", "content": "fake: tokens=8 rate=400"}],
            "stream": stream,
        }
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not self._stop.is_set():
            started = time.perf_counter()
            try:
                self._ask(connection, json.dumps(body))
            except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:
                self.failures.append(f"client {number}: {type(error).__name__}: {error}")
                connection.close()
            self.taken_s.append(time.perf_counter() - started)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, body: str) -> None:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        content = reply.read().decode()
        if reply.status != 200:
            raise RuntimeError(f"{reply.status} {content[:300]}")
        if reply.headers.get_content_type() == "text/event-stream":
            if not content.rstrip().endswith("data: [DONE]"):
                raise RuntimeError(f"the stream broke off: {content[-300:]}")
            first = next(line for line in content.splitlines() if line.startswith("data: {"))
            told = json.loads(first[6:])
        else:
            told = json.loads(content)
        if "error" in told:
            raise RuntimeError(f"an error: {told}")
        self.models.add(told["model"])
