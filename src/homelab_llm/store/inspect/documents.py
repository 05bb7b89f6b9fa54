"""JSON that came with a model: read within bounds, as plain values, and never believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile
from homelab_llm.store.inspect.regular import open_regular

MAX_JSON_BYTES = 8 << 20
# A parsed value can take 25 times the memory of its text; these bounds keep it below some 150 MB.
MAX_CONTAINERS = 1_000_000
MAX_ITEMS = 4_000_000


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """The whole file, which may have at most ``limit`` bytes.

    Raises:
        BadModelFile: it is larger. NotRegularFile: see ``open_regular``.
    """
    with open_regular(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise BadModelFile(f"{what} is larger than {limit} bytes", limit_bytes=limit)
    return content


def parse_json(content: bytes, what: str) -> Any:
    """Any JSON value, without duplicate keys.

    Raises:
        BadModelFile: not UTF-8, not JSON, nested or long beyond sense, or a key twice.
    """
    if content.count(b"[") + content.count(b"{") > MAX_CONTAINERS or content.count(b",") > MAX_ITEMS:
        raise BadModelFile(f"{what} holds more values than a model's description does", limit=MAX_ITEMS)
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise BadModelFile(f"{what} is not JSON: {str(error)[:120]}") from error


def parse_object(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object; raises as ``parse_json`` does, and for any other value."""
    value = parse_json(content, what)
    if not isinstance(value, dict):
        raise BadModelFile(f"{what} is not a JSON object")
    return value


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a small file; raises as ``read_bounded`` and ``parse_object`` do."""
    return parse_object(read_bounded(path, MAX_JSON_BYTES, what), what)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key stands there twice")
    return out
