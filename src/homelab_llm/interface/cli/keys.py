"""``mlxctl key``: API keys. They live in this home's file; a running daemon sees a change within a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from homelab_llm.gateway.keys import KeyFile

_HERE = "homelab_llm.interface.cli.keys"


@click.group(
    "key", cls=LazyGroup, verbs={name: f"{_HERE}:{name}" for name in ("create", "revoke")} | {"list": f"{_HERE}:list_"}
)
def key() -> None:
    """Make, list and revoke API keys, needed for everything beyond this machine."""


def _keys(invocation: Invocation) -> KeyFile:
    from homelab_llm.gateway.keys import KeyFile

    return KeyFile(invocation.home.keys)


@verb("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="Let it use /admin too.")
def create(invocation: Invocation, name: str, admin: bool) -> None:
    """Make a key and print it, once: only its hash is kept."""
    scopes = ("inference", "admin") if admin else ("inference",)
    token = _keys(invocation).create(name, scopes)
    invocation.output.result({"name": name, "scopes": list(scopes), "key": token}, token)
    invocation.output.note("this is the only time the key is shown")


@verb("list")
def list_(invocation: Invocation) -> None:
    """List the keys: names, what they may do, and the last four characters."""
    keys = _keys(invocation).list()
    rows = (
        (key.name, ", ".join(key.scopes), f"…{key.hint}", time.strftime("%Y-%m-%d", time.localtime(key.created_unix_s)))
        for key in keys
    )
    data = [
        {"name": key.name, "scopes": list(key.scopes), "hint": key.hint, "created_unix_s": key.created_unix_s}
        for key in keys
    ]
    invocation.output.table(("NAME", "MAY", "ENDS IN", "CREATED"), rows, {"keys": data})


@verb("revoke")
@click.argument("name")
def revoke(invocation: Invocation, name: str) -> None:
    """Take a key back; its next request is refused."""
    _keys(invocation).revoke(name)
    invocation.output.result({"revoked": name}, f"revoked {name}")
