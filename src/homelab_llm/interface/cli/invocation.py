"""One call of ``mlxctl``: the home, the output and the daemon, as every verb gets them; and what all verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from homelab_llm.interface.cli.output import Output

if TYPE_CHECKING:
    from homelab_llm.core.paths import Home
    from homelab_llm.core.settings import Settings
    from homelab_llm.data.registry import Registry
    from homelab_llm.interface.daemon_client import DaemonClient
    from homelab_llm.store.model_store import ModelStore

P = ParamSpec("P")
R = TypeVar("R")


class Invocation:
    """What one call knows. Imports the parts it hands out only when they are asked for."""

    def __init__(self, output: Output, environ: Mapping[str, str]) -> None:
        self.output = output
        self.environ = environ
        self.home_root: Path | None = None
        self.verbosity = 0
        self.expected_version: str | None = None
        """The version of the machine that forwarded this call to us; None when it was typed here."""
        self.elsewhere: DaemonClient | None = None
        """The daemon of another machine, which ``--url`` named; every verb then speaks to that one."""

    @cached_property
    def home(self) -> Home:
        from homelab_llm.core.paths import Home

        return Home.at(self.home_root, environ=self.environ)

    @cached_property
    def store(self) -> ModelStore:
        from homelab_llm.store.model_store import ModelStore

        return ModelStore(self.home.store)

    @cached_property
    def settings(self) -> Settings:
        """Imports pydantic: not for verbs that only read."""
        from homelab_llm.core.settings import load_settings

        return load_settings(self.home.config, self.environ)

    def may_be_set(self, section: str, key: str) -> bool:
        """Whether a setting could differ from its default; False is certain. Reads no YAML, imports nothing."""
        if f"HOMELAB_{section}__{key}".upper() in map(str.upper, self.environ):
            return True
        try:
            return key.encode() in self.home.config.read_bytes()
        except OSError:
            return False

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        """The registry of this home, in this process; its database is made, or brought up to date, when needed.

        Imports SQLAlchemy. Tell a running daemon afterwards: ``registry_changed``.
        """
        from homelab_llm.data.database import Database
        from homelab_llm.data.registry import Registry
        from homelab_llm.data.registry_file import registry_path
        from homelab_llm.data.upgrade import upgraded

        chosen = self.settings.data
        upgraded(self.home.ensure().root, chosen.url)
        with closing(Database.open(chosen.url, self.home.database)) as database:
            path = registry_path(chosen.registry_file, self.home, self.environ)
            yield Registry(database, path, publish=lambda event: self.output.warning(event.text))

    def registry_changed(self) -> bool:
        """Have a running daemon read the registry again; whether it did. The change is kept whatever it says."""
        from homelab_llm.core.errors import Conflict, EndpointNotFound, HomelabError

        client = self.daemon_if_running()
        if client is None:
            return False
        try:
            client.post("/admin/registry/refresh", {})
        except (Conflict, EndpointNotFound):
            return False  # it keeps none, or is of an earlier version
        except HomelabError as error:
            self.output.warning(f"the daemon did not read the registry again: {error.message}", error.hint)
            return False
        return True

    def daemon_if_running(self) -> DaemonClient | None:
        """A client for the daemon of this home, or None when none answers; starts nothing."""
        if self.elsewhere is not None:
            return self.elsewhere
        from homelab_llm.interface.daemon_client import DaemonClient
        from homelab_llm.ops.record import read_record

        record = read_record(self.home)
        # A daemon that a service manager started may keep its sockets in another runtime folder than ours.
        for path in dict.fromkeys((self.home.daemon_sock, *([Path(record.socket)] if record else []))):
            client = DaemonClient(path)
            if path.exists() and client.answers():
                return client
        return None

    def running_daemon(self) -> DaemonClient:
        """As ``daemon_if_running``.

        Raises:
            DaemonUnavailable: none answers.
        """
        if client := self.daemon_if_running():
            return client
        from homelab_llm.core.errors import DaemonUnavailable

        raise DaemonUnavailable("the daemon is not running", hint="mlxctl daemon start")

    def daemon(self, *, engine: str = "auto") -> DaemonClient:
        """A client for the daemon of this home; starts it when none answers, with ``engine`` preferred.

        Raises:
            DaemonUnavailable: it did not come up; the message has the last lines of its log.
        """
        if self.elsewhere is not None:
            return self.elsewhere
        if running := self.daemon_if_running():
            self._compare_versions()
            return running
        from homelab_llm.ops.launch import ensure_daemon

        environ = self.environ if engine == "auto" else {**self.environ, "HOMELAB_ENGINE__PREFER": engine}
        with self.output.loading("starting the daemon"):
            ensure_daemon(self.home, lambda: self.daemon_if_running() is not None, environ)
        return self.daemon_if_running() or self._gone()

    def _compare_versions(self) -> None:
        import homelab_llm
        from homelab_llm.ops.record import read_record

        record = read_record(self.home)
        if record and record.version != homelab_llm.__version__:
            self.output.warning(f"the daemon still runs version {record.version}", "mlxctl daemon restart")

    def _gone(self) -> DaemonClient:
        from homelab_llm.core.errors import DaemonUnavailable

        raise DaemonUnavailable("the daemon ended right after its start", hint="mlxctl logs daemon")


def _want_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).output.json = True


def _count_verbose(context: click.Context, _option: click.Parameter, value: int) -> None:
    context.ensure_object(Invocation).verbosity += value


def shared_options() -> list[click.Parameter]:
    """The options every verb and ``mlxctl`` itself take."""
    return [
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_want_json,
            help="Print the result, or the error, as JSON.",
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            callback=_count_verbose,
            help="Say more; on errors of our own, show where.",
        ),
    ]


class Verb(click.Command):
    """A command with the shared options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(shared_options())


def verb(name: str) -> Callable[[Callable[Concatenate[Invocation, P], R]], Verb]:
    """Make a function that takes an ``Invocation`` first into the verb ``name``."""

    def wrap(function: Callable[Concatenate[Invocation, P], R]) -> Verb:
        return click.command(name, cls=Verb)(click.pass_obj(function))

    return wrap
