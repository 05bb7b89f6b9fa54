"""``mlxctl events``: what the daemon did, from what it remembers and, with ``-f``, as it happens."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from homelab_llm.core.errors import DaemonUnavailable
from homelab_llm.interface.cli.answering import server_events
from homelab_llm.interface.cli.invocation import Invocation, verb

if TYPE_CHECKING:
    from homelab_llm.interface.daemon_client import DaemonClient

_SILENCE_S = 60.0  # the daemon sends a comment every 15 s
_COMES_BACK_S = 60.0
_LOOK_S = 0.1


@verb("events")
@click.option("-f", "--follow", "keep_on", is_flag=True, help="Go on as things happen, until Ctrl-C.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only this kind; may be repeated.")
@click.option("--after", type=click.IntRange(0), help="Only events after the one of this number.")
def events(invocation: Invocation, keep_on: bool, kinds: tuple[str, ...], after: int | None) -> None:
    """Show what happened: loads with progress, swaps, evictions with reasons, refusals, drift.

    The daemon remembers the last 1000 since it started. With -f new ones follow; then a daemon that is restarted is
    waited for. With --json every line is a JSON object.
    """
    client = invocation.running_daemon()
    last = after or 0
    while True:
        try:
            for event in _read(client, last, follow=keep_on):
                last = int(event.get("id") or last)
                if not kinds or event.get("kind") in kinds:
                    _show(invocation, event)
        except DaemonUnavailable:
            if not keep_on:
                raise
        if not keep_on:
            return
        client = _back(invocation)
        last = 0  # numbers begin anew with each daemon


def _read(client: DaemonClient, after: int, *, follow: bool) -> Iterable[dict[str, Any]]:
    path = f"/admin/events?after={after}" + ("" if follow else "&follow=false")
    with client.watch(quote(path, safe="/?=&"), silence_s=_SILENCE_S) as reply:
        yield from server_events(reply.lines())


def _back(invocation: Invocation) -> DaemonClient:
    """The daemon that came after the one that ended.

    Raises:
        DaemonUnavailable: none came.
    """
    deadline = time.monotonic() + _COMES_BACK_S
    while (client := invocation.daemon_if_running()) is None:
        if time.monotonic() > deadline:
            raise DaemonUnavailable("the daemon ended and did not come back", hint="mlxctl daemon start")
        time.sleep(_LOOK_S)
    invocation.output.note("the daemon was restarted")
    return client


def _show(invocation: Invocation, event: Mapping[str, Any]) -> None:
    output = invocation.output
    if output.json:
        output.event(event)
        return
    when = time.strftime("%H:%M:%S", time.localtime(float(event.get("unix_s") or 0)))
    port, level = str(event.get("port") or ""), str(event.get("level") or "")
    loud = f"{level}: " if level in ("warning", "error") else ""
    model, text = str(event.get("model") or ""), " ".join(str(event.get("text") or "").split())
    subject = f"{model} " if model not in text else ""
    output.answer(f"{when}  {event.get('kind', '')!s:12} {port:5} {loud}{subject}{text}".rstrip() + "\n")
