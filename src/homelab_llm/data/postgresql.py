"""Connections to PostgreSQL, made by libpq from the URL as it was given."""

from __future__ import annotations

import os
import socket
from typing import Any

from homelab_llm.core.errors import DatabaseUnavailable
from homelab_llm.data.address import Address

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise DatabaseUnavailable(
        "PostgreSQL needs the driver psycopg", hint="pip install 'homelab-llm[postgres]'"
    ) from error

CONNECT_S = 5
# A machine that vanished gives up its locks within half a minute; without it they would stay for hours
_ALIVE: dict[str, Any] = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

__all__ = ["connect", "psycopg"]


def connect(address: Address, *, durable: bool = True, busy_s: float = 60.0) -> psycopg.Connection[Any]:
    """A new connection.

    Raises:
        psycopg.Error: it cannot be made; the message may hold the password.
    """
    server = [f"-clock_timeout={busy_s * 1000:.0f}"]
    server += [f"-csearch_path={address.schema}"] if address.schema else []
    server += [f"-ctcp_{name}={value}" for name, value in _ALIVE.items()]
    server += [] if durable else ["-csynchronous_commit=off"]
    given = str(conninfo_to_dict(address.url).get("options") or "")
    return psycopg.connect(
        address.url,
        options=" ".join([given, *server]).strip(),
        connect_timeout=CONNECT_S,
        **_ALIVE,
        application_name=f"homelab-llm {socket.gethostname()[:30]} pid {os.getpid()}",
    )
