"""Credentials of a registry, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeGuard


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token that stands for both."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def host_of_key(key: str) -> str:
    """``https://registry.example/v2/`` → ``registry.example``; anything else as it is."""
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            return key.removeprefix(scheme).partition("/")[0]
    return key


def is_text(value: Any) -> TypeGuard[str]:
    """Whether it is text that can be sent; JSON also has halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
