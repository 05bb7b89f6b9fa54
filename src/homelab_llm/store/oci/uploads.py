"""Uploads: how a blob gets into a repository: mounted, in one request, or in chunks that can be continued.

One function per request of the protocol; ``store/push.py`` decides which, and remembers.
Source: OCI distribution-spec, pushing blobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import SourceDenied, SourceNotFound, SourceUnavailable
from homelab_llm.core.http import Reply
from homelab_llm.store.oci.client import Content, RegistryClient
from homelab_llm.store.oci.replies import refusal

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in progress: where it goes on, how much the registry has, the smallest chunk it takes."""

    repository: str
    location: str
    offset: int = 0
    min_chunk_bytes: int = 0


def start(client: RegistryClient, repository: str) -> Upload:
    """Begin an upload.

    Raises:
        SourceDenied: also when the registry has no place of that name. SourceUnavailable.
    """
    reply = client.exchange(
        "POST",
        client.url(repository, "blobs/uploads/"),
        headers={"content-length": "0"},
        scope=client.scope(repository),
    )
    if reply.status == 404:
        raise SourceDenied(
            f"{client.host.name} has no place for {repository}", hint="make the project there first", status=404
        )
    if reply.status != 202:
        raise refusal(reply, client.host.name, f"an upload to {repository}")
    return _going_on(client, reply, repository, client.url(repository, "blobs/uploads/"), 0)


def mount(client: RegistryClient, repository: str, digest: Digest, other: str) -> bool:
    """Have the registry take a blob from another of its repositories; whether it did. No byte is sent."""
    fields = {"mount": str(digest), "from": client.host.repository(other)}
    url = client.url(repository, f"blobs/uploads/?{urlencode(fields)}")
    scope = f"{client.scope(repository)} {client.scope(other, 'pull')}"
    try:
        reply = client.exchange("POST", url, headers={"content-length": "0"}, scope=scope)
    except SourceDenied:
        return False  # the other one may not be read with these credentials
    if reply.status == 202:
        cancel(client, _going_on(client, reply, repository, url, 0))
    return reply.status == 201


def status(client: RegistryClient, upload: Upload) -> Upload | None:
    """How far an upload is; None when the registry has given it up."""
    reply = client.exchange("GET", upload.location, scope=client.scope(upload.repository))
    if reply.status in {404, 410, 416} or reply.status == 400:
        return None
    if reply.status not in {200, 202, 204}:
        raise refusal(reply, client.host.name, f"an upload to {upload.repository}")
    return _going_on(client, reply, upload.repository, upload.location, _received(reply))


def send_chunk(client: RegistryClient, upload: Upload, content: Content, size_bytes: int) -> Upload:
    """Send the next bytes; not repeated after a cut: ``status`` says what of them arrived.

    Raises:
        SourceNotFound: the registry has given the upload up, or expects other bytes.
        SourceUnavailable: cut, or the registry is busy. SourceDenied: it does not take chunks.
    """
    last = upload.offset + size_bytes - 1
    headers = {
        "content-type": _OCTETS,
        "content-length": str(size_bytes),
        "content-range": f"{upload.offset}-{last}",
    }
    reply = client.exchange(
        "PATCH",
        upload.location,
        headers=headers,
        content=content,
        scope=client.scope(upload.repository),
        retry=False,
    )
    if reply.status == 416:
        raise SourceNotFound(f"{client.host.name} expects other bytes of the upload", status=416)
    if reply.status not in {200, 201, 202, 204}:
        raise refusal(reply, client.host.name, f"a part of a blob of {upload.repository}")
    following = _going_on(client, reply, upload.repository, upload.location, last + 1)
    if reply.headers.get("range") and _received(reply) != last + 1:
        raise SourceUnavailable(f"{client.host.name} received another number of bytes than were sent")
    return following


def finish(client: RegistryClient, upload: Upload, digest: Digest) -> None:
    """End a chunked upload: the registry checks the digest and has the blob.

    Raises:
        SourceNotFound: it has given the upload up. SourceDenied: the bytes are not those of the digest.
    """
    reply = client.exchange(
        "PUT",
        _with_digest(upload.location, digest),
        headers={"content-length": "0", "content-type": _OCTETS},
        scope=client.scope(upload.repository),
        retry=False,
    )
    if reply.status not in {200, 201, 202, 204}:
        raise refusal(reply, client.host.name, f"the blob {digest.short}")


def send_whole(client: RegistryClient, upload: Upload, digest: Digest, content: Content, size_bytes: int) -> None:
    """Send a whole blob in one request, at the start of an upload."""
    reply = client.exchange(
        "PUT",
        _with_digest(upload.location, digest),
        headers={"content-length": str(size_bytes), "content-type": _OCTETS},
        content=content,
        scope=client.scope(upload.repository),
        retry=False,
    )
    if reply.status not in {200, 201, 202, 204}:
        raise refusal(reply, client.host.name, f"the blob {digest.short}")


def cancel(client: RegistryClient, upload: Upload) -> None:
    """Have the registry forget an upload; what it answers does not matter."""
    client.exchange("DELETE", upload.location, scope=client.scope(upload.repository), retry=False)


def _going_on(client: RegistryClient, reply: Reply, repository: str, url: str, offset: int) -> Upload:
    location = reply.headers.get("location", "")
    smallest = reply.headers.get("oci-chunk-min-length", "")
    following = client.own_url(urljoin(url, location)) if location else url
    return Upload(repository, following, offset, int(smallest) if smallest.isdigit() and len(smallest) < 12 else 0)


def _received(reply: Reply) -> int:
    """How many bytes a Range header (``0-N``, N the last) tells of; ``0-0`` is nothing at all in practice."""
    found = _RANGE.fullmatch(reply.headers.get("range", "").strip())
    return int(found[1]) + 1 if found and int(found[1]) else 0


def _with_digest(location: str, digest: Digest) -> str:
    parts = urlsplit(location)
    query = "&".join(filter(None, (parts.query, urlencode({"digest": str(digest)}))))
    return urlunsplit((*parts[:3], query, ""))
