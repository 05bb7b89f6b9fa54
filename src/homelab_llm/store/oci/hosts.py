"""Hosts: which machine a registry's name means, and which other machines it may send us to. Pure.

A registry is hostile until it has proved what it is: it names the place that gives out tokens, the place uploads go
to and the place blobs come from. Credentials go to the registry itself and to the few places listed here.
Source: OCI distribution-spec; docker's names for its own registry.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.urls import Origin

_HOST = re.compile(r"(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?")
DOCKER_HUB = "docker.io"
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_DOCKER_HUB_ORIGIN = Origin("https", "registry-1.docker.io", 443)

TOKEN_HOSTS: dict[str, frozenset[str]] = {
    "registry-1.docker.io": frozenset({"auth.docker.io"}),
    "registry.gitlab.com": frozenset({"gitlab.com"}),
    "registry.ollama.ai": frozenset({"ollama.com", "ollama.ai"}),
    "registry.digitalocean.com": frozenset({"api.digitalocean.com"}),
    "registry.redhat.io": frozenset({"sso.redhat.com"}),
}
"""Registries whose tokens come from another host that is theirs as well; all others give them out themselves."""


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """One registry. ``name`` is what its credentials are filed under; ``origins`` where it may answer, best first.

    ``listed`` are the other origins that the operator named in ``store.registries``.
    """

    name: str
    origins: tuple[Origin, ...]
    listed: frozenset[Origin] = frozenset()

    @property
    def trusted(self) -> bool:
        """Whether it may be at a private address or without TLS: it is on this machine, or listed."""
        return is_loopback(self.origins[0].host) or any(origin in self.listed for origin in self.origins)

    def repository(self, name: str) -> str:
        """The repository as this registry calls it: Docker Hub keeps names without a slash under ``library/``."""
        return f"library/{name}" if self.name == DOCKER_HUB and "/" not in name else name

    def may_have_credentials(self, own: Origin, other: Origin) -> bool:
        """Whether credentials for this registry, which answers at ``own``, may be sent to ``other``."""
        if other == own or other in self.listed:
            return True
        if (own.scheme, other.scheme) != ("https", "https"):
            return False
        return other.host == own.host or other.host in TOKEN_HOSTS.get(own.host, ())


def registry_host(text: str, registries: Iterable[str] = ()) -> RegistryHost:
    """The registry that ``text`` (``host[:port]``) means.

    Args:
        registries: those that may be private or without TLS: ``host[:port]`` (with TLS if it answers so, else
            without), or with ``https://`` or ``http://`` in front, which settles it.

    Raises:
        InvalidInput: not a host, here or among ``registries``.
    """
    host, port = _split(text)
    if port is None and host in _DOCKER_HUB_NAMES:
        return RegistryHost(DOCKER_HUB, (_DOCKER_HUB_ORIGIN,))
    listed = {place: origins for entry in registries for place, origins in [_listed(entry)]}
    own = listed.get((host, port))
    if own is None:
        own = _origins(host, port, ("http",) if is_loopback(host) and port != 443 else ("https",))
    return RegistryHost(_shown(host, port), own, frozenset(origin for origins in listed.values() for origin in origins))


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine by definition."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listed(entry: str) -> tuple[tuple[str, int | None], tuple[Origin, ...]]:
    scheme, mark, rest = entry.strip().rstrip("/").partition("://")
    if not mark:
        host, port = _split(entry.strip())
        # on this machine nobody listens in; elsewhere TLS is tried first
        return (host, port), _origins(host, port, ("http", "https") if is_loopback(host) else ("https", "http"))
    if scheme not in ("http", "https"):
        raise InvalidInput(f"not a registry: {_printable(entry)!r}", hint="write host[:port]", field="store.registries")
    host, port = _split(rest)
    return (host, port), _origins(host, port, (scheme,))


def _origins(host: str, port: int | None, schemes: Iterable[str]) -> tuple[Origin, ...]:
    return tuple(Origin(scheme, host, port or {"https": 443, "http": 80}[scheme]) for scheme in schemes)


def _split(text: str) -> tuple[str, int | None]:
    """Host (an IPv6 address without its brackets) and port.

    Raises:
        InvalidInput: anything else.
    """
    found = _HOST.fullmatch(text.lower()) if text.isascii() else None
    port = int(found["port"]) if found and found["port"] else None
    if found is None or ".." in text or (port is not None and not 0 < port < 65536):
        raise InvalidInput(
            f"not the host of a registry: {_printable(text)!r}",
            hint="a registry is host or host:port, like ghcr.io or localhost:5000",
            field="registry",
        )
    host = found["host"]
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), port
        except ValueError as error:
            raise InvalidInput("not the host of a registry: no IPv6 address", field="registry") from error
    return host, port


def _shown(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def _printable(text: str) -> str:
    return text[:60].encode("unicode_escape").decode("ascii")
