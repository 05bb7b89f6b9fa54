"""Names: what a model, tag, alias or key may be called. One strict grammar, parsed once at the edge.

A name never becomes a path: in the store names live inside ``index.json``, and only digests become paths
(``store/layout.py``, in one function).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidName

_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART}){{0,3}}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_UNSLUGGABLE = re.compile(r"[^a-z0-9]+")
MAX_NAME_CHARACTERS = 128
DEFAULT_TAG = "latest"


def _shown(text: str) -> str:
    """``text`` shortened and escaped, so that an error never echoes control characters or 10 kB."""
    cut = text if len(text) <= 60 else text[:57] + "..."
    return cut.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model in the store: ``repository[:tag]`` or ``repository@sha256:…``.

    ``repository`` follows the OCI distribution grammar (lower case, at most four parts, 128 characters);
    ``tag`` is one to 64 of ``[A-Za-z0-9_.-]``. A missing tag means ``latest``.
    """

    repository: str
    tag: str = DEFAULT_TAG
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parse a name as a client or a person wrote it; upper case in the repository is folded.

        Raises:
            InvalidName: the text is outside the grammar.
            InvalidDigest: the part after ``@`` is not a digest.
        """
        if not text or len(text) > MAX_NAME_CHARACTERS + 65 + 72:
            raise InvalidName(f"a model name has 1 to {MAX_NAME_CHARACTERS} characters", field="model")
        head, at, digest_text = text.partition("@")
        repository, colon, tag = head.partition(":")
        repository = repository.lower() if repository.isascii() else repository
        if len(repository) > MAX_NAME_CHARACTERS or not _REPOSITORY.fullmatch(repository):
            raise InvalidName(
                f"not a model name: {_shown(text)!r}",
                hint="a name is like smollm2:135m or org/name:tag (letters, digits and . _ - between them)",
                field="model",
            )
        if colon and not _TAG.fullmatch(tag):
            raise InvalidName(f"not a tag: {_shown(tag)!r}", hint="a tag is like 135m, latest or q4_k_m", field="model")
        return cls(repository, tag if colon else DEFAULT_TAG, Digest.parse(digest_text) if at else None)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def parse_slug(text: str, *, what: str = "name") -> str:
    """A slug: lower-case words joined by single dashes, at most 63 characters (aliases, key names).

    Raises:
        InvalidName: anything else.
    """
    if len(text) > 63 or not _SLUG.fullmatch(text):
        raise InvalidName(
            f"not a {what}: {_shown(text)!r}", hint="use lower-case words joined by dashes, like my-laptop"
        )
    return text


def slug_of(text: str) -> str:
    """The slug of any text, for example of a repository id: ``Qwen/Qwen3-0.6B`` → ``qwen-qwen3-0-6b``."""
    return parse_slug(_UNSLUGGABLE.sub("-", text.lower()).strip("-")[:63].rstrip("-"))


def repository_of(text: str) -> str:
    """The repository of a name elsewhere: ``Qwen/Qwen3-0.6B-GGUF`` → ``qwen/qwen3-0.6b-gguf``; may leave nothing."""
    parts = []
    for part in text.lower().split("/"):
        kept = re.sub(r"[^a-z0-9._-]+", "-", part).strip("._-")
        parts.append(re.sub(r"([._-])[._-]+", r"\1", kept))
    return "/".join(filter(None, parts))


def tag_of(text: str) -> str:
    """The tag of any text, for example of a quantization: ``Q4_K_M`` → ``q4_k_m``; ``latest`` where nothing is left."""
    tag = "".join(c if c.isalnum() or c in "._-" else "-" for c in text.lower()).strip("-.")
    return tag[:60] if tag.isascii() and tag else DEFAULT_TAG
