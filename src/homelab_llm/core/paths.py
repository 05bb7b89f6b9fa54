"""Paths: where this product keeps things. Everything below one root, ``HOMELAB_HOME``.

HOME/config.yaml        settings, hand-edited
HOME/system.db          registry, slots, keys, events, requests (SQLite; or PostgreSQL by URL)
HOME/backups/           copies of the database, made before each migration
HOME/keys.json          API keys of an earlier version; taken over into the database once
HOME/store/             models: an OCI image layout
HOME/derived/           conversions, rebuildable
HOME/run/               daemon.json, locks
HOME/logs/              daemon.log, workers/<id>.log
HOME/chat_history           lines typed in a chat
<runtime>/hl-<8 hex>/   sockets: daemon.sock, <id>.http, <id>.ctl (paths end at 104 bytes on macOS)
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from homelab_llm.core.errors import Denied

APP = "homelab-llm"


def default_home(environ: Mapping[str, str]) -> Path:
    """``HOMELAB_HOME``, else the platform's data folder."""
    if given := environ.get("HOMELAB_HOME"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / APP
    return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / APP


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder in which Hugging Face's tools keep repositories; it need not exist."""
    if given := environ.get("HF_HUB_CACHE"):
        return Path(given).expanduser().absolute()
    base = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(base).expanduser().absolute() / "hub"


@dataclass(frozen=True, slots=True)
class Home:
    """The data root and everything with a fixed place in it. Creates nothing until asked."""

    root: Path
    runtime: Path

    @classmethod
    def at(cls, root: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Home:
        """The home at ``root``, or the default one of this environment."""
        env = os.environ if environ is None else environ
        chosen = (root or default_home(env)).expanduser().absolute()
        return cls(chosen, runtime_folder(chosen, env))

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def keys(self) -> Path:
        return self.root / "keys.json"

    @property
    def database(self) -> Path:
        return self.root / "system.db"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def derived(self) -> Path:
        return self.root / "derived"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def worker_logs(self) -> Path:
        return self.logs / "workers"

    @property
    def daemon_json(self) -> Path:
        return self.run / "daemon.json"

    @property
    def daemon_lock(self) -> Path:
        return self.run / "daemon.lock"

    @property
    def daemon_sock(self) -> Path:
        return self.runtime / "daemon.sock"

    def ensure(self) -> Home:
        """Create the folders; the runtime folder is private and its owner is checked.

        Raises:
            Denied: the runtime folder belongs to somebody else or is open to others.
        """
        for folder in (self.root, self.derived, self.run, self.logs, self.worker_logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.runtime.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise Denied(
                f"{self.runtime} is not a private folder of this user",
                hint=f"remove it, or set XDG_RUNTIME_DIR to a folder of your own: rm -r {self.runtime}",
            )
        return self


def runtime_folder(root: Path, environ: Mapping[str, str]) -> Path:
    """The short, private folder for the sockets of the home at ``root``."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    base = environ.get("XDG_RUNTIME_DIR", "")
    if base and len(os.fsencode(base)) <= 70 and Path(base).is_dir():
        return Path(base) / f"hl-{name}"
    return Path("/tmp") / f"hl-{os.getuid()}-{name}"  # noqa: S108 — 0700 and owner checked in ensure()
