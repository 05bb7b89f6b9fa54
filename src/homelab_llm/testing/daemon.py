"""A daemon for tests: the real ``mlxserve`` in a process of its own, on free ports, in a home of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from homelab_llm.core.locks import locked
from homelab_llm.core.paths import Home

_POLL_S = 0.005


class UnixConnection(http.client.HTTPConnection):
    """``http.client`` over a Unix socket."""

    def __init__(self, path: str, timeout_s: float = 60) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """Starts ``mlxserve`` for a block; ``fake=True`` adds the fake engine to its table.

    ``ready_s`` is the time from the start of the process to the first 200 on ``/readyz``. Settings are given as
    environment variables (``HOMELAB_…``); workers outlive it only where ``HOMELAB_FLEET__ORPHAN_GRACE_S`` says so. At
    the end of the block the daemon is asked to stop, then killed.
    """

    def __init__(
        self,
        home: Home,
        *,
        fake: bool = False,
        environ: Mapping[str, str] | None = None,
        slots: str = "none",
    ) -> None:
        self.home = home
        self.ready_s = 0.0
        module = "homelab_llm.testing.serve" if fake else "homelab_llm.ops.serve"
        self._command = [sys.executable, "-m", module, "--home", str(home.root), "--slots", slots]
        self._environ = {
            **os.environ,
            "HOMELAB_SERVER__LISTEN": "127.0.0.1:0",
            "HOMELAB_FLEET__ORPHAN_GRACE_S": "0",
            **(environ or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The daemon's process id; after a restart the new one's."""
        return self._pid or self._running().pid

    @property
    def port(self) -> int:
        """The first TCP port it listens on."""
        listeners = json.loads(self.home.daemon_json.read_text())["listeners"]
        return int(str(listeners[0]).rpartition(":")[2])

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``"""
        return f"http://127.0.0.1:{self.port}"

    def start(self, within_s: float = 30, *, environ: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it is ready; ``environ`` is for this life only.

        Raises:
            RuntimeError: it ended, or was not ready in time; the message holds its log.
        """
        log = self.home.logs / "test-daemon.log"
        self._pid = 0
        started = time.perf_counter()
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                self._command, env={**self._environ, **(environ or {})}, stdout=stream, stderr=stream
            )
        while time.perf_counter() - started < within_s:
            if self._is_ready():
                self.ready_s = time.perf_counter() - started
                return
            if self._process.poll() is not None:
                break
            time.sleep(_POLL_S)
        self.kill()
        raise RuntimeError(f"the daemon is not ready:\n{log.read_text()[-4000:]}")

    def restart(self) -> dict[str, Any]:
        """A planned restart; returns when the new daemon serves, with what it says of itself.

        Raises:
            RuntimeError: it was refused or failed; the message holds the answer.
        """
        status, told = self.call("POST", "/admin/restart", {})
        if status != 200:
            raise RuntimeError(f"{status}: {told}")
        self._pid = told["pid"]
        return dict(told)

    def take_over(self, pid: int) -> None:
        """From now on the daemon is this process, which an earlier one started."""
        self._pid = pid

    def stop(self, within_s: float = 40) -> int:
        """Ask it to end (SIGTERM), kill it if it does not; returns its exit code, 0 after a restart."""
        process = self._running()
        if self._pid:
            self._stop_heir(within_s)
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait(self, within_s: float = 30) -> int:
        """Wait until it has ended by itself; its exit code, negative for a signal."""
        return self._running().wait(within_s)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        process = self._running()
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._pid = 0
        process.kill()
        process.wait(10)

    def _stop_heir(self, within_s: float) -> None:
        """End a daemon that is not our child: its end is known by the home's lock."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        with locked(self.home.daemon_lock, wait_s=within_s):
            self._pid = 0

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 120) -> tuple[int, Any]:
        """One request over ``daemon.sock``: status and parsed JSON (or text)."""
        connection = UnixConnection(str(self.home.daemon_sock), timeout_s)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            reply = connection.getresponse()
            text = reply.read().decode()
            is_json = reply.headers.get_content_type() == "application/json"
            return reply.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the daemon was not started")
        return self._process

    def _is_ready(self) -> bool:
        try:
            if json.loads(self.home.daemon_json.read_text())["pid"] != self._running().pid:
                return False
            return self.call("GET", "/readyz", timeout_s=5)[0] == 200
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            return False
