"""Limits: reading a request's body and its JSON with every bound checked before it can cost.

The time a request may take to arrive is bounded below this, where its bytes arrive (``protocol.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import orjson

from homelab_llm.core.errors import BodyTooLarge, Cancelled, InvalidInput, UnsupportedEncoding

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

SMALL_BYTES = 1 << 20  # a body up to this cannot make more than some 60 MB of objects
MAX_CONTAINERS = 200_000
MAX_VALUES = 4_000_000
_JSON_TYPES = (b"application/json", b"text/json")


def check_encoding(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """The declared length of a JSON body, None when it is sent in chunks.

    Raises:
        UnsupportedEncoding: not JSON in UTF-8, or compressed. (A page of another origin may send
            ``text/plain`` without asking first, so the type is required.)
    """
    kind = b""
    length: int | None = None
    for name, value in headers:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            length = int(value)
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedEncoding(
                f"content-encoding {_shown(value)} is not read here", hint="send the body uncompressed"
            )
    if kind != b"application/json":
        _check_type(kind)
    return length


def _check_type(kind: bytes) -> None:
    media, _, parameters = kind.lower().partition(b";")
    charset = parameters.partition(b"charset=")[2].strip().strip(b'"')
    if media.strip() not in _JSON_TYPES or charset not in (b"", b"utf-8", b"utf8"):
        raise UnsupportedEncoding(
            f"content-type {_shown(kind) if kind else 'is missing'}; this endpoint reads JSON",
            hint="send the header Content-Type: application/json",
        )


async def read_body(receive: Receive, declared: int | None, limit_bytes: int) -> bytes:
    """The whole body; never holds more than ``limit_bytes`` of it.

    Raises:
        BodyTooLarge: it is longer, or says so.
        Cancelled: the client left before it was complete.
    """
    if declared is not None and declared > limit_bytes:
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client went away before its request was complete")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body"):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit_bytes} bytes", hint="setting: server.max_body_bytes", limit_bytes=limit_bytes
    )


def parse_json(content: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object in ``content``.

    Raises:
        InvalidInput: not JSON, or not an object.
        BodyTooLarge: nested deeper than ``max_depth``, or more values than any request needs.
    """
    if len(content) > SMALL_BYTES:
        _check_count(content)
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        reason = str(error)
        if "depth limit" in reason or "recursion" in reason:  # orjson's own, far above ours
            raise _too_deep(max_depth) from error
        raise InvalidInput(
            f"the body is not JSON: {reason}" if content else "the body is empty", field="body"
        ) from error
    if type(value) is not dict:
        raise InvalidInput("the body must be a JSON object", field="body")
    if content.count(b"{") + content.count(b"[") > max_depth:  # fewer brackets cannot nest deeper
        _check_depth(value, max_depth)
    return value


def _check_count(content: bytes) -> None:
    """Refuse what would become many times its size in memory; counts only what stands outside of strings."""
    containers, values = _counts(content)
    if containers > MAX_CONTAINERS or values > MAX_VALUES:
        containers, values = _counts(b"".join(_outside_strings(content)))
    if containers > MAX_CONTAINERS or values > MAX_VALUES:
        raise BodyTooLarge(
            "the body holds more values than a request can need", field="body", limit=MAX_VALUES, lists=MAX_CONTAINERS
        )


def _counts(content: bytes) -> tuple[int, int]:
    containers = content.count(b"[") + content.count(b"{")
    return containers, containers + content.count(b",")


def _outside_strings(content: bytes) -> Iterable[bytes]:
    plain = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    return plain.split(b'"')[::2]


def _check_depth(value: dict[str, Any], max_depth: int) -> None:
    level: list[Any] = [value]
    for _ in range(max_depth):
        inner: list[Any] = []
        for container in level:
            items = container.values() if type(container) is dict else container
            inner += [item for item in items if type(item) is dict or type(item) is list]
        if not inner:
            return
        level = inner
    raise _too_deep(max_depth)


def _too_deep(max_depth: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is nested deeper than {max_depth} levels",
        hint="setting: server.max_depth",
        field="body",
        limit=max_depth,
    )


def _shown(value: bytes) -> str:
    return repr(value[:60].decode("latin-1"))
