"""The one HTTP client for everything outside: registries, package files, web addresses. Synchronous.

``stream`` reads files and judges the status; ``exchange`` is one request of any method, for protocols that read
statuses themselves. It connects to the address that ``core/urls.py`` checked (the name stays in the Host header and
in TLS), follows redirects itself and checks each hop, sends credentials only to the origin they were given for, never
asks for compressed bodies, bounds bytes and time, and retries what a retry can mend.

Where a proxy is set (``HTTPS_PROXY`` and its kin) names are resolved by the proxy, and keeping it from private
addresses is the proxy's task; addresses written out in a URL are still checked here.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from homelab_llm import __version__
from homelab_llm.core.bodies import Body, Patience, body_of, number, shown
from homelab_llm.core.connections import FAILURES, Answer, ConnectError, Connections
from homelab_llm.core.errors import HomelabError, SourceDenied, SourceNotFound, SourceUnavailable
from homelab_llm.core.urls import Origin, Resolver, UrlPolicy, origin_of, system_resolver

__all__ = ["MAX_REDIRECTS", "MAX_RETRY_AFTER_S", "Body", "HttpClient", "HttpLimits", "Reply"]

MAX_REDIRECTS = 8
_AGENT = f"homelab-llm/{__version__}"
MAX_RETRY_AFTER_S = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds in seconds and counts; the defaults suit a home connection.

    ``stall_s``: a body must bring ``stall_bytes`` within each such time, or it is given up as stalled.
    ``backoff_s``: the first pause between attempts; it doubles, with jitter.
    """

    connect_s: float = 10.0
    read_s: float = 30.0
    whole_s: float = 60.0
    stall_s: float = 60.0
    stall_bytes: int = 16_384
    attempts: int = 4
    backoff_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply, whatever its status; names of headers are lower-case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(slots=True)
