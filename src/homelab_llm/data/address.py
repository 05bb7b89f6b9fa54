"""Address: where the system database is, from the setting ``data.url``. Standard library only.

(empty)                                     SQLite in HOME/system.db
sqlite:////srv/llm/system.db                SQLite elsewhere; four slashes: an absolute path
postgresql://user@host/name?schema=llm      PostgreSQL; everything but ``schema`` is libpq's
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from homelab_llm.core.errors import InvalidInput

Dialect = Literal["sqlite", "postgresql"]
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Address:
    """A database. ``path`` is its file with SQLite; ``url`` is libpq's with PostgreSQL and never shown.

    ``schema`` is the PostgreSQL schema, empty for the one of the connection.
    """

    dialect: Dialect
    path: Path = Path()
    url: str = field(default="", repr=False)
    schema: str = ""

    @classmethod
    def of(cls, url: str, sqlite_path: Path) -> Address:
        """The database of a setting.

        Raises:
            InvalidInput: neither ``sqlite:///…`` nor ``postgresql://…``; the message does not repeat the text.
        """
        if not url:
            return cls("sqlite", path=sqlite_path)
        if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
            return cls("sqlite", path=Path(unquote(url.removeprefix("sqlite:///"))).absolute())
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in _SCHEMES:
            raise _unusable("it begins neither with postgresql:// nor with sqlite:///")
        asked = parts.query.split("&")  # not decoded: libpq has rules of its own
        schema = next((option.removeprefix("schema=") for option in asked if option.startswith("schema=")), "")
        if schema and not _SCHEMA.fullmatch(schema):
            raise _unusable("a schema is lower-case letters, digits and _")
        query = "&".join(option for option in asked if option and not option.startswith("schema="))
        url = f"postgresql://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")
        return cls("postgresql", url=url, schema=schema)

    def hide(self, text: str) -> str:
        """``text`` without this address's password."""
        secrets = {value for name, value in parse_qsl(urlsplit(self.url).query) if name == "password"}
        if password := urlsplit(self.url).password:
            secrets |= {password, unquote(password)}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def __str__(self) -> str:
        """For people; without user, password and options."""
        if self.dialect == "sqlite":
            return str(self.path)
        parts = urlsplit(self.url)
        where = parts.netloc.rpartition("@")[2] or "local"
        return f"postgresql://{where}{parts.path}" + (f"?schema={self.schema}" if self.schema else "")


def _unusable(reason: str) -> InvalidInput:
    return InvalidInput(
        f"not a database address: {reason}",
        hint="write postgresql://user@host/name, sqlite:////path, or nothing for SQLite in HOME/system.db",
        field="data.url",
    )
