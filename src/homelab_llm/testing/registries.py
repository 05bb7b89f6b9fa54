"""Registries to test against: Debian's real ``docker-registry`` on a loopback port, with storage of its own.

``registry_front.py`` has what stands in front of one: a server that gives out tokens, and one that fails on command.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

USER, PASSWORD = "tester", "correct horse"
_HTPASSWD = f"{USER}:$2b$04$bVsFLzYwdQpWn4yJiQVRGOKSnyLuXmMiEMmh9yuOB6v0uF499wJAu\n"
_LISTENING = re.compile(r"listening on \S*?:(\d+)")
_STARTS_WITHIN_S = 30.0


@dataclass(slots=True)
class Registry:
    """A running registry; a context manager. Deleting is allowed, nothing is kept afterwards.

    Args:
        password: whether it wants ``USER`` and ``PASSWORD`` (Basic).
    """

    password: bool = False
    port: int = field(default=0, init=False)
    _folder: str = field(default="", init=False, repr=False)
    _process: subprocess.Popen[str] | None = field(default=None, init=False, repr=False)
    _reader: threading.Thread | None = field(default=None, init=False, repr=False)
    _said: list[str] = field(default_factory=list, init=False, repr=False)

    def __enter__(self) -> Registry:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
        self._folder = tempfile.mkdtemp(prefix="hl-registry-", dir=memory)
        config = Path(self._folder) / "config.yml"
        config.write_text(self._config())
        program = shutil.which("docker-registry")
        if program is None:
            raise RuntimeError("docker-registry is not installed: apt-get install docker-registry")
        self._process = subprocess.Popen(
            [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={}
        )
        listening = threading.Event()
        self._reader = threading.Thread(target=self._listen, args=(listening,), daemon=True)
        self._reader.start()
        if not listening.wait(_STARTS_WITHIN_S) or not self.port:
            self.__exit__(None, None, None)
            raise RuntimeError(f"docker-registry did not start: {self._said[-3:]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._reader is not None:
            self._reader.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def host(self) -> str:
        """What stands after ``oci://``."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self.host}"

    @property
    def storage(self) -> Path:
        """Where it keeps what was pushed, ``docker/registry/v2/…``."""
        return Path(self._folder) / "storage"

    def blobs(self) -> set[str]:
        """The hex digests of all blobs it keeps."""
        return {path.parent.name for path in self.storage.glob("docker/registry/v2/blobs/sha256/*/*/data")}

    def tags(self, repository: str) -> dict[str, str]:
        """The tags of a repository and the digests they mean, as its storage has them."""
        links = self.storage.glob(f"docker/registry/v2/repositories/{repository}/_manifests/tags/*/current/link")
        return {link.parent.parent.name: link.read_text().strip() for link in links}

    def _config(self) -> str:
        lines = [
            "version: 0.1",
            "log: {level: info, accesslog: {disabled: true}}",
            "storage:",
            f"  filesystem: {{rootdirectory: {self.storage}}}",
            "  delete: {enabled: true}",
            "  maintenance: {uploadpurging: {enabled: false}}",
            'http: {addr: "127.0.0.1:0", secret: one-test}',
        ]
        if self.password:
            users = Path(self._folder) / "htpasswd"
            users.write_text(_HTPASSWD)
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {users}}}}}")
        return "\n".join(lines) + "\n"

    def _listen(self, listening: threading.Event) -> None:
        assert self._process is not None and self._process.stderr is not None  # noqa: S101
        with self._process.stderr as lines:
            for line in lines:
                if not listening.is_set():
                    self._said.append(line[:300])
                    if found := _LISTENING.search(line):
                        self.port = int(found[1])
                        listening.set()
        listening.set()
