"""The chat template of a model folder: where it lies. How it is rendered: ``core/chat_template.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import BadModelFile


def read_template(folder: Path) -> str:
    """The source of a model folder's chat template; empty when it has none.

    Raises:
        BadModelFile: a file that should hold it is not JSON.
    """
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_object(folder / name).get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return ""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when there is no such file.

    Raises:
        BadModelFile: it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise BadModelFile(f"{path.name} is not a JSON object")
    return value
