"""Listeners: from the addresses in the settings to bound sockets, or the reason why not.

``daemon.sock`` is always there. A default address or a slot's port that somebody holds is skipped with a warning
(``ports.py`` tries it again); an address that the user named is an error. One beyond loopback is refused while no
key exists. A socket that an earlier daemon of this home passed on is used in place of a new one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
from collections.abc import Collection, Iterable, Mapping
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
class Wanted:
    """An address to serve on, and the slot whose port it is (0 = a front address)."""

    address: Address
    slot: int = 0

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket and what it is; ``wanted`` is what was asked for, ``control`` for the daemon's own."""

    socket: socket.socket
    listener: Listener
    wanted: str


@dataclass(frozen=True, slots=True)
class Held:
    """An address that could not be taken, and why."""

    wanted: Wanted
    error: PortTaken


class Inherited:
    """Listening sockets that an earlier daemon of this home passed on, by what was asked for when they were bound."""

    def __init__(self, sockets: Iterable[tuple[str, socket.socket]] = ()) -> None:
        self._sockets = list(sockets)

    def take(self, wanted: str) -> socket.socket | None:
        """The socket for ``wanted``; None when none was passed on."""
        for entry in self._sockets:
            if entry[0] == wanted:
                self._sockets.remove(entry)
                return entry[1]
        return None

    def close(self) -> None:
        """Close those that nobody took: their addresses are not wanted any more."""
        for _, sock in self._sockets:
            sock.close()
        self._sockets.clear()


CONTROL = "control"


def bind_all(
    wanted: Iterable[Wanted], daemon_sock: Path, *, named: bool, have_key: bool, inherited: Inherited | None = None
) -> tuple[list[Bound], list[Held]]:
    """Bind ``daemon_sock`` and the addresses; the second list are those that were skipped.

    Args:
        named: the user chose the front addresses, so a taken one is an error. A slot's port never is.

    Raises:
        ListenRefused: beyond loopback, and no key exists.
        PortTaken: a named address is held by somebody; or the system does not have it.
        DaemonRunning: another daemon answers on ``daemon_sock``.
    """
    wanted = list(wanted)
    passed_on = inherited or Inherited()
    for one in wanted:
        if not one.address.loopback and not have_key:
            raise ListenRefused(
                f"{one} can be reached from other machines, and no API key exists", hint=CREATE_KEY, address=str(one)
            )
    bound: list[Bound] = []
    refused: list[tuple[Wanted, OSError]] = []
    try:
        bound.append(bind_control(daemon_sock, passed_on.take(CONTROL)))
        for one in wanted:
            try:
                bound.append(bind_tcp(one, passed_on.take(str(one))))
            except OSError as error:
                if named and not one.slot:
                    raise _named(one, error) from error
                refused.append((one, error))
    except BaseException:
        close_all(bound)
        raise
    passed_on.close()
    return bound, held(refused)


def bind_tcp(wanted: Wanted, inherited: socket.socket | None = None) -> Bound:
    """A listening TCP socket.

    Raises:
        OSError: somebody holds the address, or this machine does not have it.
    """
    host = wanted.address.host
    sock = inherited or _listening(host, wanted.address.port)
    actual = Address(host, sock.getsockname()[1])
    listener = Listener(str(actual), actual.host, actual.port, loopback=actual.loopback, slot=wanted.slot)
    return Bound(sock, listener, str(wanted))


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def held(refused: Collection[tuple[Wanted, OSError]]) -> list[Held]:
    """Why each address could not be taken; asks the system who holds them."""
    ports = {one.address.port for one, error in refused if error.errno == errno.EADDRINUSE}
    known = holders(ports) if ports else {}
    return [Held(one, _taken(one, error, known)) for one, error in refused]


def _named(wanted: Wanted, error: OSError) -> PortTaken:
    return held([(wanted, error)])[0].error


def _taken(wanted: Wanted, error: OSError, known: Mapping[int, tuple[int, str]]) -> PortTaken:
    if error.errno != errno.EADDRINUSE:
        return PortTaken(f"{wanted} cannot be listened on: {error.strerror}", address=str(wanted), pid=None, name="")
    pid, name = known.get(wanted.address.port, (None, ""))
    by = f"process {pid} ({name})" if pid else "another process"
    return PortTaken(
        f"{wanted} is held by {by}",
        hint=f"stop it; slot {wanted.slot} is taken as soon as it is free"
        if wanted.slot
        else "stop it, or choose another address with --listen",
        address=str(wanted),
        pid=pid,
        name=name,
    )


def holders(ports: Collection[int]) -> dict[int, tuple[int, str]]:
    """Pid and program of who listens on each port, as far as the system tells us. Takes some milliseconds."""
    import psutil

    found: dict[int, tuple[int, str]] = {}
    with contextlib.suppress(psutil.Error, OSError):
        for entry in psutil.net_connections("tcp"):
            if entry.status == psutil.CONN_LISTEN and entry.laddr and entry.laddr.port in ports and entry.pid:
                found[entry.laddr.port] = entry.pid, psutil.Process(entry.pid).name()
    return found


def bind_control(path: Path, inherited: socket.socket | None = None) -> Bound:
    """The daemon's own socket, mode 0600 from its first moment; a dead one in its place is removed.

    Raises:
        DaemonRunning: somebody answers on it.
        InvalidInput: something that is not a socket has its name.
    """
    listener = Listener(str(path), control=True)
    if inherited is not None:
        return Bound(inherited, listener, CONTROL)
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
    return Bound(sock, listener, CONTROL)


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


def close_all(bound: Iterable[Bound], *, remove: bool = True) -> None:
    """Close the sockets and remove the daemon's from the file system, unless another daemon serves on it now."""
    for entry in bound:
        entry.socket.close()
        if entry.listener.control and remove:
            Path(entry.listener.address).unlink(missing_ok=True)
