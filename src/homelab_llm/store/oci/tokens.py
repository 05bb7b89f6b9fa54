"""Tokens: what is shown to a registry, got from whom it says, sent to nobody else. Safe in several threads.

A registry answers 401 and names a realm. Credentials go there only when the realm is the registry itself, one of its
own hosts (``hosts.TOKEN_HOSTS``) or listed by the operator; anything else is refused and nothing is sent. Without
credentials any public https realm may be asked, as its answer is only ever shown to the registry.
Sources: distribution, token and oauth2 specifications.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from homelab_llm.core.errors import SourceDenied, SourceUnavailable
from homelab_llm.core.http import HttpClient, Reply
from homelab_llm.core.urls import Origin, origin_of
from homelab_llm.store.oci.challenges import Challenge, parse_challenges
from homelab_llm.store.oci.hosts import RegistryHost
from homelab_llm.store.oci.replies import refusal

if TYPE_CHECKING:
    from homelab_llm.store.oci.credentials import Credentials

_CLIENT = "homelab-llm"
_MAX_TOKEN_CHARACTERS = 32_768
_SHORTEST_S, _LONGEST_S, _EARLY_S = 60.0, 3600.0, 10.0


@dataclass(frozen=True, slots=True)
class _Shown:
    """An Authorization header and until when it is good."""

    header: str = field(repr=False)
    until_s: float


class Tokens:
    """What one registry has to be shown, per scope.

    Args:
        credentials: asked at most once, when the registry wants any.
    """

    def __init__(
        self,
        http: HttpClient,
        host: RegistryHost,
        credentials: Callable[[], Credentials | None],
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http, self._host, self._ask, self._monotonic_s = http, host, credentials, monotonic_s
        self._credentials: Credentials | None = None
        self._asked = False
        self._shown: dict[str, _Shown] = {}
        self._lock = threading.Lock()

    @property
    def credentials(self) -> Credentials | None:
        """Those that the registry wanted to see; None while it wanted none."""
        return self._credentials

    def header(self, scope: str) -> str:
        """The Authorization header for ``scope``; empty while nothing is known to be needed, or it has run out."""
        with self._lock:
            found = self._shown.get(scope)
            return found.header if found and found.until_s > self._monotonic_s() else ""

    def answer(self, reply: Reply, own: Origin, scope: str, seen: str) -> bool:
        """Take up what a 401 asks for; whether there is something new to show.

        Args:
            own: where the registry answers.
            scope: what the request needs, space-separated.
            seen: the header that was refused.

        Raises:
            SourceDenied: the realm may not have our credentials, or does not take them.
            SourceUnavailable: the realm does not answer.
        """
        with self._lock:
            known = self._shown.get(scope)
            if known and known.header != seen and known.until_s > self._monotonic_s():
                return True  # another thread was faster
            offered = {c.scheme: c for c in reversed(parse_challenges(reply.headers.get("www-authenticate", "")))}
            if bearer := offered.get("bearer"):
                fresh = self._bearer(bearer, own, scope)
            elif "basic" in offered and (credentials := self._own()) and credentials.password:
                fresh = _Shown(basic(credentials), float("inf"))
            else:
                return False
            self._shown[scope] = fresh
            return fresh.header != seen

    def _own(self) -> Credentials | None:
        if not self._asked:
            self._credentials, self._asked = self._ask(), True
        return self._credentials

    def _bearer(self, challenge: Challenge, own: Origin, scope: str) -> _Shown:
        realm = challenge.parameters.get("realm", "")
        origin = origin_of(realm)
        credentials = self._own()
        if credentials and not self._host.may_have_credentials(own, origin):
            raise SourceDenied(
                f"{self._host.name} wants its credentials sent to {origin}, which is not its own; nothing was sent",
                hint=f"if {origin.host} belongs to it, add {origin} to store.registries",
                host=self._host.name,
                realm=str(origin),
            )
        if origin.scheme != "https" and origin != own and origin not in self._host.listed:
            raise SourceDenied(
                f"{self._host.name} gives out tokens at {origin}, without encryption; nothing was sent",
                host=self._host.name,
                realm=str(origin),
            )
        service = challenge.parameters.get("service", "")
        scopes = list(dict.fromkeys([*scope.split(), *challenge.parameters.get("scope", "").split()[:8]]))
        return self._token(self._fetch(realm, service, scopes, credentials))

    def _fetch(self, realm: str, service: str, scopes: list[str], credentials: Credentials | None) -> Reply:
        if credentials and credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": _CLIENT,
                "scope": " ".join(scopes),
                "refresh_token": credentials.identity_token,
            }
            headers = {"content-type": "application/x-www-form-urlencoded"}
            return self._http.exchange("POST", realm, headers=headers, content=urlencode(form).encode())
        fields = [("service", service)] * bool(service) + [("scope", scope) for scope in scopes]
        headers = {}
        if credentials:
            fields.append(("account", credentials.username))
            headers["authorization"] = basic(credentials)
        parts = urlsplit(realm)
        query = "&".join(filter(None, (parts.query, urlencode(fields))))
        return self._http.exchange("GET", urlunsplit((*parts[:3], query, "")), headers=headers)

    def _token(self, reply: Reply) -> _Shown:
        if reply.status != 200:
            raise refusal(reply, self._host.name, "a token for this account")
        try:
            document: dict[str, Any] = json.loads(reply.content)
            token = document.get("token") or document.get("access_token")
            lasts_s = document.get("expires_in", 0)
        except (ValueError, AttributeError, RecursionError) as error:
            raise SourceUnavailable(f"{self._host.name} gave out a token that cannot be read") from error
        if not isinstance(token, str) or not _is_plain(token):
            raise SourceUnavailable(f"{self._host.name} gave out a token that cannot be read")
        lasts_s = lasts_s if isinstance(lasts_s, int | float) and lasts_s > 0 else _SHORTEST_S
        kept_s = min(float(lasts_s), _LONGEST_S)
        return _Shown(f"Bearer {token}", self._monotonic_s() + kept_s - min(_EARLY_S, kept_s / 4))


def _is_plain(token: str) -> bool:
    return 0 < len(token) <= _MAX_TOKEN_CHARACTERS and token.isascii() and token.isprintable() and " " not in token


def basic(credentials: Credentials) -> str:
    """The Authorization header of name and password."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
