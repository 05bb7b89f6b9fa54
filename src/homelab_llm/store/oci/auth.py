"""Credentials of registries, as docker's and podman's files hold them: read here, written at login and logout.

Their secrets go into no message, log, command line or ``repr``. Whoever asks gets the credentials of one registry.
Sources: docker/cli config file and credential helpers; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.store.oci.credentials import Credentials, host_of_key, is_text
from homelab_llm.store.oci.hosts import DOCKER_HUB

_MAX_FILE_BYTES = 4 << 20
_DOCKER_HUB_KEYS = ("https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io")


def auth_files(environ: Mapping[str, str]) -> list[Path]:
    """The files that may hold credentials, in the order in which they are asked."""
    found = [Path(environ["REGISTRY_AUTH_FILE"])] if environ.get("REGISTRY_AUTH_FILE") else []
    if environ.get("DOCKER_CONFIG"):
        found.append(Path(environ["DOCKER_CONFIG"]) / "config.json")
    home = Path(environ["HOME"]) if environ.get("HOME") else None
    if home:
        found.append(home / ".docker" / "config.json")
    if environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(environ["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    if environ.get("XDG_CONFIG_HOME"):
        found.append(Path(environ["XDG_CONFIG_HOME"]) / "containers" / "auth.json")
    if home:
        found.append(home / ".config" / "containers" / "auth.json")
    return list(dict.fromkeys(found))


def find_credentials(host: str, environ: Mapping[str, str], repository: str = "") -> Credentials | None:
    """The credentials for ``host`` (as ``RegistryHost.name``), those of the longest part of ``repository`` first.

    Raises:
        InvalidInput: a file that cannot be read, or a helper that fails.
    """
    from homelab_llm.store.oci.helpers import helper_for, stored_by

    for path in auth_files(environ):
        document = read_auth_file(path)
        if document is None:
            continue
        entries = document.get("auths")
        entries = entries if isinstance(entries, dict) else {}
        for key in _keys(host, repository):
            if (helper := helper_for(document, key)) and (found := stored_by(helper, key, environ)):
                return found
            if found := _inline(entries.get(key)) or _inline(_spelled_otherwise(entries, key)):
                return found
    return None


def read_auth_file(path: Path) -> dict[str, Any] | None:
    """What the file says, None when there is none.

    Raises:
        InvalidInput: it cannot be read, or is not JSON; its content is not shown.
    """
    try:
        with open(path, "rb", opener=_unblocked) as stream:
            plain = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            content = stream.read(_MAX_FILE_BYTES + 1) if plain else b"null"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}", hint="mend it, or move it away", field="registry"
        ) from error
    try:
        document = json.loads(content or b"{}") if len(content) <= _MAX_FILE_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidInput(f"{path} is not a JSON document with credentials", hint="mend it, or move it away")
    return document


def _unblocked(path: str, flags: int) -> int:
    """Open it so that a FIFO at its place does not wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def keys_of(host: str) -> tuple[str, ...]:
    """What the credentials of a registry may be filed under, the usual one first."""
    return _DOCKER_HUB_KEYS if host == DOCKER_HUB else (host,)


def _keys(host: str, repository: str) -> list[str]:
    parts = repository.split("/") if repository else []
    scoped = [f"{host}/{'/'.join(parts[:depth])}" for depth in range(len(parts), 0, -1)]
    return [*scoped, *keys_of(host)]


def _spelled_otherwise(entries: Mapping[str, Any], key: str) -> Any:
    """An entry filed under an address (``https://host/v2/``) in place of the host."""
    return next((value for name, value in entries.items() if host_of_key(name) == key), None)


def _inline(entry: Any) -> Credentials | None:
    if not isinstance(entry, dict):
        return None
    token = entry.get("identitytoken")
    username, password = entry.get("username"), entry.get("password")
    if isinstance(text := entry.get("auth"), str) and text:
        try:
            username, _, password = base64.b64decode(text, validate=True).decode().rstrip("\0").partition(":")
        except ValueError:
            return None
    name = username if is_text(username) else ""
    if token and is_text(token):
        return Credentials(name, identity_token=token)
    if name and password and is_text(password):
        return Credentials(name, password)
    return None
