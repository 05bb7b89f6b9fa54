"""One life of the daemon: up, ready, until told to stop, drained, tidy. Knows processes and signals, no models."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import homelab_llm
from homelab_llm.core.paths import Home
from homelab_llm.ops.notify import notify
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

    async def start(self) -> None: ...

    async def stop(self, drain_s: float) -> None:
        """Finish what runs within ``drain_s``, then end everything; all processes are gone when it returns."""
        ...


async def live(
    house: House,
    stopping: asyncio.Event,
    home: Home,
    environ: Mapping[str, str],
    *,
    drain_s: float,
    engine: str = "auto",
    hang_up: Callable[[], None],
) -> None:
    """Run ``house`` until ``stopping`` is set, or TERM or INT comes; a second of them ends the process at once.

    Args:
        hang_up: called on SIGHUP.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stopping, home)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        await house.start()
        write_record(home, _record(house, home, environ, engine))
        log.info("ready", extra={"listeners": list(house.addresses), "pid": os.getpid()})
        notify(environ, "READY=1\nSTATUS=serving")
        await stopping.wait()
    finally:
        notify(environ, "STOPPING=1")
        log.info("stopping", extra={"drain_s": drain_s})
        home.daemon_json.unlink(missing_ok=True)
        await house.stop(drain_s)
        tidy(home)
        log.info("stopped")


def tidy(home: Home) -> None:
    """Remove what tells others that a daemon is here. Only for who holds the home's lock."""
    for path in (home.daemon_json, home.daemon_sock):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _on_signal(number: int, stopping: asyncio.Event, home: Home) -> None:
    name = signal.Signals(number).name
    if stopping.is_set():
        log.warning("second signal: ending at once", extra={"signal": name})
        tidy(home)
        os._exit(128 + number)  # workers notice by themselves that we are gone
    log.info("signal", extra={"signal": name})
    stopping.set()


def _record(house: House, home: Home, environ: Mapping[str, str], engine: str) -> DaemonRecord:
    return DaemonRecord(
        pid=os.getpid(),
        version=homelab_llm.__version__,
        started_unix_s=time.time(),
        socket=str(home.daemon_sock),
        listeners=list(house.addresses),
        warnings=list(house.warnings),
        engine=engine,
        managed=any(name in environ for name in MANAGED_BY),
    )
