"""One life of the daemon: up, ready, until told to stop, drained, tidy. Knows processes and signals, no models."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import homelab_llm
from homelab_llm.core.paths import Home
from homelab_llm.ops.handover.inherit import Inheritance
from homelab_llm.ops.handover.restart import Restart
from homelab_llm.ops.notify import notify
from homelab_llm.ops.ownership import Ownership, tidy
from homelab_llm.ops.record import MANAGED_BY, DaemonRecord, write_record

log = logging.getLogger(__name__)


class House(Protocol):
    """What lives: the node and its front door."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where it really listens, once started."""
        ...

    @property
    def warnings(self) -> Sequence[dict[str, str]]:
        """What is worse than it should be: ``{text, hint}``."""
        ...

    def bind(self) -> None:
        """Take the addresses, and accept nothing yet."""
        ...

    async def start(self, leases: Mapping[str, int]) -> None:
        """Serve; ``leases`` are the requests that an earlier daemon still runs, by worker."""
        ...

    def let_go(self, worker_id: str) -> None:
        """One of those requests ended."""
        ...

    async def stop(self, drain_s: float, *, leave_workers: bool, remove: bool) -> None:
        """Finish what runs within ``drain_s``, then end everything; all processes are gone when it returns.

        Args:
            leave_workers: but the workers go on, for the next daemon to find.
            remove: the daemon's socket too; it may be another daemon's.
        """
        ...


@dataclass(frozen=True, slots=True)
class Life:
    """What one life needs besides the house.

    ``engine`` is the one it prefers, for the record. ``heir`` is what another daemon passed on to this one, None
    when it starts by itself; ``restart`` passes everything on to the next. ``hang_up`` is called on SIGHUP.
    """

    home: Home
    owner: Ownership
    environ: Mapping[str, str]
    stopping: asyncio.Event
    drain_s: float
    hang_up: Callable[[], None]
    engine: str = "auto"
    heir: Inheritance | None = None
    started_unix_s: float = field(default_factory=time.time)

    @property
    def managed(self) -> bool:
        """Whether a service manager started the daemon and would miss it."""
        return any(name in self.environ for name in MANAGED_BY)

    def announce(self, house: House) -> None:
        """Publish the record."""
        write_record(
            self.home,
            DaemonRecord(
                pid=os.getpid(),
                version=homelab_llm.__version__,
                started_unix_s=self.started_unix_s,
                socket=str(self.home.daemon_sock),
                listeners=list(house.addresses),
                warnings=list(house.warnings),
                engine=self.engine,
                managed=self.managed,
            ),
        )


async def live(house: House, life: Life, restart: Restart | None = None) -> None:
    """Run ``house`` until ``stopping`` is set, or TERM or INT comes; a second of them ends the process at once.

    TERM from a service manager leaves the workers to the next daemon; every other end ends them.
    """
    came: list[int] = []
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, came, life, restart)
    loop.add_signal_handler(signal.SIGHUP, life.hang_up)
    following: asyncio.Task[None] | None = None
    try:
        following = await _begin(house, life)
        await life.stopping.wait()
        if restart is not None:
            await restart.settled()
    finally:
        if restart is not None and restart.handed_over:
            await restart.leave(following)
        else:
            leave_workers = not life.owner.ours or (life.managed and signal.SIGTERM in came)
            await _end(house, life, leave_workers=leave_workers)
        if following is not None:
            following.cancel()
        log.info("stopped")


async def _begin(house: House, life: Life) -> asyncio.Task[None] | None:
    """Until the house serves; the task that hears what becomes of an earlier daemon's requests."""
    house.bind()
    leases = await life.heir.claim() if life.heir is not None else {}
    await house.start(leases)
    life.owner.sign()
    life.announce(house)
    following = None
    if life.heir is not None:
        life.heir.serving(list(house.addresses))
        following = asyncio.get_running_loop().create_task(life.heir.follow(house.let_go))
    life.owner.ours = True
    log.info("ready", extra={"listeners": list(house.addresses), "pid": os.getpid()})
    notify(life.environ, "READY=1\nSTATUS=serving")
    return following


async def _end(house: House, life: Life, *, leave_workers: bool) -> None:
    ours = life.owner.ours
    log.info("stopping", extra={"drain_s": life.drain_s, "leave_workers": leave_workers})
    if ours:
        notify(life.environ, "STOPPING=1")
        life.home.daemon_json.unlink(missing_ok=True)
    await house.stop(life.drain_s, leave_workers=leave_workers, remove=ours)
    if ours:
        tidy(life.home)


def _on_signal(number: int, came: list[int], life: Life, restart: Restart | None) -> None:
    name = signal.Signals(number).name
    if life.stopping.is_set():
        log.warning("second signal: ending at once", extra={"signal": name})
        if life.owner.ours and not (restart is not None and restart.running):
            tidy(life.home)
        os._exit(128 + number)  # workers notice by themselves that we are gone
    log.info("signal", extra={"signal": name})
    came.append(number)
    life.stopping.set()
