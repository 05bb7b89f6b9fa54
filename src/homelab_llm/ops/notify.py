"""``sd_notify``: tell a service manager how we are (systemd's datagram protocol, ``man sd_notify``)."""

from __future__ import annotations

import socket
from collections.abc import Mapping


def notify(environ: Mapping[str, str], state: str) -> bool:
    """Send ``READY=1``, ``STOPPING=1``, ``STATUS=…``; False where no manager listens. Never raises."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        return False
    return True
