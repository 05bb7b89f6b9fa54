"""The one policy for addresses outside: which URL may be asked, and which machine that really is.

A host name is resolved once, every address it has is checked, and the connection goes to a checked address
(``core/http.py``), so that a name which answers differently a moment later changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from homelab_llm.core.errors import SourceDenied, SourceUnavailable

Resolver = Callable[[str, int], list[str]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARACTERS = 8_192
_PORTS = {"http": 80, "https": 443}
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT; Tailscale's machines live there
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what credentials are bound to."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _PORTS[self.scheme] else f":{self.port}")


def origin_of(url: str) -> Origin:
    """The origin of an http or https URL.

    Raises:
        SourceDenied: another scheme, credentials inside the URL, or not a URL at all.
    """
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        raise SourceDenied("not a web address: only plain ASCII characters are allowed in one")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceDenied("not a web address") from error
    if parts.scheme not in _PORTS:
        raise SourceDenied(f"only http and https addresses are fetched, not {parts.scheme[:20] or 'this'}")
    if "@" in parts.netloc:
        raise SourceDenied("a web address may not contain a user name or password", hint="use a token instead")
    host = (parts.hostname or "").rstrip(".")
    if not host or "%" in host or len(host) > 253:
        raise SourceDenied("the web address names no host")
    return Origin(parts.scheme, host, _PORTS[parts.scheme] if port is None else port)


def system_resolver(host: str, port: int) -> list[str]:
    """The addresses of ``host`` as the system resolves it; blocks.

    Raises:
        SourceUnavailable: it has none, or the resolver cannot be reached.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceUnavailable(
            f"the name {host} cannot be resolved", hint="check the network connection and the name", host=host
        ) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """Which machines may be asked.

    ``allow_private`` admits loopback and private networks everywhere (``store.allow_private_hosts``).
    ``trusted`` holds origins that the operator named himself (a hub, a package index): those may be private and
    plain http. Link-local addresses, where clouds keep their credentials, are never admitted.
    """

    allow_private: bool = False
    trusted: frozenset[Origin] = field(default_factory=frozenset)

    def with_trusted(self, origins: Iterable[Origin]) -> UrlPolicy:
        """The same policy with more trusted origins."""
        return UrlPolicy(self.allow_private, self.trusted | frozenset(origins))

    def addresses(self, origin: Origin, resolve: Resolver) -> list[str]:
        """The checked addresses of ``origin``, in the resolver's order. One bad address refuses them all.

        Raises:
            SourceDenied: the policy forbids it. SourceUnavailable: the name does not resolve.
        """
        private_allowed = self.allow_private or origin in self.trusted
        found = resolve(origin.host, origin.port)
        if not found:
            raise SourceUnavailable(f"the name {origin.host} has no address", host=origin.host)
        for text in found:
            address = parse_address(text)
            public = is_public(address)
            if not public and not (private_allowed and is_private(address)):
                raise SourceDenied(
                    f"{origin.host} is at {text}, which is not a public address",
                    hint="set store.allow_private_hosts to true if this machine may be asked",
                    host=origin.host,
                )
            if public and origin.scheme == "http":
                raise SourceDenied(f"{origin.host} is asked without encryption; use https", host=origin.host)
        return found

    def check_literal(self, origin: Origin) -> None:
        """The part of the policy that can be applied when a proxy resolves names: written-out addresses.

        Raises:
            SourceDenied: a private address that is not allowed, or ``localhost``.
        """
        if origin.host == "localhost" or origin.host.endswith(".localhost"):
            self.addresses(origin, lambda _host, _port: ["127.0.0.1"])
            return
        try:
            found = str(ipaddress.ip_address(origin.host))
        except ValueError:
            try:
                found = socket.inet_ntoa(socket.inet_aton(origin.host))  # 2130706433, 0x7f.1: a proxy may take them
            except OSError:
                return
        self.addresses(origin, lambda _host, _port: [found])


def parse_address(text: str) -> Address:
    """An address as the resolver wrote it, with the IPv4 address inside an IPv6 one taken out."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None:
            return embedded
    return address


def is_public(address: Address) -> bool:
    """Reachable from anywhere, as far as the registries of special addresses say."""
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_private(address: Address) -> bool:
    """Loopback or a private network; not link-local, multicast, reserved or unspecified."""
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    shared = isinstance(address, ipaddress.IPv4Address) and address in _SHARED
    return address.is_loopback or shared or (address.is_private and not address.is_reserved)
