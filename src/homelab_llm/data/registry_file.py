"""The exported registry: where ``registry.json`` goes, whether it is still ours, and how it is replaced.

The registry is the truth, the file a copy of it for other programs and for people. Who edits it by hand loses nothing:
a file that is not as we wrote it is kept aside as ``registry.json.edited-TIME`` before a new one takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from homelab_llm.core.atomic import sync_folder, write_atomic
from homelab_llm.core.locks import locked
from homelab_llm.core.paths import Home, default_home, hub_cache
from homelab_llm.core.registry.json_text import MAX_BYTES

FILE_NAME = "registry.json"
LOCK_WAIT_S = 30.0

Step = Literal["nothing", "write", "set aside and write"]


def registry_path(setting: str, home: Home, environ: Mapping[str, str]) -> Path:
    """Where the registry of ``home`` is exported.

    Args:
        setting: ``data.registry_file``; empty for the hub's cache folder, or ``home`` when that is not the default one.
    """
    if setting:
        return Path(setting).expanduser().absolute()
    usual = default_home({name: value for name, value in environ.items() if name != "HOMELAB_HOME"})
    return (hub_cache(environ) if home.root == usual.absolute() else home.root) / FILE_NAME


def sha256(content: bytes) -> str:
    """The digest by which a content is known, in hex."""
    return hashlib.sha256(content).hexdigest()


def next_step(*, found: str, ours: set[str], exported: str, new: str) -> Step:
    """What to do with the file that lies there; all are digests, empty for none. Pure.

    Args:
        found: of the file.
        ours: of contents that may be replaced.
        exported: of what was exported last.
        new: of what the registry says now.
    """
    if found == new:
        return "nothing"
    if found in ("", *ours):
        return "write"
    return "nothing" if exported == new else "set aside and write"


class RegistryFile:
    """One file on this machine. Links are followed, so that a linked file stays a link."""

    def __init__(self, path: Path) -> None:
        self._given = path

    @property
    def path(self) -> Path:
        """Where the file really lies."""
        return Path(os.path.realpath(self._given))

    @property
    def place(self) -> str:
        """``HOST:PATH``; several machines may share one database."""
        return f"{socket.gethostname()}:{self.path}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who replaces it, for the block; makes its folder.

        Raises:
            StoreBusy: another process held it for 30 s.
            OSError: the folder cannot be written.
        """
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock"), wait_s=LOCK_WAIT_S):
            yield

    def read(self) -> bytes | None:
        """Its content, cut just behind what a registry may have; None when there is no file.

        Raises:
            OSError: it cannot be read, or is no plain file.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(handle, "rb") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(f"{self.path} is no plain file")
            return stream.read(MAX_BYTES + 1)

    def write(self, content: bytes) -> None:
        """Replace it in one step, and remove what a process killed at this left. Only inside ``lock``.

        Raises:
            OSError: as the system says; the old file is untouched.
        """
        path = self.path
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        write_atomic(path, content)

    def set_aside(self) -> Path:
        """Give what lies there a second name, ``registry.json.edited-TIME``, and return that.

        Raises:
            OSError: as the system says.
        """
        path = self.path
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        number = 1
        while True:
            aside = path.with_name(f"{path.name}.edited-{stamp}" + (f"-{number}" if number > 1 else ""))
            try:
                os.link(path, aside)
            except FileExistsError:
                number += 1
                continue
            except OSError:  # a file system without links
                shutil.copy2(path, aside)
            sync_folder(path.parent)
            return aside
