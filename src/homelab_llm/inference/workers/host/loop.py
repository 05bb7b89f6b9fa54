"""The host's loop: prepare, run, end. One thread, one poll; every wait has a reason and a bound.

    prepare ──0──▶ run ──▶ ended          drain, SIGTERM or the daemon's death: TERM, then KILL after term_s
       └──else──────────────▲             the group is empty before ``exit`` is told; then the sockets go

The host ignores SIGINT and SIGHUP: it has a session of its own. If it is killed itself, the kernel kills the
engine (Linux), or the daemon does (everywhere).
"""

# ruff: noqa: PTH105, PTH108, PTH119, PTH123 — pathlib would cost this small process a megabyte
from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from homelab_llm.inference.fleet import processes
from homelab_llm.inference.workers.host.child import Child, adopt_orphans, exit_reason, oom_kills
from homelab_llm.inference.workers.host.control import PROTOCOL, Control
from homelab_llm.inference.workers.host.journal import Journal
from homelab_llm.inference.workers.host.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ASK_S = 0.5
_LAST_WORDS_S = 0.3
_ORPHAN_TERM_S = 1.0


def run(spec_path: str) -> int:
    """Live one worker's life as told by the file at ``spec_path``, which is removed once read."""
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with open(spec_path, "rb") as stream:
        spec = json.load(stream)
    os.unlink(spec_path)
    return Host(spec).live()


