"""Doors: the ways to a daemon. The socket of a home on this machine, or an address with a key on another one.

Standard library only; TLS is imported for an https address only.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from homelab_llm.core import errors

CONNECT_TIMEOUT_S = 5.0
_MAX_PATH_BYTES = 104


class Door(Protocol):
    """Where a daemon is reached."""

    host: str
    headers: Mapping[str, str]
    silent_hint: str

    def connect(self) -> socket.socket:
        """A connection of its own, ready for a request.

        Raises:
            DaemonUnavailable: nobody answers there.
        """
        ...


class SocketDoor:
    """The Unix socket of a home; who may open it may do everything."""

    host = "localhost"
    headers: Mapping[str, str] = {}
    silent_hint = "mlxctl logs daemon"

    def __init__(self, path: Path) -> None:
        self._path = path

    def connect(self) -> socket.socket:
        if len(bytes(self._path)) >= _MAX_PATH_BYTES:
            raise errors.DaemonUnavailable(f"the socket path is too long for this system: {self._path}")
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(CONNECT_TIMEOUT_S)
        try:
            link.connect(str(self._path))
        except OSError as error:
            link.close()
            raise errors.DaemonUnavailable(
                "no daemon answers on the socket of this home", hint="mlxctl daemon start", socket=str(self._path)
            ) from error
        return link


class WebDoor:
    """The front address of a daemon elsewhere, with a key.

    Args:
        key: an API key; for ``/admin`` one with that scope. Empty = none is sent.

    Raises:
        InvalidInput: not ``http://HOST[:PORT]`` or ``https://HOST[:PORT]``.
    """

    def __init__(self, url: str, key: str = "") -> None:
        parts, port = _parsed(url)
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise _no_address(url)
        if not key.isascii() or not key.isprintable():
            raise errors.InvalidInput("the key holds characters that no key has", field="key")
        self.secure = parts.scheme == "https"
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.host = parts.netloc
        self.headers: Mapping[str, str] = {"Authorization": f"Bearer {key}"} if key else {}
        self.silent_hint = f"mlxctl logs daemon on {parts.hostname}"
        self._name = parts.hostname
        self._port = port or (443 if self.secure else 80)

    @property
    def in_the_clear(self) -> bool:
        """Whether a key would cross a network unencrypted."""
        loopback = self._name in ("localhost", "::1") or self._name.startswith("127.")
        return bool(self.headers) and not self.secure and not loopback

    def connect(self) -> socket.socket:
        try:
            link = socket.create_connection((self._name, self._port), CONNECT_TIMEOUT_S)
            return self._encrypted(link) if self.secure else link
        except OSError as error:
            raise errors.DaemonUnavailable(
                f"no daemon answers at {self.url}: {error.strerror or error}",
                hint=f"start it there with: mlxserve --listen ADDRESS:{self._port}",
                url=self.url,
            ) from error

    def _encrypted(self, link: socket.socket) -> socket.socket:
        import ssl

        try:
            return ssl.create_default_context().wrap_socket(link, server_hostname=self._name)
        except BaseException:
            link.close()
            raise


def _parsed(url: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError as error:
        raise _no_address(url) from error


def _no_address(url: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        f"not the address of a daemon: {url[:80]!r}", hint="write http://HOST:PORT or https://HOST", field="url"
    )
