"""One worker's life as the daemon sees it: start its host or take it over, prove who answers, wait, watch, bury."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from homelab_llm.core.errors import EngineError, EngineReplyInvalid, HomelabError, InternalError, LoadFailed
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import LaunchPlan
from homelab_llm.inference.fleet import graves, processes, vocabulary
from homelab_llm.inference.fleet.canary import send_canary
from homelab_llm.inference.fleet.control import Control
from homelab_llm.inference.fleet.host import HostProcess
from homelab_llm.inference.fleet.launch import Lifetimes, WorkerFiles, write_spec
from homelab_llm.inference.fleet.readiness import until_ready
from homelab_llm.inference.fleet.reasons import error_of
from homelab_llm.inference.fleet.record import WorkerRecord, expected_hello, forget

_CONNECT_PAUSE_S = 0.005
_FIRST_MEASURE_S = 0.3
_INSIST_S = 2.0
_PROGRESS_STEP = 0.005
_REASON_S = 0.5


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
    """Lives once. ``live`` reports everything and returns after the proof of death, or when it is released.

    ``cause`` is set as soon as it is known why the worker ended, which is before that proof; None = on request.

    Args:
        record: what is kept of it; of an earlier daemon when ``adopt`` is to be called.
    """

    def __init__(
        self,
        home: Home,
        record: WorkerRecord,
        *,
        lifetimes: Lifetimes,
        report: Callable[[vocabulary.Event], None],
    ) -> None:
        self._home = home
        self._files = WorkerFiles.of(home, record.worker_id)
        self._record = record
        self._lifetimes = lifetimes
        self._report = report
        self._host: HostProcess | None = None
        self._control: Control | None = None
        self._listening: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._listening.set_result(None)
        self._groups: list[processes.Identity] = []
        self._engine_pid: int | None = None
        self._memory_bytes = record.memory_bytes
        self._measured = asyncio.Event()
        self._adopted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._end_within_s: float | None = None
        self._insisting: asyncio.Task[None] | None = None
        self._living = False
        self._released = False
        self._last_progress = ("", -1.0)
        self.cause: asyncio.Future[HomelabError | None] = asyncio.get_running_loop().create_future()

    @property
    def record(self) -> WorkerRecord:
        """What is kept of it now."""
        return self._record

    @property
    def info(self) -> WorkerInfo:
        """As of now."""
        pid = self._host.pid if self._host else 0
        log, started_unix_s = self._files.log.name, self._record.started_unix_s
        return WorkerInfo(pid, self._engine_pid, started_unix_s, self._memory_bytes, log)

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

    def release(self) -> None:
        """Watch it no longer and leave it alone; whoever holds the task of ``live`` cancels that."""
        self._released = True
        self._settle(None)
        if self._insisting is not None:
            self._insisting.cancel()
        if self._control is not None:
            self._control.close()

    async def adopt(self) -> bool:
        """Take over a worker of an earlier daemon, with proof; then ``live`` goes on with it.

        Never signals anybody; bound it with a timeout. Returns whether it is ours now: False when it is dead, or about
        to end anyway.

        Raises:
            EngineReplyInvalid: somebody else answers in its place.
        """
        control = await self._reach()
        if control is None:
            return False
        try:
            hello = await control.hello(expected_hello(self._record))
            if hello is None:
                raise EngineReplyInvalid("it closed the conversation without proving who it is")
            host = HostProcess(control.peer_pid, int(hello.get("host_start_time") or 0))
            if host.dead:
                raise EngineReplyInvalid("the start time it tells is not that of the process that answers")
            self._take(control, host, hello)
            self.reclaim()
            answers: set[asyncio.Future[Any]] = {self._listening, self._adopted}
            await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            if self._host is not None:  # it is ours, and might find the command later: then nobody would want it
                control.send({"cmd": "drain", "term_s": self._lifetimes.drain_s})
            control.close()
            raise
        if not self._adopted.done() or not self._adopted.result():
            control.close()
            return False
        self._keep(host=host.identity)
        self._ask_stats()
        return True

    def reclaim(self) -> None:
        """Another daemon took it over and failed: it shall watch this one again."""
        if self._control is not None and self._host is not None:
            proof = {"nonce": self._record.nonce, "digest": self._record.digest}
            grace_s = self._lifetimes.orphan_grace_s
            self._control.send({"cmd": "adopt", "pid": os.getpid(), **proof, "orphan_grace_s": grace_s})

    async def live(self, plan: LaunchPlan | None = None, host_argv: Sequence[str] = ()) -> None:
        """Report ``LoadProgress``*, ``Loaded`` or ``LoadFailed`` (none when called off), and at last ``WorkerExit``.

        Args:
            plan: how to start it; None = it was adopted, and reports ``Loaded`` only if it was not ready before.
        """
        error: HomelabError | None = InternalError("the supervisor of this worker failed", log=self._files.log.name)
        self._living = True
        try:
            error = await self._life(plan, host_argv)
        finally:
            if not self._released:
                self._settle(error)
                await self._bury()
                self._report(vocabulary.WorkerExit(self._files.worker_id, error))

    async def _life(self, plan: LaunchPlan | None, host_argv: Sequence[str]) -> HomelabError | None:
        if not self._record.ready:
            try:
                await self._load(plan, host_argv)
            except EngineError as error:
                if self._end_within_s is not None:
                    return None
                self._settle(error)
                self._report(vocabulary.LoadFailed(self._files.worker_id, error))
                return error
            self._report(vocabulary.Loaded(self._files.worker_id, self._memory_bytes))
        while not self._listening.done():
            await asyncio.wait({self._listening}, timeout=self._lifetimes.measure_s)
            self._ask_stats()
        return None if self._end_within_s is not None else self._error(self._listening.result(), loading=False)

    # --- loading ---

    async def _load(self, plan: LaunchPlan | None, host_argv: Sequence[str]) -> None:
        """Until ready and measured.

        Raises:
            EngineError: typed; also when the load was called off.
        """
        limit_s = self._lifetimes.load_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                if plan is not None:
                    await self._meet(self._start_host(plan, host_argv))
                await self._until_ready_or_over()
        except TimeoutError as error:
            raise LoadFailed(
                f"{self._record.model} was not ready within {limit_s:g} s",
                hint="mlxctl logs; the limit is the setting fleet.load_timeout_s",
                limit_s=limit_s,
                log=self._files.log.name,
            ) from error
        except OSError as error:
            raise LoadFailed(f"the worker host could not be started: {error.strerror}", hint="mlxctl doctor") from error
        self._ask_stats()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._measured.wait(), _FIRST_MEASURE_S)
        failpoint("worker.proven")
        self._keep(ready=True, memory_bytes=self._memory_bytes)
        failpoint("worker.ready")

    def _start_host(self, plan: LaunchPlan, host_argv: Sequence[str]) -> HostProcess:
        """The record is written before and after: at no moment is a worker alive that could not be proven ours."""
        self._files.remove()
        self._record.write(self._home)
        failpoint("worker.recorded")
        spec = write_spec(self._files, plan, self._record.nonce, self._lifetimes)
        with self._files.open_log() as log:
            host = self._host = HostProcess.spawn([*host_argv, str(spec)], log)
        self._groups.append(host.identity)
        failpoint("worker.spawned")
        self._keep(host=host.identity)
        failpoint("worker.named")
        return host

    async def _reach(self) -> Control | None:
        """A conversation with whoever listens at this worker's control socket; None when its host is dead.

        Raises:
            EngineReplyInvalid: that is another process.
        """
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                control = await Control.open(self._files["ctl"])
                if self._record.host is None or control.peer_pid == self._record.host[0]:
                    return control
                control.close()
                raise EngineReplyInvalid("another process listens in its place", pid=control.peer_pid)
            if self._record.host is not None and not processes.alive(*self._record.host):
                return None
            await asyncio.sleep(_CONNECT_PAUSE_S)

    async def _meet(self, host: HostProcess) -> None:
        """Connect to the host's control socket and believe it only with proof."""
        control: Control | None = None
        while control is None:
            if host.dead:
                raise self._error(None, loading=True)
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                control = await Control.open(self._files["ctl"])
                break
            await asyncio.sleep(_CONNECT_PAUSE_S)
        self._control = control
        hello = await control.hello(expected_hello(self._record))
        if hello is None:
            await host.wait()
            raise self._error(None, loading=True)
        failpoint("worker.met")
        self._take(control, host, hello)
        if self._end_within_s is not None:
            control.send({"cmd": "drain", "term_s": self._end_within_s})

    def _take(self, control: Control, host: HostProcess, hello: dict[str, Any]) -> None:
        """Believe a host that gave its proof."""
        self._control, self._host = control, host
        self._groups.append(host.identity)
        self._know_engine(hello.get("engine_pid"), hello.get("engine_start_time"))
        self._listening = asyncio.create_task(self._listen(control))

    async def _until_ready_or_over(self) -> None:
        listening = self._listening
        ready = asyncio.create_task(self._prove_ready())
        try:
            ends: set[asyncio.Future[Any]] = {ready, listening}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            failed = ready.exception() if ready.done() else None
            if failed is not None and failed.__cause__ is not None:  # broken off: its death, if that was it, says why
                await asyncio.wait({listening}, timeout=_REASON_S)
            if listening.done():
                raise self._error(listening.result(), loading=True)
            await ready
        finally:
            ready.cancel()
            with contextlib.suppress(asyncio.CancelledError, EngineError):
                await ready

    async def _prove_ready(self) -> None:
        """Readiness by identity, then one real answer.

        Raises:
            LoadFailed: the answer was wrong.
        """
        socket = self._files["http"]
        await until_ready(socket, self._record.ready_path, lambda: self._engine_pid)
        with contextlib.suppress(OSError):
            socket.chmod(0o600)
        failpoint("worker.answering")
        await send_canary(socket, self._record.probe, self._record.model, log=self._files.log.name)

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
            elif kind in ("adopted", "refused") and not self._adopted.done():
                self._adopted.set_result(kind == "adopted")
        return None

    def _on_progress(self, stage: str, done: float) -> None:
        last_stage, last_done = self._last_progress
        if not self._living:  # adopted, and not yet known to those who hear reports
            return
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
            self._groups.append((pid, started))

    def _keep(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        with contextlib.suppress(OSError):  # a full disk must not end a model that answers; it cannot be adopted then
            self._record.write(self._home)

    # --- the end ---

    def _error(self, reason: dict[str, Any] | None, *, loading: bool) -> EngineError:
        reason = reason or graves.recorded_exit(self._files["exit"])
        model, engine = self._record.model, self._record.engine
        return error_of(reason, model=model, engine=engine, log=self._files.log.name, loading=loading)

    def _settle(self, error: HomelabError | None) -> None:
        if not self.cause.done():
            self.cause.set_result(error)

    async def _insist(self, after_s: float) -> None:
        """The host did not do as it was told: end it; the kernel or ``_bury`` then ends the engine."""
        await asyncio.sleep(after_s)
        if self._host is not None:
            self._host.kill()

    async def _bury(self) -> None:
        """Return when nothing of this worker lives, proven, and nothing of it lies in the runtime folder."""
        self.end(0.0)
        if self._host is not None:
            await self._host.wait()
        if self._insisting is not None:
            self._insisting.cancel()
        await self._listening
        if (recorded := graves.recorded_engine(self._files["run"], self._record.nonce)) is not None:
            self._groups.append(recorded)
        await graves.clear(self._groups)
        if self._control is not None:
            self._control.close()
        self._files.remove()
        forget(self._home, self._record.worker_id)
