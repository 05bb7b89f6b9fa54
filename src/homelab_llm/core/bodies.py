"""Bodies: the content of a reply as it arrives, held against what the head of the reply said."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from homelab_llm.core.connections import FAILURES, Answer
from homelab_llm.core.errors import SourceUnavailable
from homelab_llm.core.urls import origin_of


@dataclass(frozen=True, slots=True)
class Body:
    """An open reply. ``start`` is the offset of its first byte in the whole, ``total_bytes`` the length of the
    whole (None when the server does not say), ``validator`` what tells whether the whole has changed (a strong
    ETag, else Last-Modified, else empty). ``chunks`` can be read once. ``ranged``: it is the part asked for, not
    the whole.
    """

    url: str
    headers: Mapping[str, str]
    start: int
    total_bytes: int | None
    validator: str
    chunks: Iterator[bytes]
    ranged: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """A body must bring ``stall_bytes`` in each ``stall_s`` that are spent waiting for it."""

    stall_s: float
    stall_bytes: int
    monotonic_s: Callable[[], float]


def body_of(answer: Answer, url: str, start: int, patience: Patience) -> Body:
    """The body of a reply with status 200 or 206 to a request for the bytes from ``start`` on.

    Raises:
        SourceUnavailable: compressed, a web page, or another part than asked for.
    """
    headers = answer.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise SourceUnavailable(f"{shown(url)} sent a compressed body although it was asked not to")
    kind = headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() in {"text/html", "application/xhtml+xml"}:
        raise SourceUnavailable(
            f"{shown(url)} answered with a web page ({kind[:60]}) in place of the file",
            hint="a login page of the network (captive portal) or a proxy may stand in between: open a browser",
            content_type=kind[:60],
        )
    length = answer.length_bytes
    ranged = answer.status == 206
    begin, total = _content_range(headers.get("content-range", ""), start, url) if ranged else (0, length)
    etag = headers.get("etag", "")
    validator = headers.get("last-modified", "") if not etag or etag.startswith("W/") else etag
    return Body(url, headers, begin, total, validator, _chunks(answer, url, length, patience), ranged)


def _chunks(answer: Answer, url: str, length: int | None, patience: Patience) -> Iterator[bytes]:
    received, window_bytes, waited_s = 0, 0, 0.0
    try:
        while length is None or received < length:
            before = patience.monotonic_s()
            chunk = answer.read()
            waited_s += patience.monotonic_s() - before  # only the other side's time; the reader may take its own
            if not chunk:
                break
            received += len(chunk)
            window_bytes += len(chunk)
            yield chunk
            if waited_s > patience.stall_s:
                if window_bytes < patience.stall_bytes:
                    raise SourceUnavailable(f"{shown(url)} sends too slowly: {window_bytes} bytes in a minute")
                window_bytes, waited_s = 0, 0.0
    except FAILURES as error:
        if isinstance(error, http.client.IncompleteRead):
            received += len(error.partial)
        raise SourceUnavailable(
            f"the connection to {shown(url)} ended after {received} bytes",
            hint="the same command continues where it stopped",
            received_bytes=received,
        ) from error
    if length is not None and received < length:
        raise SourceUnavailable(f"{shown(url)} sent {received} of {length} bytes", received_bytes=received)


def shown(url: str) -> str:
    """Host and path; a query may hold a signature."""
    path = url.partition("://")[2].partition("/")[2].partition("?")[0].partition("#")[0]
    return f"{origin_of(url).host}/{path}"[:160]


def number(text: str) -> int | None:
    """A plain number as headers have it."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _content_range(text: str, start: int, url: str) -> tuple[int, int | None]:
    """``bytes 10-19/100`` → (10, 100); another place than asked for is an error."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    begin = number(span.partition("-")[0])
    if unit != "bytes" or begin != start:
        raise SourceUnavailable(f"{shown(url)} answered with another part than the one asked for")
    return begin, number(total)
