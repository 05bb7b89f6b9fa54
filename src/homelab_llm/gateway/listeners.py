"""Listeners: from the addresses in the settings to bound sockets, or the reason why not.

``daemon.sock`` is always there. A default address that somebody holds is skipped with a warning; one that the
user named is an error. An address beyond loopback is refused while no key exists.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.errors import DaemonRunning, InvalidInput, ListenRefused, PortTaken

BACKLOG = 1024
CREATE_KEY = "mlxctl key create NAME"
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Listener:
    """Where requests come in. ``address`` is the actual one: a path, ``host:port`` or ``[host]:port``.

    ``control``: the daemon's own socket, full control. ``loopback``: only this machine can reach it.
    ``slot``: the slot whose port this is, by its number in the settings; 0 = the front address.
    """

    address: str
    host: str = ""
    port: int = 0
    control: bool = False
    loopback: bool = True
    slot: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on; port 0 = a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``127.0.0.1:1234``, ``[::1]:1234`` or ``localhost:0``.

        Raises:
            InvalidInput: anything else. (A name other than localhost could resolve to anything.)
        """
        match = _ADDRESS.fullmatch(text.strip())
        if not match or int(match["port"]) > 65535:
            raise _not_an_address(text)
        host = match["host"].strip("[]").lower()
        if host == "localhost":
            return cls("127.0.0.1", int(match["port"]))
        try:
            found = ipaddress.ip_address(host)
        except ValueError as error:
            raise _not_an_address(text) from error
        if (found.version == 6) != match["host"].startswith("["):
            raise _not_an_address(text)
        return cls(str(found), int(match["port"]))

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _not_an_address(text: str) -> InvalidInput:
    shown = text[:60].encode("unicode_escape").decode("ascii")
    return InvalidInput(
        f"not an address to listen on: {shown!r}",
        hint="write 127.0.0.1:1234, [::1]:1234 or 0.0.0.0:1234; port 0 takes a free one",
        field="listen",
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket and what it is."""

    socket: socket.socket
    listener: Listener


def bind_all(
    addresses: Iterable[str], daemon_sock: Path, *, named: bool, have_key: bool
) -> tuple[list[Bound], list[PortTaken]]:
    """Bind ``daemon_sock`` and the addresses; the second list are the defaults that were skipped.

    Args:
        named: the user chose the addresses, so a taken one is an error.

    Raises:
        InvalidInput: not an address.
        ListenRefused: beyond loopback, and no key exists.
        PortTaken: a named address is held by somebody; or the system does not have it.
        DaemonRunning: another daemon answers on ``daemon_sock``.
    """
    wanted = [Address.parse(text) for text in addresses]
    for address in wanted:
        if not address.loopback and not have_key:
            raise ListenRefused(
                f"{address} can be reached from other machines, and no API key exists",
                hint=CREATE_KEY,
                address=str(address),
            )
    bound: list[Bound] = []
    skipped: list[PortTaken] = []
    try:
        bound.append(bind_control(daemon_sock))
        for address in wanted:
            try:
                bound.append(bind_tcp(address))
            except PortTaken as error:
                if named:
                    raise
                skipped.append(error)
    except BaseException:
        close_all(bound)
        raise
    return bound, skipped


def bind_tcp(address: Address) -> Bound:
    """A listening TCP socket.

    Raises:
        PortTaken: somebody holds the address, or this machine does not have it.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _taken(address, error) from error
    actual = Address(address.host, sock.getsockname()[1])
    return Bound(sock, Listener(str(actual), actual.host, actual.port, loopback=actual.loopback))


def _taken(address: Address, error: OSError) -> PortTaken:
    if error.errno != errno.EADDRINUSE:
        return PortTaken(f"{address} cannot be listened on: {error.strerror}", address=str(address))
    pid, name = _holder(address.port)
    held = f"process {pid} ({name})" if pid else "another process"
    return PortTaken(
        f"{address} is held by {held}",
        hint="stop it, or choose another address with --listen",
        address=str(address),
        pid=pid,
    )


def _holder(port: int) -> tuple[int | None, str]:
    """Who listens on a port, if the system tells us."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for entry in psutil.net_connections("tcp"):
            if entry.status == psutil.CONN_LISTEN and entry.laddr and entry.laddr.port == port and entry.pid:
                return entry.pid, psutil.Process(entry.pid).name()
    return None, ""


def bind_control(path: Path) -> Bound:
    """The daemon's own socket, mode 0600 from its first moment; a dead one in its place is removed.

    Raises:
        DaemonRunning: somebody answers on it.
        InvalidInput: something that is not a socket has its name.
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return Bound(sock, Listener(str(path), control=True))


def _clear(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise InvalidInput(f"{path.name} is in the way of the daemon's socket", hint=f"remove {path}", field="socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass  # its queue is full, or it is slow: somebody is there
    raise DaemonRunning("another daemon answers on the socket of this home", hint="mlxctl daemon status")


def close_all(bound: Iterable[Bound]) -> None:
    """Close the sockets and remove the daemon's from the file system."""
    for entry in bound:
        entry.socket.close()
        if entry.listener.control:
            Path(entry.listener.address).unlink(missing_ok=True)
