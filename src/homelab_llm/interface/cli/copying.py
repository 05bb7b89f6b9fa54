"""``mlxctl cp``: a further name for a model here, or the model on another machine, over ssh."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from homelab_llm.core.errors import Cancelled, HomelabError
from homelab_llm.core.names import ModelRef
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.fetching import show_progress
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup
from homelab_llm.interface.cli.models import summary

if TYPE_CHECKING:
    from homelab_llm.store.exchange.wire import Wire
    from homelab_llm.store.progress import JobProgress

_HERE = "homelab_llm.interface.cli.copying"


@verb("cp")
@click.argument("source", shell_complete=model_names)
@click.argument("target", required=False)
@click.option("--to", "to_host", metavar="HOST", help="Copy SOURCE to the store of this machine, over ssh.")
@click.option("--from", "from_host", metavar="HOST", help="Copy SOURCE from the store of this machine, over ssh.")
def cp(invocation: Invocation, source: str, target: str | None, to_host: str | None, from_host: str | None) -> None:
    """Give the model SOURCE the further name TARGET; no bytes are copied.

    With --to or --from it is copied between the stores of two machines, under the same name unless TARGET is given.
    Only blobs that the other store lacks travel, and an interrupted copy goes on where it was.
    """
    if to_host and from_host:
        raise click.UsageError("--to and --from exclude each other")
    if to_host:
        _copy_to(invocation, to_host, source, target)
    elif from_host:
        _copy_from(invocation, from_host, source, target)
    elif target is None:
        raise click.UsageError("missing TARGET, or --to HOST, or --from HOST")
    else:
        copied = invocation.store.copy(ModelRef.parse(source), ModelRef.parse(target))
        invocation.output.result(summary(copied), f"{copied.name} is {copied.digest.short}, the same model as {source}")


def _copy_to(invocation: Invocation, host: str, source: str, target: str | None) -> None:
    from homelab_llm.store.exchange.give import give

    model = invocation.store.resolve(source)
    name = str(ModelRef.parse(target or model.name))
    with _far(invocation, host, ["exchange", "take", name]) as wire, _told(invocation, f"copying to {host}") as show:
        digest = give(invocation.store, model, wire, show)
    same = digest == str(model.digest)
    invocation.output.result(
        {"name": name, "host": host, "digest": digest, "identical": same},
        f"{name} is in the store of {host}" + ("" if same else f", there as {digest[7:19]} (another version)"),
    )


def _copy_from(invocation: Invocation, host: str, source: str, target: str | None) -> None:
    from homelab_llm.store.exchange.take import take

    ref = ModelRef.parse(target or source)
    floor_bytes = invocation.settings.store.free_floor_bytes
    with (
        _far(invocation, host, ["exchange", "give", source]) as wire,
        _told(invocation, f"copying from {host}") as show,
    ):
        model = take(invocation.store, wire, ref, free_floor_bytes=floor_bytes, progress=show)
    invocation.output.result(
        summary(model), f"{model.name} is in the store ({format_bytes(model.size_bytes)}), from {host}"
    )


@contextmanager
def _far(invocation: Invocation, host: str, argv: list[str]) -> Iterator[Wire]:
    from homelab_llm import __version__
    from homelab_llm.ops.remote import FarSide, Terminals, talk_there
    from homelab_llm.store.exchange.wire import Wire

    chosen = invocation.settings.remote
    far = FarSide(host, chosen.command, chosen.ssh_config)
    terminals = Terminals(*(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)))
    with talk_there(far, argv, terminals, version=__version__, environ=invocation.environ) as (reader, writer):
        yield Wire(reader, writer)


@contextmanager
def _told(invocation: Invocation, title: str) -> Iterator[Callable[[JobProgress], None]]:
    """Progress as a bar, or as lines of JSON; Ctrl-C says that nothing is lost."""
    try:
        with show_progress(invocation, title, events=invocation.output.json) as show:
            yield show
    except KeyboardInterrupt:
        raise Cancelled(
            f"{title} was interrupted; what was received is kept", hint="run the same command again"
        ) from None


@click.group("exchange", cls=LazyGroup, hidden=True, verbs={"give": f"{_HERE}:give_", "take": f"{_HERE}:take_"})
def exchange() -> None:
    """The far side of `mlxctl cp --to` and `--from`: speaks with the other store on standard input and output."""


@verb("give")
@click.argument("model")
def give_(invocation: Invocation, model: str) -> None:
    """Send MODEL to the store at the other end."""
    from homelab_llm.store.exchange.give import give

    with _at_this_end() as wire:
        give(invocation.store, invocation.store.resolve(model), wire)


@verb("take")
@click.argument("name")
def take_(invocation: Invocation, name: str) -> None:
    """Receive a model from the store at the other end and keep it as NAME."""
    from homelab_llm.store.exchange.take import take

    with _at_this_end() as wire:
        floor_bytes = invocation.settings.store.free_floor_bytes
        take(invocation.store, wire, ModelRef.parse(name), free_floor_bytes=floor_bytes)


@contextmanager
def _at_this_end() -> Iterator[Wire]:
    """Standard input and output as the wire. An error is told over it and not here: both are one terminal."""
    from homelab_llm.interface.cli.exit_codes import exit_code_of
    from homelab_llm.store.exchange.wire import Wire

    wire = Wire(sys.stdin.buffer, sys.stdout.buffer)
    try:
        yield wire
    except HomelabError as error:
        wire.refuse(error)
        click.get_current_context().exit(exit_code_of(type(error)))
