"""JSON files of a model, read within bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile

MAX_JSON_BYTES = 128 << 20


def read_object(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """The JSON object in the file ``name`` of the model.

    Raises:
        BadModelFile: it is not there, too large, or not an object.
    """
    if name not in files:
        raise BadModelFile(f"the model has no {name}", file=name)
    return parse_object(read_bounded(files[name], name), name)


def read_bounded(path: Path, name: str) -> bytes:
    """The content of a document.

    Raises:
        BadModelFile: larger than any document is.
    """
    with path.open("rb") as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise BadModelFile(f"{name} is larger than {MAX_JSON_BYTES} bytes", file=name)
    return content


def parse_object(content: bytes, name: str) -> dict[str, Any]:
    """Bytes as a JSON object.

    Raises:
        BadModelFile: they are not one.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{name} is not JSON", file=name) from error
    if not isinstance(found, dict):
        raise BadModelFile(f"{name} is not a JSON object", file=name)
    return found


def whole(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 1 << 31) -> int:
    """A dimension of a configuration.

    Raises:
        BadModelFile: missing without a default, or no number from 1 to ``most``.
    """
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= most:
        raise BadModelFile(f"{key} is not a number from 1 to {most}", key=key)
    return value


def real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number of a configuration.

    Raises:
        BadModelFile: missing without a default, or not a positive number.
    """
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise BadModelFile(f"{key} is not a positive number", key=key)
    return float(value)
