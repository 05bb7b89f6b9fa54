"""File names inside a model: what a manifest may call its files, and which kind of layer each becomes.

A manifest may come from anywhere and views make folders of these names, so one grammar is checked whenever
a manifest is written or read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from homelab_llm.core.errors import InvalidName

MAX_FILES = 10_000
_MAX_BYTES = 1024
_MAX_PART_BYTES = 255
_MAX_DEPTH = 8
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
_WEIGHTS = (".safetensors", ".gguf")
_DOCUMENTS = re.compile(r"(readme|licen[cs]e|notice|copying|use_policy|usage_policy)|.*\.(md|rst|pdf)$", re.IGNORECASE)


def check_file_names(names: Iterable[str]) -> None:
    """See that names are relative, plain and different from each other on every file system.

    Raises:
        InvalidName: with the rule that is broken; also for no name at all or more than ``MAX_FILES``.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for count, name in enumerate(names, 1):
        if count > MAX_FILES:
            raise InvalidName(f"a model has at most {MAX_FILES} files", field="files")
        folded = _checked(name)
        if folded in seen:
            raise InvalidName(f"two files are called {name[:80]!r} where case does not count", field="files")
        seen.add(folded)
        if "/" in folded:
            parts = folded.split("/")
            folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    if not seen:
        raise InvalidName("a model has at least one file", field="files")
    if both := seen & folders:
        raise InvalidName(f"{min(both)[:80]!r} is a file and a folder", field="files")


def is_weight(name: str) -> bool:
    """Whether the file holds tensors."""
    return name.lower().endswith(_WEIGHTS)


def is_document(name: str) -> bool:
    """Whether the file is there for people: readme, licence."""
    return bool(_DOCUMENTS.match(name.rpartition("/")[2]))


@lru_cache(maxsize=4096)
def _checked(name: str) -> str:
    """The name as file systems without case see it; models share most of their file names.

    Raises:
        InvalidName: outside the grammar.
    """
    parts = name.split("/")
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        encoded = []
    if (
        not encoded
        or _FORBIDDEN.search(name)
        or any(part in ("", ".", "..") for part in parts)
        or any(len(part) > _MAX_PART_BYTES for part in encoded)
        or sum(map(len, encoded)) > _MAX_BYTES
        or len(parts) > _MAX_DEPTH
    ):
        shown = name[:80].encode("unicode_escape").decode("ascii")
        raise InvalidName(
            f"not a file name inside a model: {shown!r}",
            hint="names are relative, without .., control characters or backslashes",
            field="files",
        )
    return unicodedata.normalize("NFC", name).casefold()