class Host:
    """One worker. ``spec``: see ``fleet.launch``, which writes it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._poller = select.poll()
        self._wakeup = self._listen_to_signals()
        self._die_with_us = adopt_orphans()
        self._oom_kills = oom_kills()
        self._born_s = time.monotonic()
        self._identity = (os.getpid(), processes.start_time(os.getpid()))
        self._stage = "prepare" if spec["prepare"] else "run"
        self._cause = ""
        self._progress: dict[str, Any] | None = None
        self._child: Child | None = None
        self._reason: dict[str, Any] | None = None
        self._kill_at_s: float | None = None
        self._orphan_at_s: float | None = None
        self._journal = Journal(spec["log"], spec["log_part_bytes"], spec["log_parts"], self._on_progress)
        self._control = Control(spec["ctl"], self._poller, self._greeting, self._obey)
        self._watch = self._watch_daemon(Watch(spec["daemon_pid"], spec["daemon_start_time"]))

    def live(self) -> int:
        """Until the engine has ended and that was told; 0."""
        self._start(self._spec["prepare"] or self._spec["argv"])
        while self._reason is None:
            for fd, events in self._poller.poll(self._patience_ms()):
                self._dispatch(fd, events)
            self._keep_time()
        self._leave(self._reason)
        return 0

    # --- events ---

    def _dispatch(self, fd: int, events: int) -> None:
        if fd == self._wakeup:
            self._on_signals(os.read(fd, 512))
        elif fd == self._watch.fd:
            self._on_daemon_gone()
        elif self._child is not None and fd == self._child.output:
            self._read_output(self._child)
        else:
            self._control.handle(fd, events)

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers:
            self._drain("asked", self._spec["term_s"])
        if signal.SIGCHLD in numbers:
            self._reap()

    def _on_progress(self, stage: str, done: float) -> None:
        self._progress = {"type": "progress", "stage": stage, "done": done}
        self._control.tell(self._progress)

    def _on_daemon_gone(self) -> None:
        """Only proof counts; from now on the grace runs, in which another daemon may adopt."""
        if self._watch.gone() and self._orphan_at_s is None:
            if self._watch.fd >= 0:
                self._poller.unregister(self._watch.fd)
            self._watch.close()
            self._orphan_at_s = time.monotonic() + self._spec["orphan_grace_s"]

    def _keep_time(self) -> None:
        now_s = time.monotonic()
        if self._watch.fd < 0 and self._orphan_at_s is None:
            self._on_daemon_gone()
        if self._orphan_at_s is not None and now_s >= self._orphan_at_s:
            self._drain("orphaned", min(_ORPHAN_TERM_S, self._spec["term_s"]))
        if self._kill_at_s is not None and now_s >= self._kill_at_s and self._child is not None:
            self._kill_at_s = now_s + 1.0
            self._child.signal(signal.SIGKILL)

    def _patience_ms(self) -> float | None:
        moments = [moment for moment in (self._kill_at_s, self._orphan_at_s) if moment is not None]
        if self._cause:
            moments = [self._kill_at_s] if self._kill_at_s is not None else []
        elif self._watch.fd < 0 and self._orphan_at_s is None:
            moments.append(time.monotonic() + _ASK_S)
        return max(0.0, min(moments) - time.monotonic()) * 1000 + 1 if moments else None

    # --- the engine ---

    def _start(self, argv: list[str]) -> None:
        try:
            self._child = Child(argv, self._spec["env"], self._die_with_us)
        except OSError as error:
            self._reason = {"exit_code": 127, "signal": None, "out_of_memory": False, "tail": f"{error.strerror}"}
            return
        self._poller.register(self._child.output, select.POLLIN)
        self._write_identity()
        self._control.tell(self._engine())

    def _read_output(self, child: Child) -> None:
        try:
            content = os.read(child.output, 1 << 16)
        except BlockingIOError:
            return
        if content:
            self._journal.feed(content)
        else:
            self._poller.unregister(child.output)
            os.close(child.output)
            child.output = -1

    def _reap(self) -> None:
        """Take every dead child; grandchildren come to us too. The engine's own death ends its stage."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._child is not None and pid == self._child.pid:
                self._on_engine_end(self._child, status)

    def _on_engine_end(self, child: Child, status: int) -> None:
        self._end_rest(child)
        self._last_words(child)
        self._child = None
        if self._stage == "prepare" and status == 0 and not self._cause:
            self._stage = "run"
            self._start(self._spec["argv"])
            return
        while self._end_rest(child):
            time.sleep(0.005)
            self._reap()
        self._reason = exit_reason(
            status, self._journal.tail, asked=bool(self._cause), oom_kills_before=self._oom_kills
        )

    def _last_words(self, child: Child) -> None:
        """What is still in the pipe; a process that escaped the group may hold it open, hence the bound."""
        deadline_s = time.monotonic() + _LAST_WORDS_S
        waiting = select.poll()
        if child.output >= 0:
            waiting.register(child.output, select.POLLIN)
        while child.output >= 0 and time.monotonic() < deadline_s:
            if waiting.poll(20):
                self._read_output(child)
        if child.output >= 0:
            self._poller.unregister(child.output)
            os.close(child.output)

    @staticmethod
    def _end_rest(child: Child) -> bool:
        """Kill what the engine left in its group; whether there was something."""
        if not child.rest():
            return False
        child.signal(signal.SIGKILL)
        return True

    def _drain(self, cause: str, term_s: float) -> None:
        """Ask the engine to end, and insist after ``term_s``; a second call can only make it sooner."""
        if self._child is None:
            return
        kill_at_s = time.monotonic() + term_s
        if not self._cause and term_s > 0:
            self._child.signal(signal.SIGTERM)
        self._cause = self._cause or cause
        self._kill_at_s = kill_at_s if self._kill_at_s is None else min(kill_at_s, self._kill_at_s)

    # --- what clients are told, and what they may ask ---

    def _greeting(self) -> list[dict[str, Any]]:
        hello = {
            "type": "hello",
            "protocol": PROTOCOL,
            "host_pid": self._identity[0],
            "host_start_time": self._identity[1],
            "daemon_pid": self._watch.pid,
            **{key: self._spec[key] for key in ("id", "nonce", "digest", "engine")},
            **{f"engine_{key}": value for key, value in self._engine().items() if key != "type"},
        }
        return [hello, self._progress] if self._progress else [hello]

    def _engine(self) -> dict[str, Any]:
        child = self._child
        pid, started = (child.pid, child.started) if child is not None else (None, None)
        return {"type": "engine", "stage": self._stage, "pid": pid, "start_time": started}

    def _obey(self, peer_pid: int, message: dict[str, Any]) -> dict[str, Any]:
        command = message.get("cmd")
        if command == "stats":
            return self._stats()
        if command == "drain":
            self._drain("asked", float(message["term_s"]))
            return {"type": "draining"}
        if command == "adopt":
            return self._adopt(peer_pid, message)
        return {"type": "refused", "reason": "unknown command"}

    def _stats(self) -> dict[str, Any]:
        members = processes.group_members(self._child.pid) if self._child is not None else []
        return {
            "type": "stats",
            "memory_bytes": processes.memory_bytes(members),
            "processes": len(members),
            "uptime_s": round(time.monotonic() - self._born_s, 3),
        }

    def _adopt(self, peer_pid: int, message: dict[str, Any]) -> dict[str, Any]:
        """Another daemon takes over: it knows the nonce, and speaks for itself. It may bring a grace of its own."""
        pid = int(message["pid"])
        started = processes.start_time(pid)
        if message.get("nonce") != self._spec["nonce"] or message.get("digest") != self._spec["digest"]:
            return {"type": "refused", "reason": "wrong nonce or digest"}
        if pid != peer_pid or started is None:
            return {"type": "refused", "reason": "a daemon can adopt for itself only"}
        if self._cause:
            return {"type": "refused", "reason": "the worker is ending"}
        if self._watch.fd >= 0:
            self._poller.unregister(self._watch.fd)
        self._watch.close()
        self._orphan_at_s = None
        self._spec["orphan_grace_s"] = float(message.get("orphan_grace_s", self._spec["orphan_grace_s"]))
        self._watch = self._watch_daemon(Watch(pid, started))
        return {"type": "adopted", "pid": pid}

    # --- rim ---

    def _watch_daemon(self, watch: Watch) -> Watch:
        if watch.fd >= 0:
            self._poller.register(watch.fd, select.POLLIN)
            if watch.gone():  # another process has the number already: its death would never be told
                self._poller.unregister(watch.fd)
                watch.close()
        return watch

    def _listen_to_signals(self) -> int:
        """Signals as readable bytes, so that the poll sees them in order with everything else."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self._poller.register(reading, select.POLLIN)
        return reading

    def _write_identity(self) -> None:
        """Who we are, for a daemon that finds us later: it may signal only what it can prove."""
        child = self._child
        self._publish(
            self._spec["run"],
            {
                "protocol": PROTOCOL,
                "boot_id": processes.boot_id(),
                "host": list(self._identity),
                "engine": [child.pid, child.started] if child is not None else None,
                **{key: self._spec[key] for key in ("id", "nonce", "digest")},
            },
        )

    def _leave(self, reason: dict[str, Any]) -> None:
        self._journal.close()
        told = {"type": "exit", "stage": self._stage, "cause": self._cause or "ended", **reason}
        self._publish(self._spec["exit"], {**told, "id": self._spec["id"], "ended_unix_s": round(time.time(), 3)})
        self._control.tell(told)
        self._control.close()
        for name in ("http", "ctl", "run"):
            if os.path.lexists(self._spec[name]):
                os.unlink(self._spec[name])

    def _publish(self, path: str, content: dict[str, Any]) -> None:
        """Whole or not at all; a reader never sees half of it. Lost at a power cut, like the processes themselves."""
        try:
            with open(f"{path}~", "w") as stream:
                json.dump(content, stream)
            os.replace(f"{path}~", path)
        except OSError as error:
            sys.stderr.write(f"worker host: cannot write {os.path.basename(path)}: {error.strerror}\n")
