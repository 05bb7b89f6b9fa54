"""Credential helpers: programs ``docker-credential-NAME`` that keep secrets for docker and podman.

They are asked by one word (``get``, ``store``, ``erase``) and told the rest on standard input, never on their
command line. Source: docker-credential-helpers.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any, Literal

from homelab_llm.core.errors import InvalidInput
from homelab_llm.store.oci.credentials import Credentials, host_of_key, is_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TOKEN_USER = "<token>"  # noqa: S105 — says that the secret is an identity token
_PATIENCE_S = 30.0


def helper_for(document: Mapping[str, Any], key: str) -> str:
    """The helper that a file names for one registry, or for all; empty when it names none.

    Raises:
        InvalidInput: what it names cannot be the name of a program.
    """
    special = document.get("credHelpers")
    name = special.get(host_of_key(key)) if isinstance(special, dict) else None
    name = name or document.get("credsStore") or ""
    if name and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidInput("the credential helper of the docker configuration has a name that cannot be a program's")
    return str(name)


def stored_by(helper: str, key: str, environ: Mapping[str, str]) -> Credentials | None:
    """What the helper keeps for ``key``.

    Raises:
        InvalidInput: the helper is not installed, fails, or does not answer in time.
    """
    answer = _ask(helper, "get", key.encode(), environ)
    if answer is None:
        return None
    try:
        document = json.loads(answer)
        username, secret = document.get("Username", ""), document["Secret"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"docker-credential-{helper} answered something else than credentials") from error
    if not is_text(username) or not is_text(secret) or not secret:
        return None
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)


def store_by(helper: str, key: str, credentials: Credentials, environ: Mapping[str, str]) -> None:
    """Have the helper keep them; raises as ``stored_by``."""
    document = {
        "ServerURL": key,
        "Username": _TOKEN_USER if credentials.identity_token else credentials.username,
        "Secret": credentials.identity_token or credentials.password,
    }
    _ask(helper, "store", json.dumps(document).encode(), environ)


def erase_by(helper: str, key: str, environ: Mapping[str, str]) -> None:
    """Have the helper forget them; raises as ``stored_by``."""
    _ask(helper, "erase", key.encode(), environ)


def _ask(helper: str, word: Literal["get", "store", "erase"], told: bytes, environ: Mapping[str, str]) -> bytes | None:
    """What it answers; None when it has no such credentials. Its own words on errors are not shown: secrets, maybe."""
    program = shutil.which(f"docker-credential-{helper}", path=environ.get("PATH"))
    if program is None:
        raise InvalidInput(
            f"the docker configuration wants docker-credential-{helper}, which is not installed",
            hint="install it, or remove credsStore / credHelpers from the file",
        )
    try:
        done = subprocess.run(
            [program, word], input=told, env=dict(environ), capture_output=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"docker-credential-{helper} {word} did not answer") from error
    if done.returncode == 0:
        return done.stdout
    if b"not found" in done.stdout + done.stderr:
        return None
    raise InvalidInput(f"docker-credential-{helper} {word} failed with exit code {done.returncode}")