class HttpClient:
    """Close it after use; it is a context manager. Several threads may use it at once.

    Args:
        policy: which machines may be asked.
        environ: where proxy variables are looked up; empty means no proxy.
        resolve, sleep, monotonic_s: the outside world, for tests.
    """

    policy: UrlPolicy = field(default_factory=UrlPolicy)
    limits: HttpLimits = field(default_factory=HttpLimits)
    environ: Mapping[str, str] = field(default_factory=dict)
    resolve: Resolver = system_resolver
    sleep: Callable[[float], None] = time.sleep
    monotonic_s: Callable[[], float] = time.monotonic
    _connections: Connections = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._connections = Connections(self.limits.connect_s, self.limits.read_s)

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection; what other threads are reading fails now."""
        self._connections.close()

    def get_bytes(self, url: str, *, limit_bytes: int, authorization: str = "") -> tuple[bytes, Mapping[str, str]]:
        """A small document, whole, and the headers of the reply (lower-case names).

        Raises:
            SourceUnavailable: also when it is larger than ``limit_bytes`` or takes longer than the limit.
            SourceDenied, SourceNotFound: see ``stream``.
        """
        deadline = self.monotonic_s() + self.limits.whole_s
        with self.stream(url, authorization=authorization) as body:
            content = bytearray()
            for chunk in body.chunks:
                content += chunk
                if len(content) > limit_bytes:
                    raise SourceUnavailable(f"the reply of {shown(url)} is larger than {limit_bytes} bytes")
                if self.monotonic_s() > deadline:
                    raise SourceUnavailable(f"{shown(url)} took longer than {self.limits.whole_s:.0f} s")
            return bytes(content), body.headers

    def get_json(self, url: str, *, limit_bytes: int, authorization: str = "") -> tuple[Any, Mapping[str, str]]:
        """A JSON document and the headers of the reply; raises as ``get_bytes`` does, and for anything else."""
        content, headers = self.get_bytes(url, limit_bytes=limit_bytes, authorization=authorization)
        try:
            return json.loads(content), headers
        except (ValueError, RecursionError) as error:
            raise SourceUnavailable(f"{shown(url)} did not answer with JSON") from error

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        limit_bytes: int = 4 << 20,
    ) -> Reply:
        """One request, without redirects, retries or judgement of the status; ``headers`` go out as they are.

        Args:
            content: the body; for chunks give ``content-length`` too, or they are sent with chunked encoding.

        Raises:
            SourceUnavailable: network, TLS, a proxy; the reply is cut, takes longer than the limit, or is larger than
                ``limit_bytes`` (then a fact).
            SourceDenied: the policy.
        """
        own = {"accept-encoding": "identity", "user-agent": _AGENT, **(headers or {})}
        answer = self._send(method, url, origin_of(url), own, content)
        received, deadline = bytearray(), self.monotonic_s() + self.limits.whole_s
        try:
            while chunk := answer.read():
                received += chunk
                if self.monotonic_s() > deadline:
                    raise SourceUnavailable(f"{shown(url)} took longer than {self.limits.whole_s:.0f} s")
                if len(received) > limit_bytes:
                    raise SourceUnavailable(
                        f"the reply of {shown(url)} is larger than {limit_bytes} bytes", limit_bytes=limit_bytes
                    )
            if answer.length_bytes is not None and len(received) < answer.length_bytes:
                raise SourceUnavailable(f"the reply of {shown(url)} was cut")
        except FAILURES as error:
            raise SourceUnavailable(f"the reply of {shown(url)} was cut") from error
        finally:
            answer.close()
        return Reply(answer.status, answer.headers, bytes(received))

    @contextlib.contextmanager
    def stream(self, url: str, *, start: int = 0, stop: int | None = None, authorization: str = "") -> Iterator[Body]:
        """Open a file at byte ``start`` (up to, not including, ``stop``); the block reads ``chunks``.

        The server may ignore the range: look at ``Body.start``. Opening is retried; reading is not, because only
        the caller knows what it has kept.

        Raises:
            SourceUnavailable: network, TLS, a proxy, 5xx, 429 beyond patience, an HTML page in place of a file;
                while reading: the body is cut, stalled, or longer than announced.
            SourceDenied: 401, 403, or the policy. SourceNotFound: 404, 410.
        """
        headers = {"accept-encoding": "identity", "user-agent": _AGENT}
        if start or stop is not None:
            headers["range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        answer, final_url = self._open(url, headers, authorization)
        try:
            patience = Patience(self.limits.stall_s, self.limits.stall_bytes, self.monotonic_s)
            yield body_of(answer, final_url, start, patience)
        finally:
            answer.close()

    def _open(self, url: str, headers: Mapping[str, str], authorization: str) -> tuple[Answer, str]:
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._follow(url, headers, authorization)
            except SourceUnavailable as error:
                if attempt >= self.limits.attempts or not _worth_retrying(error):
                    raise
                self.sleep(self._pause_s(attempt, error))

    def _pause_s(self, attempt: int, error: HomelabError) -> float:
        asked = error.facts.get("retry_after_s")
        if isinstance(asked, int | float):
            if asked > MAX_RETRY_AFTER_S:
                raise error
            return float(asked) + random.uniform(0, 0.5)  # noqa: S311 — jitter, not a secret
        doubled: float = self.limits.backoff_s * 2 ** (attempt - 1)
        return doubled * random.uniform(0.5, 1.5)  # noqa: S311

    def _follow(self, url: str, headers: Mapping[str, str], authorization: str) -> tuple[Answer, str]:
        first = origin_of(url)
        for _ in range(MAX_REDIRECTS + 1):
            origin = origin_of(url)
            if first.scheme == "https" and origin.scheme == "http":
                raise SourceDenied(f"{first.host} redirects to an address without encryption", host=origin.host)
            own = {"authorization": authorization} if authorization and origin == first else {}
            answer = self._send("GET", url, origin, {**headers, **own})
            if answer.status not in _REDIRECTS:
                break
            location = answer.headers.get("location", "")
            answer.close()
            url = urljoin(url, location)
        else:
            raise SourceUnavailable(f"{first.host} redirects more than {MAX_REDIRECTS} times", redirects=MAX_REDIRECTS)
        if answer.status not in {200, 206}:
            answer.close()
            raise _refusal(answer, url)
        return answer, url

    def _send(
        self,
        method: str,
        url: str,
        origin: Origin,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes] | None = None,
    ) -> Answer:
        """One request, to a checked address. Tries the addresses in turn while none accepts the connection."""
        proxy = self._proxy(origin)
        if proxy:
            self.policy.check_literal(origin)
        addresses = [""] if proxy else self.policy.addresses(origin, self.resolve)
        headers = {"host": str(origin).partition("://")[2], **headers}
        target = url.partition("#")[0] if proxy and origin.scheme == "http" else _target(url)
        error: Exception = ConnectionError("it has no address")
        for address in addresses:
            try:
                return self._connections.ask(
                    method, target, headers, content, origin=origin, address=address, proxy=proxy
                )
            except ConnectError as none:
                error = none
            except FAILURES as failed:
                raise _unreachable(origin, failed) from failed
        raise _unreachable(origin, error) from error

    def _proxy(self, origin: Origin) -> str:
        values = {
            name.lower(): value.strip() for name, value in self.environ.items() if name.lower().endswith("_proxy")
        }
        found = values.get(f"{origin.scheme}_proxy") or values.get("all_proxy", "")
        if not found or _bypasses(origin.host, values.get("no_proxy", "")):
            return ""
        found = found if "://" in found else f"http://{found}"
        if not found.startswith(("http://", "https://")):
            raise SourceUnavailable("the proxy in the environment is not an http or https proxy; others are not used")
        return found


def _target(url: str) -> str:
    """What stands in the request: path and query."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _bypasses(host: str, no_proxy: str) -> bool:
    """``no_proxy``: host names and domains, with or without a leading dot, or ``*``."""
    names = [name.strip().lstrip(".").lower() for name in no_proxy.split(",") if name.strip()]
    return any(name in {"*", host} or host.endswith(f".{name}") for name in names)


