"""``mlxserve``: the daemon program, also ``mlxctl serve``. Takes the lock first, imports the heavy parts last."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

import click

from homelab_llm.core.errors import DaemonRunning, InvalidInput
from homelab_llm.core.locks import holder_pid, try_lock
from homelab_llm.core.paths import Home
from homelab_llm.interface.cli.invocation import Invocation, Verb, verb

if TYPE_CHECKING:
    from homelab_llm.core.settings import Settings
    from homelab_llm.inference.engines.base import Engine

DRAIN_S = 10.0


def command(engines: Sequence[Engine] | None = None) -> Verb:
    """The verb; ``engines`` replaces the table of engines."""

    @verb("serve")
    @click.option(
        "--home",
        "root",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of models, settings and logs; else HOMELAB_HOME, else the platform's data folder.",
    )
    @click.option(
        "--listen",
        multiple=True,
        metavar="HOST:PORT",
        help="Serve on this address, in place of the default ones; may be repeated. Fatal when it is taken. "
        "Port 0 takes a free one.",
    )
    @click.option("--slots", metavar="PORTS", help="Ports with names that never move: 8100-8109, a list, or none.")
    @click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings; else HOME/config.yaml.")
    @click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe level.")
    @click.option("--log-format", type=click.Choice(["json", "console"]), help="Form of the log on standard error.")
    def serve(
        invocation: Invocation, /, root: Path | None, listen: tuple[str, ...], config: Path | None, **flags: Any
    ) -> None:
        """Run the daemon in the foreground; `mlxserve` is the same.

        TERM or Ctrl-C lets running requests end, then stops; a second one stops at once. HUP reads the settings again.
        """
        home = Home.at(root or invocation.home_root, environ=invocation.environ)
        if config is not None and not config.exists():
            raise InvalidInput(f"no such file: {config}", field="config")
        with _sole_daemon(home):
            source = config or home.config
            chosen = _flags(listen, flags)
            settings = _settings(source, invocation.environ, chosen)
            _configure_logs(home, settings, foreground_console="log" not in chosen)
            _run(home, settings, engines, invocation.environ, named=bool(listen), source=source, flags=chosen)

    return serve


serve = command()


def main(engines: Sequence[Engine] | None = None) -> NoReturn:
    """Run ``mlxserve`` with this process's arguments and exit with its code."""
    from homelab_llm.interface.cli.guard import guarded

    sys.exit(guarded(command(engines), "mlxserve", sys.argv[1:], os.environ))


@contextmanager
def _sole_daemon(home: Home) -> Iterator[None]:
    """Hold the home for life; what a killed daemon left behind is removed."""
    from homelab_llm.ops.life import tidy

    home.ensure()
    handle = try_lock(home.daemon_lock)
    if handle is None:
        pid = holder_pid(home.daemon_lock)
        raise DaemonRunning(
            f"another daemon owns {home.root}" + (f" (pid {pid})" if pid else ""), hint="mlxctl daemon status", pid=pid
        )
    tidy(home)
    try:
        yield
    finally:
        os.close(handle)


def _flags(listen: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The flags as the strongest layer of settings; what was not given is not in it."""
    layers = {
        "server": {"listen": list(listen) or None},
        "slots": {"ports": given["slots"]},
        "log": {"level": given["log_level"], "format": given["log_format"]},
    }
    chosen = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in layers.items()}
    return {section: keys for section, keys in chosen.items() if keys}


def _settings(source: Path, environ: Mapping[str, str], flags: Mapping[str, Mapping[str, Any]]) -> Settings:
    from homelab_llm.core.settings import load_settings

    return load_settings(source, environ, flags)


def _configure_logs(home: Home, settings: Settings, *, foreground_console: bool) -> None:
    """JSON lines, or readable ones on a terminal; a log file of our own is rotated by us."""
    from homelab_llm.core.logs import configure
    from homelab_llm.ops.launch import daemon_log
    from homelab_llm.ops.own_log import OwnLog, writes_to

    if writes_to(daemon_log(home)):
        configure(settings.log.level, settings.log.format, cast("TextIO", OwnLog(daemon_log(home))))
        return
    on_terminal = foreground_console and sys.stderr.isatty()
    configure(settings.log.level, "console" if on_terminal else settings.log.format)


def _run(
    home: Home,
    settings: Settings,
    engines: Sequence[Engine] | None,
    environ: Mapping[str, str],
    *,
    named: bool,
    source: Path,
    flags: Mapping[str, Mapping[str, Any]],
) -> None:
    import asyncio

    import uvloop

    from homelab_llm.ops.house import NodeHouse
    from homelab_llm.ops.life import live
    from homelab_llm.ops.reload import report_changes

    async def life() -> None:
        stopping = asyncio.Event()
        await live(
            NodeHouse(home, settings, engines, named=named, stop=stopping.set),
            stopping,
            home,
            environ,
            drain_s=DRAIN_S,
            engine=settings.engine.prefer,
            hang_up=lambda: report_changes(settings, lambda: _settings(source, environ, flags)),
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())


if __name__ == "__main__":
    main()
