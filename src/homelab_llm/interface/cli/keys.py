"""``mlxctl key``: API keys. They live in the system database; a running daemon sees a change within a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup

if TYPE_CHECKING:
    from homelab_llm.data.keys import KeyRing

_HERE = "homelab_llm.interface.cli.keys"


@click.group(
    "key", cls=LazyGroup, verbs={name: f"{_HERE}:{name}" for name in ("create", "revoke")} | {"list": f"{_HERE}:list_"}
)
def key() -> None:
    """Make, list and revoke API keys, needed for everything beyond this machine."""


@contextmanager
def _keys(invocation: Invocation) -> Iterator[KeyRing]:
    from homelab_llm.data.keys import KeyRing
    from homelab_llm.interface.cli.db import opened

    with opened(invocation) as database:
        keys = KeyRing(database)
        keys.import_file(invocation.home.keys)
        yield keys


@verb("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="Let it use /admin too.")
@click.option("--batch", is_flag=True, help="Its requests let those of other keys go first.")
def create(invocation: Invocation, name: str, admin: bool, batch: bool) -> None:
    """Make a key and print it, once: only its hash is kept."""
    scopes = ("inference", "admin") if admin else ("inference",)
    priority = "batch" if batch else "interactive"
    with _keys(invocation) as keys:
        token = keys.create(name, scopes, priority="batch" if batch else "interactive")
    invocation.output.result({"name": name, "scopes": list(scopes), "priority": priority, "key": token}, token)
    invocation.output.note("this is the only time the key is shown")


@verb("list")
def list_(invocation: Invocation) -> None:
    """List the keys: names, what they may do, and the last four characters."""
    with _keys(invocation) as ring:
        keys = ring.list()
    rows = (
        (
            key.name,
            ", ".join(key.scopes),
            key.priority,
            f"…{key.hint}",
            time.strftime("%Y-%m-%d", time.localtime(key.created_unix_s)),
        )
        for key in keys
    )
    data = [
        {
            "name": key.name,
            "scopes": list(key.scopes),
            "priority": key.priority,
            "hint": key.hint,
            "created_unix_s": key.created_unix_s,
        }
        for key in keys
    ]
    invocation.output.table(("NAME", "MAY", "PRIORITY", "ENDS IN", "CREATED"), rows, {"keys": data})


@verb("revoke")
@click.argument("name")
def revoke(invocation: Invocation, name: str) -> None:
    """Take a key back; its next request is refused."""
    with _keys(invocation) as keys:
        keys.revoke(name)
    invocation.output.result({"revoked": name}, f"revoked {name}")
