"""Entry: one model of the registry. An entry without files is an intent: a model that is wanted and not yet pulled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.errors import InvalidName

FORMATS = ("gguf", "safetensors", "mlx", "ov-ir")
MAX_SLUG_CHARACTERS = 128
_SLUG = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered model.

    ``model_id`` is the name in the store, which clients use too; ``repo_id`` is where it comes from, as ``pull``
    takes it; ``cache_path`` is its main file or folder, empty for an intent. ``format`` is gguf, safetensors, mlx or
    ov-ir. Everything below ``format`` is optional: empty, 0 or None means that nothing is set.

    ``request_params`` are used where a request says nothing. ``keep_alive_s`` is negative for "for ever".
    ``extra`` keeps fields of a document that this version does not know, so that an export loses nothing.
    """

    slug: str
    model_id: str
    repo_id: str = ""
    cache_path: str = ""
    format: str = "gguf"
    source_path: str = ""
    chat_template: str = ""
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    context_length: int = 0
    max_output_tokens: int = 0
    request_params: Mapping[str, Any] = field(default_factory=dict)
    draft_model: str = ""
    engine: str = ""
    flags: tuple[str, ...] = ()
    pinned: bool = False
    keep_alive_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_intent(self) -> bool:
        """Whether it is wanted, but not in the store yet."""
        return not self.cache_path


def parse_entry_slug(text: str) -> str:
    """A key of the registry: lower-case letters and digits with ``.``, ``_`` and ``-`` between, at most 128.

    Wider than the slugs of ``core.names``, because registries of other origins keep the dots of a repository.

    Raises:
        InvalidName: anything else.
    """
    if len(text) > MAX_SLUG_CHARACTERS or not _SLUG.fullmatch(text):
        shown = text[:60].encode("unicode_escape").decode("ascii")
        raise InvalidName(f"not a name of an entry: {shown!r}", hint="use lower-case letters and digits, like qwen3-8b")
    return text
