"""Upgrade: the daemon's and the command line's way to a database of the newest schema.

One cheap read tells whether anything is to be done. A new SQLite file is made at once (``data/creation.py``); else a
program of its own does the work (``data/migrate.py``) while the caller goes on. Imports neither SQLAlchemy nor Alembic.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from homelab_llm.core.errors import DatabaseUnavailable, DeadlineExceeded, HomelabError, error_classes
from homelab_llm.data.address import Address
from homelab_llm.data.creation import created
from homelab_llm.data.schema import is_current

WAIT_S = 600.0


class Upgrade:
    """A migration that runs in a process of its own."""

    def __init__(self, address: Address, process: subprocess.Popen[bytes]) -> None:
        self._address = address
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float = WAIT_S) -> None:
        """Wait for the end; blocks.

        Raises:
            HomelabError: as the migration says (``SchemaTooNew``, ``DatabaseUnavailable``, ``StoreBusy``).
            DeadlineExceeded: it still runs; it was left alone.
        """
        try:
            _, said = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(
                f"the migration of {self._address} still runs (pid {self.pid})", hint="try again", limit_s=timeout_s
            ) from error
        if self._process.returncode != 0:
            raise _error(self._address, self._process.returncode, said.decode("utf-8", "replace"))


def begin_upgrade(home_root: Path, url: str) -> Upgrade | None:
    """Start what is needed for the newest schema; None when nothing is, or not any more.

    Args:
        url: the setting ``data.url``; a copy of an old database goes to ``home_root/backups`` first.

    Raises:
        SchemaTooNew: a newer version of this product wrote the database.
        DatabaseUnavailable: it is there and cannot be read.
        InvalidInput: not an address of a database.
    """
    address = Address.of(url, home_root / "system.db")
    if is_current(address) or (address.dialect == "sqlite" and created(address)):
        return None
    home_root.mkdir(parents=True, exist_ok=True, mode=0o700)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "homelab_llm.data.migrate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if process.stdin is not None:  # on standard input, because the URL may hold a password
        with contextlib.suppress(BrokenPipeError):  # it has ended already: wait() says why
            process.stdin.write(json.dumps({"url": url, "home_root": str(home_root)}).encode())
            process.stdin.close()
        process.stdin = None
    return Upgrade(address, process)


def upgraded(home_root: Path, url: str) -> bool:
    """Bring the database to the newest schema and wait; whether anything was done. Raises as both steps."""
    if is_current(Address.of(url, home_root / "system.db")):
        return False
    upgrade = begin_upgrade(home_root, url)
    if upgrade is not None:
        upgrade.wait()
    return True


def _error(address: Address, code: int, said: str) -> HomelabError:
    """The child's last words as an error; what is no error of ours is quoted."""
    last = said.strip().splitlines()[-1:] or [""]
    try:
        told = json.loads(last[0])
        kind = next(found for found in error_classes() if found.code == told["code"])
        return kind(told["message"], hint=told["hint"], **told["facts"])
    except (ValueError, KeyError, TypeError, StopIteration):
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed (exit code {code})"
        reason = f": {address.hide(last[0])[:300]}" if last[0] else ""
        return DatabaseUnavailable(
            f"the migration of {address} {ended}{reason}",
            hint="start again; the database is as it was before, or finished",
        )
