"""Login and logout: credentials are proved to the registry, then written where docker and podman look for them.

All other keys of the file stay as they are; it is replaced in one step, readable for this user only. Where the file
names a credential helper, the helper keeps the secret and the file only says for which registry.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.locks import locked
from homelab_llm.store.oci.auth import auth_files, keys_of, read_auth_file
from homelab_llm.store.oci.client import open_registry
from homelab_llm.store.oci.credentials import Credentials, host_of_key, is_text
from homelab_llm.store.oci.helpers import erase_by, helper_for, store_by
from homelab_llm.store.oci.hosts import registry_host
from homelab_llm.store.oci.replies import refusal
from homelab_llm.store.oci.tokens import basic
from homelab_llm.store.settings import PullSettings

_TOKEN_USER = "<token>"  # noqa: S105 — as docker writes it beside an identity token


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """``place``: the file, or the helper, that keeps the credentials. ``asked``: whether the registry wanted any."""

    registry: str
    place: str
    asked: bool


def log_in(host: str, credentials: Credentials, settings: PullSettings) -> LoggedIn:
    """Prove credentials to a registry and keep them; blocks. Nothing is kept that it does not take.

    Raises:
        SourceDenied: it does not take them. SourceUnavailable, SourceNotFound: there is no registry.
        InvalidInput: not a host, or not a name; the file or the helper does not keep them.
    """
    name = registry_host(host, settings.registries).name
    if not is_text(credentials.username) or ":" in credentials.username or not credentials.username.isprintable():
        raise InvalidInput(
            "not the name of an account: it has a colon, or characters that cannot be sent",
            hint=f"mlxctl login {name} --user NAME",
            field="user",
        )
    asked = _prove(host, credentials, settings)
    return LoggedIn(name, _keep(name, credentials, settings.environ), asked)


def log_out(host: str, settings: PullSettings) -> list[str]:
    """Forget the credentials of a registry in all files and helpers; where they were.

    Raises:
        InvalidInput: not a host; a file or helper cannot be asked.
    """
    name = registry_host(host, settings.registries).name
    places: list[str] = []
    for path in auth_files(settings.environ):
        if read_auth_file(path) is None:
            continue
        with _changing(path) as document:
            entries = document.get("auths")
            entries = entries if isinstance(entries, dict) else {}
            keys = [key for key in entries if key in keys_of(name) or host_of_key(key) in keys_of(name)]
            for key in keys:
                del entries[key]
            for key in keys_of(name):
                if helper := helper_for(document, key):
                    erase_by(helper, key, settings.environ)
        places += [str(path)] * bool(keys)
    return places


def _prove(host: str, credentials: Credentials, settings: PullSettings) -> bool:
    with open_registry(host, settings, credentials=credentials) as client:
        client.check()
        if client.credentials is not None:
            return True
        if credentials.password:  # it lets anybody in here: see at least that it does not mind these
            shown = {"authorization": basic(credentials)}
            reply = client.http.exchange("GET", f"{client.own}/v2/", headers=shown)
            if reply.status != 200:
                raise refusal(reply, client.host.name, "access")
        return False


def _keep(name: str, credentials: Credentials, environ: Mapping[str, str]) -> str:
    path = _file_to_write(environ)
    key = name if path.name == "auth.json" else keys_of(name)[0]
    with _changing(path) as document:
        entries = document.setdefault("auths", {})
        if not isinstance(entries, dict):
            raise InvalidInput(f"{path} has auths of another kind", hint="mend it, or move it away")
        if helper := helper_for(document, key):
            store_by(helper, key, credentials, environ)
            entries[key] = {}
            return f"docker-credential-{helper}"
        entries[key] = _entry(credentials)
    return str(path)


def _entry(credentials: Credentials) -> dict[str, str]:
    pair = f"{credentials.username or _TOKEN_USER}:{credentials.password}".encode()
    entry = {"auth": base64.b64encode(pair).decode()}
    return entry | ({"identitytoken": credentials.identity_token} if credentials.identity_token else {})


def _file_to_write(environ: Mapping[str, str]) -> Path:
    """The file that the operator named; else the first there is; else docker's."""
    files = auth_files(environ)
    if not files:
        raise InvalidInput("there is no place for credentials", hint="set HOME or REGISTRY_AUTH_FILE")
    if environ.get("REGISTRY_AUTH_FILE") or environ.get("DOCKER_CONFIG"):
        return files[0]
    return next((path for path in files if path.exists()), files[0])


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """The file's document to be changed in the block; written afterwards when it was."""
    path = path.resolve()  # a link stays one
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(path.with_name(f".{path.name}.lock")):
            document = read_auth_file(path) or {}
            before = json.dumps(document)
            yield document
            if json.dumps(document) != before:
                write_atomic(path, (json.dumps(document, indent="\t") + "\n").encode(), mode=0o600)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}", field="registry") from error
