"""Keys: API keys in ``HOME/keys.json``, hashed at rest, shared by the daemon and the command line.

A token is ``hl-`` and 43 characters of 256 random bits, so a plain SHA-256 is enough: there is nothing to guess.
Every change holds one lock over reading, changing and writing. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.errors import AlreadyExists, InvalidInput, InvalidSettings, KeyNotFound
from homelab_llm.core.locks import locked
from homelab_llm.core.names import parse_slug
from homelab_llm.gateway.seams import KeyGrant

SCOPES = ("inference", "admin")
_LOOK_S = 0.5
_MAX_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept. ``hint`` are the token's last four characters, to tell keys apart."""

    name: str
    scopes: tuple[str, ...]
    sha256: str
    hint: str
    created_unix_s: float


_List = list[Key]  # ``list`` is a method below


class KeyFile:
    """The keys of one home. Reads the file again when it has changed, looking at most twice a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._looked_s = float("-inf")
        self._keys: tuple[Key, ...] = ()

    def create(self, name: str, scopes: Iterable[str] = ("inference",)) -> str:
        """Make a key and return its token, which is never shown again.

        Raises:
            InvalidName: not a slug.
            InvalidInput: an unknown scope, or none.
            AlreadyExists: the name is taken.
        """
        parse_slug(name, what="key name")
        chosen = tuple(scope for scope in SCOPES if scope in set(scopes))
        if not chosen or set(scopes) - set(SCOPES):
            raise InvalidInput("a key's scopes are inference and admin", field="scopes")
        token = "hl-" + secrets.token_urlsafe(32)
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise AlreadyExists(f"a key named {name} exists", hint=f"mlxctl key revoke {name}")
            keys.append(Key(name, chosen, _hash(token), token[-4:], time.time()))
        return token

    def revoke(self, name: str) -> None:
        """Remove a key.

        Raises:
            KeyNotFound: there is none of that name.
        """
        with self._changing() as keys:
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise KeyNotFound("no key of that name", hint="mlxctl key list")
            keys[:] = left

    def list(self) -> tuple[Key, ...]:
        """All keys, in order of creation.

        Raises:
            InvalidSettings: the file is damaged.
        """
        self._load()
        return self._keys

    def any(self) -> bool:
        """Whether at least one key exists."""
        return bool(self.list())

    def check(self, token: str) -> KeyGrant | None:
        """The grant of a token; every key is compared, in constant time. None also while the file is damaged."""
        now_s = time.monotonic()
        if now_s - self._looked_s > _LOOK_S:
            try:
                self._load()
            except InvalidSettings:
                self._keys = ()
            self._looked_s = now_s
        if len(token) > _MAX_TOKEN or not token.isascii():
            return None
        digest = _hash(token)
        found: KeyGrant | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = KeyGrant(key.name, frozenset(key.scopes))
        return found

    def _load(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, ()
            return
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamp:
            self._keys = tuple(_read(self._path))
            self._stamp = stamp

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_List]:
        """The list of keys, locked; what it is at the end of the block is written."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self._path.with_name(f".{self._path.name}.lock"), wait_s=10):
            keys = _read(self._path) if self._path.exists() else []
            yield keys
            told = {"version": 1, "keys": [asdict(key) for key in keys]}
            write_atomic(self._path, json.dumps(told, indent=2).encode() + b"\n", mode=0o600)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _read(path: Path) -> list[Key]:
    try:
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if told["version"] != 1:
            raise InvalidSettings(f"{path.name} was written by a newer version", file=str(path), key="version")
        return [Key(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in told["keys"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSettings(
            f"{path.name} is damaged", hint="restore it, or remove it and create new keys", file=str(path)
        ) from error
