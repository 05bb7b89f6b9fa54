"""One worker's life as the daemon sees it: start its host, prove who answers, wait until ready, watch, bury."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from homelab_llm.core.errors import EngineError, HomelabError, InternalError, LoadFailed
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet import graves, processes, vocabulary
from homelab_llm.inference.fleet.control import Control
from homelab_llm.inference.fleet.launch import PROTOCOL, Lifetimes, WorkerFiles, new_nonce, write_spec
from homelab_llm.inference.fleet.readiness import until_ready
from homelab_llm.inference.fleet.reasons import error_of

_CONNECT_PAUSE_S = 0.005
_FIRST_MEASURE_S = 0.3
_INSIST_S = 2.0
_PROGRESS_STEP = 0.005


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What is known of a running worker.

    ``pid`` is the host (0 before it started), ``engine_pid`` the engine (None before that); ``memory_bytes`` is
    what the engine's group was last measured to hold, 0 before. ``log`` is a file name in ``Home.worker_logs``.
    """

    pid: int
    engine_pid: int | None
    started_unix_s: float
    memory_bytes: int
    log: str


class Worker:
    """Lives once. ``live`` reports everything and returns after the proof of death.

    ``cause`` is set as soon as it is known why the worker ended, which is before that proof; None = on request.
    """

    def __init__(
        self,
        files: WorkerFiles,
        plan: LaunchPlan,
        *,
        lifetimes: Lifetimes,
        report: Callable[[vocabulary.Event], None],
        host_argv: Sequence[str],
    ) -> None:
        self._files = files
        self._plan = plan
        self._lifetimes = lifetimes
        self._report = report
        self._host_argv = host_argv
        self._nonce = new_nonce()
        self._started_unix_s = time.time()
        self._host: asyncio.subprocess.Process | None = None
        self._control: Control | None = None
        self._listening: asyncio.Task[dict[str, Any] | None] | None = None
        self._groups: list[processes.Identity] = []
        self._engine_pid: int | None = None
        self._memory_bytes = 0
        self._measured = asyncio.Event()
        self._end_within_s: float | None = None
        self._insisting: asyncio.Task[None] | None = None
        self._last_progress = ("", -1.0)
        self.cause: asyncio.Future[HomelabError | None] = asyncio.get_running_loop().create_future()

    @property
    def info(self) -> WorkerInfo:
        """As of now."""
        pid = self._host.pid if self._host else 0
        return WorkerInfo(pid, self._engine_pid, self._started_unix_s, self._memory_bytes, self._files.log.name)

    def end(self, within_s: float) -> None:
        """Ask the host to end the engine: TERM now, KILL after ``within_s`` (0: KILL now). Again: only sooner."""
        if self._end_within_s is not None and self._end_within_s <= within_s:
            return
        self._end_within_s = within_s
        if self._control is not None:
            self._control.send({"cmd": "drain", "term_s": within_s})
        if self._insisting is not None:
            self._insisting.cancel()
        self._insisting = asyncio.create_task(self._insist(within_s + _INSIST_S))

    async def live(self) -> None:
        """Report ``LoadProgress``*, ``Loaded`` or ``LoadFailed`` (none when called off), and at last ``WorkerExit``."""
        error: HomelabError | None = InternalError("the supervisor of this worker failed", log=self._files.log.name)
        try:
            error = await self._life()
        finally:
            self._settle(error)
            await self._bury()
            self._report(vocabulary.WorkerExit(self._files.worker_id, error))

    async def _life(self) -> HomelabError | None:
        try:
            listening = await self._load()
        except EngineError as error:
            if self._end_within_s is not None:
                return None
            self._settle(error)
            self._report(vocabulary.LoadFailed(self._files.worker_id, error))
            return error
        self._report(vocabulary.Loaded(self._files.worker_id, self._memory_bytes))
        while not listening.done():
            await asyncio.wait({listening}, timeout=self._lifetimes.measure_s)
            self._ask_stats()
        return None if self._end_within_s is not None else self._error(listening.result(), loading=False)

    # --- loading ---

    async def _load(self) -> asyncio.Task[dict[str, Any] | None]:
        """Until ready; gives the task that ends when the worker does.

        Raises:
            EngineError: typed; also when the load was called off.
        """
        limit_s = self._lifetimes.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                control = await self._meet(await self._start_host())
                listening = self._listening = asyncio.create_task(self._listen(control))
                await self._until_ready_or_over(listening)
        except TimeoutError as error:
            raise LoadFailed(
                f"{self._plan.model.name} was not ready within {limit_s:g} s",
                hint="mlxctl logs; the limit is the setting fleet.load_timeout_s",
                limit_s=limit_s,
                log=self._files.log.name,
            ) from error
        except OSError as error:
            raise LoadFailed(f"the worker host could not be started: {error.strerror}", hint="mlxctl doctor") from error
        self._ask_stats()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._measured.wait(), _FIRST_MEASURE_S)
        return listening

    async def _start_host(self) -> asyncio.subprocess.Process:
        self._files.remove()
        spec = write_spec(self._files, self._plan, self._nonce, self._lifetimes)
        with self._files.open_log() as log:
            host = self._host = await asyncio.create_subprocess_exec(
                *self._host_argv,
                str(spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            )
        self._know_group(host.pid, processes.start_time(host.pid))
        return host

    async def _meet(self, host: asyncio.subprocess.Process) -> Control:
        """Connect to the host's control socket and believe it only with proof."""
        control: Control | None = None
        while control is None:
            if host.returncode is not None:
                raise self._error(None, loading=True)
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                control = await Control.open(self._files["ctl"])
                break
            await asyncio.sleep(_CONNECT_PAUSE_S)
        self._control = control
        hello = await control.hello(
            {
                "protocol": PROTOCOL,
                "id": self._files.worker_id,
                "nonce": self._nonce,
                "digest": str(self._plan.model.digest),
                "engine": self._plan.engine,
                "host_pid": host.pid,
            }
        )
        if hello is None:
            await host.wait()
            raise self._error(None, loading=True)
        self._know_engine(hello.get("engine_pid"), hello.get("engine_start_time"))
        if self._end_within_s is not None:
            control.send({"cmd": "drain", "term_s": self._end_within_s})
        return control

    async def _until_ready_or_over(self, listening: asyncio.Task[dict[str, Any] | None]) -> None:
        socket, path = self._files["http"], self._plan.ready_path
        ready = asyncio.create_task(until_ready(socket, path, lambda: self._engine_pid))
        try:
            await asyncio.wait({ready, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ready
        if listening.done():
            raise self._error(listening.result(), loading=True)
        with contextlib.suppress(OSError):
            socket.chmod(0o600)

    # --- what the host tells ---

    async def _listen(self, control: Control) -> dict[str, Any] | None:
        """Follow the host until it tells the exit reason, which is returned; None when it went without one."""
        while (message := await control.receive()) is not None:
            kind = message.get("type")
            if kind == "exit":
                return message
            if kind == "engine":
                self._know_engine(message.get("pid"), message.get("start_time"))
            elif kind == "progress":
                self._on_progress(str(message.get("stage")), float(message.get("done", 0.0)))
            elif kind == "stats":
                self._on_stats(int(message.get("memory_bytes", 0)))
        return None

    def _on_progress(self, stage: str, done: float) -> None:
        last_stage, last_done = self._last_progress
        if stage != last_stage or done >= 1.0 > last_done or done - last_done >= _PROGRESS_STEP:
            self._last_progress = (stage, done)
            self._report(vocabulary.LoadProgress(self._files.worker_id, stage, done))

    def _on_stats(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._measured.set()

    def _ask_stats(self) -> None:
        """The host measures, in its own process: reading a large process's memory map takes a while."""
        if self._control is not None:
            self._control.send({"cmd": "stats"})

    def _know_engine(self, pid: object, started: object) -> None:
        if isinstance(pid, int) and isinstance(started, int):
            self._engine_pid = pid
            self._know_group(pid, started)

    def _know_group(self, leader: int, started: int | None) -> None:
        if started is not None:
            self._groups.append((leader, started))

    # --- the end ---

    def _error(self, reason: dict[str, Any] | None, *, loading: bool) -> EngineError:
        plan = self._plan
        reason = reason or graves.recorded_exit(self._files["exit"])
        return error_of(reason, model=plan.model.name, engine=plan.engine, log=self._files.log.name, loading=loading)

    def _settle(self, error: HomelabError | None) -> None:
        if not self.cause.done():
            self.cause.set_result(error)

    async def _insist(self, after_s: float) -> None:
        """The host did not do as it was told: end it; the kernel or ``_bury`` then ends the engine."""
        await asyncio.sleep(after_s)
        if self._host is not None and self._host.returncode is None:
            self._host.kill()

    async def _bury(self) -> None:
        """Return when nothing of this worker lives, proven, and nothing of it lies in the runtime folder."""
        self.end(0.0)
        if self._host is not None:
            await self._host.wait()
        if self._insisting is not None:
            self._insisting.cancel()
        if self._listening is not None:
            await self._listening
        if (recorded := graves.recorded_engine(self._files["run"], self._nonce)) is not None:
            self._groups.append(recorded)
        await graves.clear(self._groups)
        if self._control is not None:
            self._control.close()
        self._files.remove()
