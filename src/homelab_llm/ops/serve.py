"""``mlxserve``: the daemon program, also ``mlxctl serve``. Takes the lock first, imports the heavy parts last."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

import click

from homelab_llm.core.errors import HomelabError, InvalidInput
from homelab_llm.core.paths import Home
from homelab_llm.interface.cli.invocation import Invocation, Verb, verb
from homelab_llm.ops.handover.inherit import Inheritance
from homelab_llm.ops.ownership import Ownership, sole_daemon

if TYPE_CHECKING:
    from homelab_llm.core.settings import Settings
    from homelab_llm.inference.engines.base import Engine

DRAIN_S = 10.0


def command(engines: Sequence[Engine] | None = None, module: str = __spec__.name) -> Verb:
    """The verb; ``engines`` replaces the table of engines, ``module`` is run by the next daemon after a restart."""

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
        heir = Inheritance.of(os.environ)
        with heir.reporting() if heir is not None else nullcontext():
            if config is not None and not config.exists():
                raise InvalidInput(f"no such file: {config}", field="config")
            with sole_daemon(home, heir.lock if heir is not None else None) as owner:
                source = config or home.config
                order = Order(
                    flags=_flags(listen, flags),
                    source=source,
                    environ=invocation.environ,
                    named=bool(listen),
                    again=("-m", module, *_arguments(home, listen, config, flags)),
                )
                settings = order.settings()
                _configure_logs(home, settings, foreground_console="log" not in order.flags)
                if owner.after_crash:
                    _distrust_store(home)
                _run(home, settings, engines, order, owner=owner, heir=heir)

    return serve


serve = command()


def _distrust_store(home: Home) -> None:
    """Nobody knows what was being written when the last daemon ended: every model is hashed before its next load."""
    import logging

    from homelab_llm.store.model_store import ModelStore

    try:
        ModelStore(home.store).verification.distrust()
    except (HomelabError, OSError) as error:
        log = logging.getLogger(__name__)
        log.warning("what is known of stored models could not be forgotten", extra={"reason": str(error)})


@dataclass(frozen=True, slots=True)
class Order:
    """How this daemon was called. ``named``: addresses were among it. ``again``: how to call the next one."""

    flags: dict[str, dict[str, Any]]
    source: Path
    environ: Mapping[str, str]
    named: bool
    again: tuple[str, ...]

    def settings(self) -> Settings:
        """Read the settings, anew with each call."""
        from homelab_llm.core.settings import load_settings

        return load_settings(self.source, self.environ, self.flags)


def main(engines: Sequence[Engine] | None = None, module: str = __spec__.name) -> NoReturn:
    """Run ``mlxserve`` with this process's arguments and exit with its code."""
    from homelab_llm.interface.cli.guard import guarded

    sys.exit(guarded(command(engines, module), "mlxserve", sys.argv[1:], os.environ))


def _arguments(home: Home, listen: Sequence[str], config: Path | None, flags: Mapping[str, Any]) -> list[str]:
    """The command line that means the same in another process."""
    given = [("home", str(home.root)), *(("listen", address) for address in listen)]
    given += [("config", str(config.absolute()))] if config else []
    given += [(name.replace("_", "-"), str(value)) for name, value in flags.items() if value is not None]
    return [part for name, value in given for part in (f"--{name}", value)]


def _flags(listen: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The flags as the strongest layer of settings; what was not given is not in it."""
    layers = {
        "server": {"listen": list(listen) or None},
        "slots": {"ports": given["slots"]},
        "log": {"level": given["log_level"], "format": given["log_format"]},
    }
    chosen = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in layers.items()}
    return {section: keys for section, keys in chosen.items() if keys}


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
    order: Order,
    *,
    owner: Ownership,
    heir: Inheritance | None,
) -> None:
    from homelab_llm.data.upgrade import WAIT_S, begin_upgrade

    upgrade = begin_upgrade(home.root, settings.data.url)  # a program of its own, while the imports below take time
    import asyncio

    import uvloop

    from homelab_llm.ops.handover.restart import Restart
    from homelab_llm.ops.house import NodeHouse
    from homelab_llm.ops.launch import daemon_log
    from homelab_llm.ops.life import Life, live
    from homelab_llm.ops.reload import report_changes

    if upgrade is not None:
        if heir is not None:
            heir.busy("migrating the database", WAIT_S)
        upgrade.wait()

    async def one_life() -> None:
        life = Life(
            home,
            owner,
            order.environ,
            asyncio.Event(),
            drain_s=DRAIN_S,
            hang_up=lambda: report_changes(settings, order.settings),
            engine=settings.engine.prefer,
            heir=heir,
        )

        async def ask(python: str) -> dict[str, Any]:
            return await restart.ask(python)

        house = NodeHouse(
            home,
            settings,
            engines,
            named=order.named,
            stop=life.stopping.set,
            restart=ask,
            sockets=heir.sockets if heir is not None else (),
        )
        restart = Restart(
            house,
            owner,
            order.environ,
            order.again,
            daemon_log(home),
            announce=lambda: life.announce(house),
            end=life.stopping.set,
        )
        await live(house, life, restart)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(one_life())


if __name__ == "__main__":
    main()
