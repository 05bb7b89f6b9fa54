"""The client of one registry: manifests, blobs, tags; uploads are in ``uploads.py``. Safe in several threads.

``exchange`` is one request with what the registry wants shown, and again when that has run out or the registry is
busy. Nothing of ours goes to another machine than the registry: redirects are followed without credentials, an
address that a reply names (``Location``, ``Link``) must be the registry's own.
Source: OCI distribution-spec v1.1.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest, DigestMismatch, HomelabError, SourceDenied, SourceUnavailable
from homelab_llm.core.http import MAX_REDIRECTS, MAX_RETRY_AFTER_S, Body, HttpClient, Reply
from homelab_llm.core.urls import Origin, UrlPolicy, origin_of
from homelab_llm.store.layout import MAX_DOCUMENT_BYTES
from homelab_llm.store.manifests import MANIFEST
from homelab_llm.store.oci.hosts import RegistryHost, registry_host
from homelab_llm.store.oci.replies import RETRIED, refusal
from homelab_llm.store.oci.tokens import Tokens

if TYPE_CHECKING:
    from homelab_llm.store.oci.credentials import Credentials
    from homelab_llm.store.settings import PullSettings

INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPTED = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_TAGS = 10_000
_TAGS_PER_PAGE = 1_000

Content = Callable[[], Iterable[bytes]]
"""Makes the chunks of a body, anew for each attempt."""


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    """A manifest as the registry holds it; ``digest`` is that of the bytes, checked against all that was promised."""

    content: bytes
    digest: Digest
    media_type: str


class RegistryClient:
    """One registry. Repositories are named as a person does; ``pull`` is what may be asked unless ``push`` is set.

    Args:
        http: its policy must admit the registry; ``open_registry`` sees to that.
        credentials: asked at most once, when the registry wants any.
        push: ask for tokens that may write as well.
    """

    def __init__(
        self,
        http: HttpClient,
        host: RegistryHost,
        credentials: Callable[[], Credentials | None] = lambda: None,
        *,
        push: bool = False,
    ) -> None:
        self.http, self.host = http, host
        self._tokens = Tokens(http, host, credentials)
        self._actions = "pull,push" if push else "pull"
        self._own: Origin | None = host.origins[0] if len(host.origins) == 1 else None
        self._finding = threading.Lock()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self.http.close()

    @property
    def own(self) -> Origin:
        """Where the registry answers; asks it when that is not certain (listed: with TLS, or without).

        Raises:
            SourceUnavailable: it answers nowhere.
        """
        with self._finding:
            if self._own is None:
                self._own = self._find()
            return self._own

    @property
    def credentials(self) -> Credentials | None:
        """Those that were asked for so far; None while the registry wanted none."""
        return self._tokens.credentials

    def check(self, scope: str = "") -> None:
        """See that the registry speaks this protocol and takes our credentials.

        Raises:
            SourceDenied: it does not take them. SourceUnavailable, SourceNotFound: no registry there.
        """
        reply = self.exchange("GET", f"{self.own}/v2/", scope=scope)
        if reply.status != 200:
            raise refusal(reply, self.host.name, "access")

    # --- reading ------------------------------------------------------------------------------------------

    def manifest(self, repository: str, reference: str | Digest) -> FetchedManifest:
        """The manifest or index of a tag or digest, at most 4 MiB.

        Raises:
            SourceNotFound, SourceDenied, SourceUnavailable.
            DigestMismatch: not what was asked for, or not what the registry says it is.
            BadManifest: too large.
        """
        what = f"the manifest {repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"
        try:
            reply = self._get(
                self.url(repository, f"manifests/{reference}"), {"accept": ", ".join(ACCEPTED)}, self.scope(repository)
            )
        except SourceUnavailable as error:
            if "limit_bytes" in error.facts:
                raise BadManifest(f"{what} of {self.host.name} is larger than {MAX_DOCUMENT_BYTES} bytes") from error
            raise
        if reply.status != 200:
            raise refusal(reply, self.host.name, what)
        digest = Digest.of(reply.content)
        promised = {str(reference)} if isinstance(reference, Digest) else set()
        if (told := reply.headers.get("docker-content-digest", "")).startswith("sha256:"):
            promised.add(told)
        if wrong := promised - {str(digest)}:
            raise DigestMismatch(
                f"{what} of {self.host.name} is not what its digest says",
                hint="run the same command again; if it stays, the registry is damaged or not honest",
                expected=min(wrong)[:80],
                actual=str(digest),
            )
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        return FetchedManifest(reply.content, digest, kind)

    def manifest_digest(self, repository: str, reference: str) -> Digest | None:
        """What a tag means now, as the registry says; None when there is no such tag or it does not say."""
        headers = {"accept": ", ".join(ACCEPTED)}
        url, scope = self.url(repository, f"manifests/{reference}"), self.scope(repository)
        reply = self.exchange("HEAD", url, headers=headers, scope=scope)
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise refusal(reply, self.host.name, f"the tag {repository}:{reference}")
        told = reply.headers.get("docker-content-digest", "")
        return Digest.parse(told) if len(told) == 71 and told.startswith("sha256:") else None

    def has_blob(self, repository: str, digest: Digest) -> bool:
        """Whether the repository has the blob."""
        reply = self.exchange("HEAD", self.url(repository, f"blobs/{digest}"), scope=self.scope(repository))
        if reply.status == 404:
            return False
        if reply.status in {200, 206} or 300 <= reply.status < 400:  # found, and kept in a storage elsewhere
            return True
        raise refusal(reply, self.host.name, f"the blob {digest.short} of {repository}")

    def blob_bytes(self, repository: str, digest: Digest, *, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A small blob, whole and checked; a configuration, say.

        Raises:
            DigestMismatch, SourceUnavailable (also: too large), SourceNotFound, SourceDenied.
        """
        reply = self._get(self.url(repository, f"blobs/{digest}"), {}, self.scope(repository), limit_bytes)
        if reply.status != 200:
            raise refusal(reply, self.host.name, f"the blob {digest.short} of {repository}")
        if (found := Digest.of(reply.content)) != digest:
            raise DigestMismatch(
                f"the blob {digest.short} of {self.host.name} is not what its digest says",
                expected=str(digest),
                actual=str(found),
            )
        return reply.content

    @contextmanager
    def open_blob(self, repository: str, digest: Digest, start: int = 0, stop: int | None = None) -> Iterator[Body]:
        """Open a blob at byte ``start``, up to, not including, ``stop``; not checked: who reads it hashes it.

        Raises:
            SourceUnavailable: also while reading. SourceNotFound, SourceDenied.
        """
        url, scope = self.url(repository, f"blobs/{digest}"), self.scope(repository)
        opening = self.http.stream(url, start=start, stop=stop, authorization=self._tokens.header(scope))
        try:
            body = opening.__enter__()
        except SourceDenied as refused:
            if refused.facts.get("status") != 401:
                raise
            self.has_blob(repository, digest)  # gets what must be shown
            opening = self.http.stream(url, start=start, stop=stop, authorization=self._tokens.header(scope))
            body = opening.__enter__()
        try:
            yield body
        finally:
            opening.__exit__(None, None, None)

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted, at most 10,000."""
        found: list[str] = []
        url, scope = self.url(repository, f"tags/list?n={_TAGS_PER_PAGE}"), self.scope(repository)
        while url and len(found) < _MAX_TAGS:
            reply = self._get(url, {}, scope)
            if reply.status != 200:
                raise refusal(reply, self.host.name, f"the tags of {repository}")
            page = _tags(reply.content, self.host.name)
            following = _next(reply.headers.get("link", ""))
            found += page
            url = self.own_url(urljoin(url, following)) if following and page else ""
        return sorted(found)[:_MAX_TAGS]

    # --- writing ------------------------------------------------------------------------------------------

    def put_manifest(self, repository: str, reference: str, content: bytes, media_type: str = MANIFEST) -> None:
        """Store a manifest whose blobs are there, and let the tag ``reference`` mean it.

        Raises:
            SourceDenied: also when the registry does not take such a manifest, or says a blob is missing.
            DigestMismatch: it stored something else.
        """
        reply = self.exchange(
            "PUT",
            self.url(repository, f"manifests/{reference}"),
            headers={"content-type": media_type, "content-length": str(len(content))},
            content=lambda: [content],
            scope=self.scope(repository),
        )
        if reply.status not in {200, 201, 202}:
            raise refusal(reply, self.host.name, f"the manifest {repository}:{reference}")
        told, digest = reply.headers.get("docker-content-digest", ""), str(Digest.of(content))
        if told.startswith("sha256:") and told != digest:
            raise DigestMismatch(f"{self.host.name} stored another manifest", expected=digest, actual=told[:80])

    # --- requests -----------------------------------------------------------------------------------------

    def url(self, repository: str, rest: str) -> str:
        """The address of something in a repository."""
        return f"{self.own}/v2/{quote(self.host.repository(repository), safe='/')}/{rest}"

    def scope(self, repository: str, actions: str = "") -> str:
        """What a token must be good for."""
        return f"repository:{self.host.repository(repository)}:{actions or self._actions}"

    def own_url(self, url: str) -> str:
        """An address that the registry named, when it is the registry's own or listed.

        A registry behind a server that ends TLS often names itself without TLS: it is then asked with it.

        Raises:
            SourceDenied: it belongs to another machine.
        """
        origin, own = origin_of(url), self.own
        if origin == own or origin in self.host.listed:
            return url
        if (
            origin.host == own.host
            and (origin.scheme, own.scheme) == ("http", "https")
            and origin.port in {80, own.port}
        ):
            return urlunsplit((*urlsplit(str(own))[:2], *urlsplit(url)[2:]))
        raise SourceDenied(
            f"{self.host.name} sends us on to {origin}, which is not its own; nothing was sent there",
            hint=f"if {origin.host} belongs to it, add {origin} to store.registries",
            host=self.host.name,
            location=str(origin),
        )

    def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
        scope: str = "",
        limit_bytes: int = MAX_DOCUMENT_BYTES,
        retry: bool = True,
    ) -> Reply:
        """One request to ``url``; credentials go along when that is the registry itself.

        Args:
            scope: what a token must be good for.
            retry: try again after cuts and when the registry is busy; for what may be asked twice.

        Raises:
            SourceDenied: no credentials, or not good enough (401 only; other statuses are the caller's to judge).
            SourceUnavailable: network, TLS; or it stays busy.
        """
        attempt, renewed = 0, False
        while True:
            attempt += 1
            shown = self._tokens.header(scope) if origin_of(url) == self.own else ""
            own = {**(headers or {}), **({"authorization": shown} if shown else {})}
            try:
                body = content() if content else None
                reply = self.http.exchange(method, url, headers=own, content=body, limit_bytes=limit_bytes)
            except SourceUnavailable as error:
                if not retry or attempt >= self.http.limits.attempts or "limit_bytes" in error.facts:
                    raise
                self._pause(attempt, error)
                continue
            if reply.status == 401 and origin_of(url) == self.own:
                if not renewed and self._tokens.answer(reply, self.own, scope, shown):
                    renewed = True
                    continue
                raise refusal(reply, self.host.name, "access")
            if reply.status not in RETRIED or not retry or attempt >= self.http.limits.attempts:
                return reply
            self._pause(attempt, refusal(reply, self.host.name, "a request"))

    def _pause(self, attempt: int, error: HomelabError) -> None:
        asked = error.facts.get("retry_after_s")
        if isinstance(asked, int | float):
            if asked > MAX_RETRY_AFTER_S:
                raise error
            self.http.sleep(float(asked) + random.uniform(0, 0.5))  # noqa: S311 — jitter, not a secret
        else:
            doubled: float = self.http.limits.backoff_s * 2 ** (attempt - 1)
            self.http.sleep(doubled * random.uniform(0.5, 1.5))  # noqa: S311

    def _get(self, url: str, headers: Mapping[str, str], scope: str, limit_bytes: int = MAX_DOCUMENT_BYTES) -> Reply:
        """A small document, redirects followed: to other machines without credentials, never away from TLS."""
        for _ in range(MAX_REDIRECTS + 1):
            reply = self.exchange("GET", url, headers=headers, scope=scope, limit_bytes=limit_bytes)
            location = reply.headers.get("location", "")
            if reply.status not in {301, 302, 303, 307, 308} or not location:
                return reply
            url = urljoin(url, location)
            if self.own.scheme == "https" and origin_of(url).scheme == "http":
                raise SourceDenied(f"{self.host.name} redirects to an address without encryption")
        raise SourceUnavailable(f"{self.host.name} redirects more than {MAX_REDIRECTS} times")

    def _find(self) -> Origin:
        for origin in self.host.origins[:-1]:
            try:
                self.http.exchange("GET", f"{origin}/v2/")
            except SourceUnavailable:
                continue
            return origin
        return self.host.origins[-1]


def open_registry(
    name: str,
    settings: PullSettings,
    *,
    push: bool = False,
    repository: str = "",
    credentials: Credentials | None = None,
) -> RegistryClient:
    """The client of the registry ``host[:port]``, with the credentials of this account's files; asks nothing yet.

    Args:
        repository: which of several credentials for parts of a registry to take.
        credentials: these instead, of no file.

    Raises:
        InvalidInput: not a host.
    """
    from homelab_llm.store.oci.auth import find_credentials

    host = registry_host(name, settings.registries)
    trusted = host.listed | (frozenset(host.origins) if host.trusted else frozenset())
    policy = UrlPolicy(settings.allow_private_hosts).with_trusted(trusted)
    http = HttpClient(policy=policy, limits=settings.limits, environ=settings.environ)
    return RegistryClient(
        http, host, lambda: credentials or find_credentials(host.name, settings.environ, repository), push=push
    )


def _tags(content: bytes, host: str) -> list[str]:
    try:
        found: Any = list(json.loads(content)["tags"] or ())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceUnavailable(f"{host} answered with a list of tags that cannot be read") from error
    return [tag for tag in found if isinstance(tag, str) and _TAG.fullmatch(tag)]


def _next(link: str) -> str:
    """The address of the next page in a Link header."""
    target, _, parameters = link.partition(";")
    return target.strip().removeprefix("<").removesuffix(">") if 'rel="next"' in parameters.replace("'", '"') else ""
