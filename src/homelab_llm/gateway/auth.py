"""Auth: who may do what, decided from the listener, the raw path's route, and a key. Also Host and Origin.

    listener        without a key              with a key
    daemon.sock     everything                 everything
    loopback TCP    inference                  what its scopes say
    beyond          /healthz                   what its scopes say

A page in a browser can send requests to loopback, and by DNS rebinding can even make them same-origin. So every
TCP request needs a Host that is this machine, and an Origin, where there is one, that is local or allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from homelab_llm.core.errors import Forbidden, InvalidInput, Unauthorized
from homelab_llm.gateway.fields import shown
from homelab_llm.gateway.listeners import Listener
from homelab_llm.gateway.seams import KeyGrant, Keys

Access = Literal["open", "inference", "admin"]
Headers = Iterable[tuple[bytes, bytes]]

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::(?P<port>\d{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9_.:\[\]-]+)")
_REQUESTED = re.compile(rb"[A-Za-z0-9_, -]{0,2048}")
_CACHE = 1024
_FULL = KeyGrant("", frozenset({"inference", "admin"}))
_ANONYMOUS = KeyGrant("", frozenset({"inference"}))
_NOBODY = KeyGrant("", frozenset())


_READ = frozenset(
    {
        b"host",
        b"authorization",
        b"x-admin-key",
        b"origin",
        b"access-control-request-method",
        b"access-control-request-headers",
        b"x-priority",
    }
)


@dataclass(slots=True)
class Presented:
    """What a request's headers say about who sends it; read in one pass."""

    hosts: list[bytes]
    origins: list[bytes]
    tokens: list[bytes]
    fetch_method: bytes = b""
    fetch_headers: bytes = b""
    priority: bytes = b""

    @classmethod
    def of(cls, headers: Headers) -> Presented:
        """Collect them; a header that comes twice is seen twice."""
        told = cls([], [], [])
        for name, value in headers:
            if name in _READ:
                told._take(name, value)
        return told

    def _take(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self.hosts.append(value)
        elif name == b"authorization":
            scheme, _, token = value.partition(b" ")
            self.tokens.append(token.strip() if scheme.lower() == b"bearer" else b"")
        elif name == b"x-admin-key":
            self.tokens.append(value.strip())
        elif name == b"origin":
            self.origins.append(value)
        elif name == b"access-control-request-method":
            self.fetch_method = value
        elif name == b"x-priority":
            self.priority = value.strip().lower()
        else:
            self.fetch_headers = value


def host_name(value: str) -> str:
    """The name in a Host header: lower case, no port, no trailing dot, no brackets.

    Raises:
        InvalidInput: not a host.
    """
    match = _HOST.fullmatch(value)
    if not match:
        raise InvalidInput(f"not a Host header: {shown(value)!r}", field="Host")
    return match["name"].lower().strip("[]").removesuffix(".")


def is_loopback(name: str) -> bool:
    """Whether a host name can only mean this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Gate:
    """Decides about requests. Pure apart from ``keys``; remembers what it found out about host names."""

    def __init__(self, keys: Keys, *, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = ()) -> None:
        self._keys = keys
        self._hosts = frozenset(host.lower().removesuffix(".") for host in allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)
        self._known: dict[tuple[bytes, str], bool] = {}

    def check_host(self, told: Presented, listener: Listener) -> None:
        """Refuse a request that was not meant for this machine.

        Raises:
            InvalidInput: no Host, several, or not one.
            Forbidden: another machine's name.
        """
        if listener.control:
            return  # a browser cannot reach a Unix socket
        if len(told.hosts) != 1:
            raise InvalidInput("a request needs one Host header", field="Host")
        value = told.hosts[0]
        key = (value, listener.host)
        allowed = self._known.get(key)
        if allowed is None:
            allowed = self._ours(host_name(value.decode("latin-1")), listener)
            if len(self._known) < _CACHE:
                self._known[key] = allowed
        if not allowed:
            name = shown(value.decode("latin-1"))
            raise Forbidden(
                f"this server does not answer for the host {name!r}",
                hint="add the name to the setting server.allowed_hosts",
                field="Host",
            )

    def _ours(self, name: str, listener: Listener) -> bool:
        if is_loopback(name) or name in self._hosts or name == listener.host:
            return True
        if listener.loopback:
            return False
        try:
            ipaddress.ip_address(name)  # rebinding needs a name; an address in the Host header is where it was sent
        except ValueError:
            return False
        return True

    def check_origin(self, told: Presented, listener: Listener) -> bytes:
        """The Origin to allow in the reply; empty when the request has none.

        Raises:
            Forbidden: a page of another site sent it.
        """
        if not told.origins or listener.control:
            return b""
        origin = told.origins[0]
        text = origin.decode("latin-1").lower()
        match = _ORIGIN.fullmatch(text)
        if len(told.origins) == 1 and (text.rstrip("/") in self._origins or (match and self._is_local(match, told))):
            return origin
        raise Forbidden(
            f"pages from {shown(text)!r} may not use this server",
            hint="add the origin to the setting server.allowed_origins",
            field="Origin",
        )

    @staticmethod
    def _is_local(match: re.Match[str], told: Presented) -> bool:
        try:
            if is_loopback(host_name(match["host"])):
                return True
        except InvalidInput:
            return False
        return bool(told.hosts) and match["host"] == told.hosts[0].decode("latin-1").lower()  # our own page

    def admit(self, told: Presented, listener: Listener, access: Access) -> KeyGrant:
        """Who sends the request; the grant covers ``access``.

        On loopback an unknown key is no reason to refuse what needs none: every OpenAI client sends one.

        Raises:
            Unauthorized: a key is needed, and there is none, a wrong one, or two that differ.
            Forbidden: the key may not do this.
        """
        if listener.control:
            return _FULL
        basis = _ANONYMOUS if listener.loopback else _NOBODY
        grant = self._grant(told)
        if access == "open" or access in basis.scopes:
            return grant or basis
        if grant is None:
            raise Unauthorized(
                "this needs a key" if not told.tokens else "this key is not known",
                hint="mlxctl key create NAME" + (" --admin" if access == "admin" else ""),
            )
        if access not in grant.scopes:
            raise Forbidden(f"the key {grant.name!r} has no {access} scope", hint="mlxctl key create NAME --admin")
        return grant

    def _grant(self, told: Presented) -> KeyGrant | None:
        if not told.tokens:
            return None
        token = told.tokens[0]
        if any(not hmac.compare_digest(token, other) for other in told.tokens[1:]) or not token.isascii():
            return None
        return self._keys.check(token.decode("ascii")) if token else None


def is_batch(told: Presented, grant: KeyGrant) -> bool:
    """Whether others go first: the key says so, or the request itself, which can only lower itself.

    Raises:
        InvalidInput: the header is neither of the two words.
    """
    if told.priority not in (b"", b"batch", b"interactive"):
        raise InvalidInput("the header X-Priority takes batch or interactive", field="X-Priority")
    return told.priority == b"batch" or grant.priority == "batch"


def cors_headers(origin: bytes) -> list[tuple[bytes, bytes]]:
    """Reply headers that let the page at ``origin`` read the reply."""
    if not origin:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"origin"),
    ]


def preflight_headers(told: Presented) -> list[tuple[bytes, bytes]]:
    """What a browser asks before it sends a request.

    Raises:
        InvalidInput: the header names asked for are none.
    """
    if not _REQUESTED.fullmatch(told.fetch_headers):
        raise InvalidInput("not a list of header names", field="Access-Control-Request-Headers")
    return [
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", told.fetch_headers or b"authorization, content-type"),
        (b"access-control-allow-private-network", b"true"),
        (b"access-control-max-age", b"600"),
    ]
