"""ModelSpec: what a model shall be made of, as a value. Pure. YAML and a Modelfile are two ways to write one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.errors import InvalidModelSpec

MAX_SPEC_BYTES = 1 << 20
MAX_SHORT_CHARACTERS = 512
MAX_LONG_CHARACTERS = 512 << 10
MAX_MESSAGES = 256
MAX_METADATA = 64
MAX_METADATA_CHARACTERS = 1000
MAX_ADAPTERS = 16
ROLES = ("system", "user", "assistant")
_REQUIRES = re.compile(
    r"(?:(homelab-llm|ollama)\s*)?(?:>=\s*)?v?(\d{1,6}(?:\.\d{1,6}){0,2}(?:[-+][0-9A-Za-z.+-]{1,60})?)"
)
_METADATA_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a model shall be made of; empty = as the base has it.

    ``base`` is a name of the store, a reference as ``pull`` takes it, or a path beside the file. ``template`` is a
    chat template (Jinja or Go), the path of one, or a name of the catalogue. ``parameters`` have the names and types
    of ``core/parameters.py``, without ``stop``. ``adapters`` are names of the store, references or paths. ``licence``
    is a short name, a text, or a path. ``requires`` is like ``homelab-llm>=0.1``.
    """

    base: str
    name: str = ""
    revision: str = ""
    quantization: str = ""
    template: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    stop: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    tool_call_parser: str = ""
    reasoning_parser: str = ""
    adapters: tuple[str, ...] = ()
    licence: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    requires: str = ""


def fault(message: str, *, line: int = 0, name: str = "", hint: str = "") -> InvalidModelSpec:
    """The error of a spec; ``line`` counts from 1, 0 = unknown."""
    where = f"line {line}: " if line else ""
    return InvalidModelSpec(where + message, hint=hint, line=line, field=name)


def shown(text: str) -> str:
    """``text`` shortened and escaped, fit to be repeated in an error."""
    return text[:60].encode("unicode_escape").decode("ascii")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or empty."""
    close = difflib.get_close_matches(name[:60].lower(), [*known], 1)
    return f"; did you mean {close[0]}?" if close else ""


def check_requires(text: str, *, line: int = 0, program: str = "homelab-llm") -> str:
    """``>=0.1`` → ``homelab-llm>=0.1``.

    Args:
        program: which one is meant where the text names none.

    Raises:
        InvalidModelSpec: not a least version.
    """
    found = _REQUIRES.fullmatch(text.strip())
    if found is None:
        raise fault(
            f"requires must be a least version, not {shown(text)!r}",
            line=line,
            name="requires",
            hint="requires: homelab-llm>=0.1",
        )
    return f"{found[1] or program}>={found[2]}"


def check_metadata_key(key: str, *, line: int = 0) -> None:
    """See that a key of ``metadata`` is one word.

    Raises:
        InvalidModelSpec: it is not.
    """
    if not _METADATA_KEY.fullmatch(key):
        raise fault(f"{shown(key)!r} is not a key of metadata", line=line, name="metadata", hint="use one word")


def check_length(text: str, limit: int, *, line: int = 0, name: str) -> str:
    """The text, if it is not empty, not too long, and has no NUL.

    Raises:
        InvalidModelSpec: it is.
    """
    if not text.strip():
        raise fault(f"{name} is empty", line=line, name=name, hint=f"leave {name} out")
    if len(text) > limit or "\0" in text:
        raise fault(f"{name} must be at most {limit} characters, without NUL", line=line, name=name)
    return text
