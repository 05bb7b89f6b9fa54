"""Keys: API keys, hashed at rest, shared by the daemon and the command line.

A token is ``hl-`` and 43 characters of 256 random bits, so a plain SHA-256 is enough: there is nothing to guess.
Asking about a token touches memory only. While a ``KeyRing`` is open, a thread sees within half a second what another
process changed; a database that cannot be reached then changes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, select

from homelab_llm.core.atomic import publish
from homelab_llm.core.errors import AlreadyExists, DatabaseUnavailable, InvalidInput, InvalidSettings, KeyNotFound
from homelab_llm.core.keys import KeyGrant, Priority
from homelab_llm.core.locks import locked
from homelab_llm.core.names import parse_slug
from homelab_llm.data.database import Database
from homelab_llm.data.tables import key_meta
from homelab_llm.data.tables import keys as table

log = logging.getLogger(__name__)

SCOPES = ("inference", "admin")
LOOK_S = 0.5
_MAX_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept. ``hint`` are the token's last four characters, to tell keys apart."""

    name: str
    scopes: tuple[str, ...]
    sha256: str
    hint: str
    created_unix_s: float
    priority: Priority = "interactive"


_List = list[Key]  # ``list`` is a method below


class KeyRing:
    """The keys of one database. Looks for changes twice a second: by itself while open, else when it is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._revision = -1
        self._looked_s = float("-inf")
        self._keys: tuple[Key, ...] = ()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Read the keys and look for changes from now on; a second call does nothing.

        Raises:
            DatabaseUnavailable: they cannot be read.
        """
        if self._thread is None:
            self._look()
            self._ending.clear()
            self._thread = threading.Thread(target=self._watch, name="keys", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop looking; the database stays open."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def create(self, name: str, scopes: Iterable[str] = ("inference",), *, priority: Priority = "interactive") -> str:
        """Make a key and return its token, which is never shown again.

        Raises:
            InvalidName: not a slug.
            InvalidInput: an unknown scope or priority, or no scope.
            AlreadyExists: the name is taken.
            DatabaseUnavailable: it cannot be written.
        """
        parse_slug(name, what="key name")
        chosen = tuple(scope for scope in SCOPES if scope in set(scopes))
        if not chosen or set(scopes) - set(SCOPES):
            raise InvalidInput("a key's scopes are inference and admin", field="scopes")
        if priority not in ("interactive", "batch"):
            raise InvalidInput("a key's priority is interactive or batch", field="priority")
        token = "hl-" + secrets.token_urlsafe(32)
        with self._database.write() as connection:
            if name in _names(connection):
                raise AlreadyExists(f"a key named {name} exists", hint=f"mlxctl key revoke {name}")
            _insert(connection, [Key(name, chosen, _hash(token), token[-4:], time.time(), priority)])
        self._look()
        return token

    def revoke(self, name: str) -> None:
        """Remove a key.

        Raises:
            KeyNotFound: there is none of that name.
            DatabaseUnavailable: it cannot be written.
        """
        with self._database.write() as connection:
            if connection.execute(table.delete().where(table.c.name == name)).rowcount == 0:
                raise KeyNotFound("no key of that name", hint="mlxctl key list")
            _count_change(connection)
        self._look()

    def list(self) -> tuple[Key, ...]:
        """All keys, in order of creation.

        Raises:
            DatabaseUnavailable: they cannot be read.
        """
        self._look()
        return self._keys

    def any(self) -> bool:
        """Whether at least one key exists."""
        self._look_again()
        return bool(self._keys)

    def check(self, token: str) -> KeyGrant | None:
        """The grant of a token, or None; every key is compared, in constant time."""
        self._look_again()
        if len(token) > _MAX_TOKEN or not token.isascii():
            return None
        digest = _hash(token).encode()
        found: KeyGrant | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256.encode(), digest):
                found = KeyGrant(key.name, frozenset(key.scopes), key.priority)
        return found

    def import_file(self, path: Path) -> int:
        """Take over the keys of an earlier version's ``keys.json``, once; the file is then ``keys.json.imported``.

        Returns how many were taken over. A name that the database has already is left as it is there.

        Raises:
            InvalidSettings: the file is damaged; it is left as it is.
            DatabaseUnavailable: they cannot be written.
        """
        if not path.exists():
            return 0
        with locked(path.with_name(f".{path.name}.lock"), wait_s=10):
            if not path.exists():
                return 0
            with self._database.write() as connection:
                known = _names(connection)
                missing = [key for key in _read_file(path) if key.name not in known]
                _insert(connection, missing)
            publish(path, path.with_name(f"{path.name}.imported"))
        self._look()
        return len(missing)

    def _look_again(self) -> None:
        """Look, if nobody else does and the last look is long ago; an unreachable database changes nothing."""
        now_s = time.monotonic()
        if self._thread is None and now_s - self._looked_s > LOOK_S:
            with contextlib.suppress(DatabaseUnavailable):
                self._look()
            self._looked_s = now_s

    def _look(self) -> None:
        with self._database.read() as connection:
            revision = connection.execute(select(key_meta.c.revision)).scalar_one()
            if revision != self._revision:
                rows = connection.execute(select(table).order_by(table.c.created_unix_s, table.c.name))
                self._keys = tuple(_key(row) for row in rows.mappings())
                self._revision = revision

    def _watch(self) -> None:
        reachable = True
        while not self._ending.wait(LOOK_S):
            try:
                self._look()
                reachable = True
            except DatabaseUnavailable as error:
                if reachable:
                    log.warning("keys cannot be looked up; those known stay valid", extra={"reason": error.message})
                reachable = False


def _names(connection: Connection) -> set[str]:
    return set(connection.execute(select(table.c.name)).scalars())


def _insert(connection: Connection, new: Iterable[Key]) -> None:
    for key in new:
        connection.execute(
            table.insert().values(
                name=key.name,
                scopes=",".join(key.scopes),
                priority=key.priority,
                sha256=key.sha256,
                hint=key.hint,
                created_unix_s=key.created_unix_s,
            )
        )
    _count_change(connection)


def _count_change(connection: Connection) -> None:
    connection.execute(key_meta.update().values(revision=key_meta.c.revision + 1))


def _key(row: Any) -> Key:
    priority = cast("Priority", row["priority"])
    scopes = tuple(str(row["scopes"]).split(","))
    return Key(row["name"], scopes, row["sha256"], row["hint"], row["created_unix_s"], priority)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _read_file(path: Path) -> _List:
    try:
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if told["version"] != 1:
            raise InvalidSettings(f"{path.name} was written by a newer version", file=str(path), key="version")
        return [Key(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in told["keys"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSettings(
            f"{path.name} is damaged", hint="restore it, or remove it and create new keys", file=str(path)
        ) from error