def _worth_retrying(error: HomelabError) -> bool:
    status = error.facts.get("status")
    return "redirects" not in error.facts and (status is None or status in _RETRIED)


def retry_after_s(value: str) -> float | None:
    """What a Retry-After header asks for, in seconds from now; None when it says nothing that can be read."""
    if (seconds := number(value)) is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _refusal(answer: Answer, url: str) -> HomelabError:
    status, where = answer.status, shown(url)
    reason = answer.headers.get("x-error-message", "")[:200]
    code = answer.headers.get("x-error-code", "")[:60] or None
    said = f" ({reason})" if reason.isprintable() and reason else ""
    if status in {401, 403}:
        return SourceDenied(
            f"{where} refuses access{said}",
            hint="set HF_TOKEN to a token that may read the model, and accept its terms on the hub"
            if code
            else "check the address and the token",
            status=status,
            source_code=code,
        )
    if status in {404, 410}:
        return SourceNotFound(f"{where} does not exist{said}", status=status, source_code=code)
    return SourceUnavailable(
        f"{where} answered {status}{said}",
        hint="try again later" if status in _RETRIED else "",
        status=status,
        retry_after_s=retry_after_s(answer.headers.get("retry-after", "")),
    )


def _unreachable(origin: Origin, error: Exception) -> SourceUnavailable:
    error = error.args[0] if isinstance(error, ConnectError) else error
    text = str(error)
    what = "does not prove its identity (TLS)" if "CERTIFICATE" in text.upper() else "cannot be reached"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {text}"
    return SourceUnavailable(
        f"{origin} {what}: {reason[:160]}",
        hint="check the network connection; the same command continues where it stopped",
        host=origin.host,
    )
