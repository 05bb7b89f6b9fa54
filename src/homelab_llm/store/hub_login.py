"""Login to Hugging Face's hub: the token is proved, then kept where the hub's own tools keep it."""

from __future__ import annotations

import json
from pathlib import Path

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.errors import InvalidInput, SourceDenied, SourceUnavailable
from homelab_llm.core.http import HttpClient
from homelab_llm.core.urls import UrlPolicy, origin_of
from homelab_llm.store.settings import DEFAULT_HUB, PullSettings
from homelab_llm.store.sources.huggingface import hub_token_path

_NAMES = frozenset({"huggingface.co", "hf.co", "www.huggingface.co"})


def is_hub(host: str, settings: PullSettings) -> bool:
    """Whether a host is the hub: Hugging Face's, or the one that was set."""
    own = origin_of(settings.hub)
    return host.lower() in _NAMES or host.lower() in {own.host, f"{own.host}:{own.port}"}


def log_in_to_hub(token: str, settings: PullSettings) -> tuple[str, Path]:
    """Ask the hub whose token it is, and keep it; blocks.

    Returns:
        The account's name, and the file.

    Raises:
        SourceDenied: the hub does not know it. SourceUnavailable.
        InvalidInput: not a token, or the file cannot be written.
    """
    if not token.isascii() or not token.isprintable() or " " in token or not 0 < len(token) <= 500:
        raise InvalidInput("that is not a token", hint="tokens are made at huggingface.co/settings/tokens")
    account = _account(token, settings)
    try:
        path = hub_token_path(settings.environ).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, token.encode(), mode=0o600)
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"the token cannot be kept: {error}", hint="set HF_TOKEN_PATH") from error
    return account, path


def log_out_of_hub(settings: PullSettings) -> list[str]:
    """Forget the token; where it was."""
    try:
        path = hub_token_path(settings.environ)
        path.unlink()
    except FileNotFoundError:
        return []
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"the token cannot be forgotten: {error}") from error
    return [str(path)]


def _account(token: str, settings: PullSettings) -> str:
    policy = UrlPolicy(settings.allow_private_hosts)
    if settings.hub != DEFAULT_HUB:
        policy = policy.with_trusted([origin_of(settings.hub)])
    with HttpClient(policy, settings.limits, settings.environ) as http:
        shown = {"authorization": f"Bearer {token}"}
        reply = http.exchange("GET", f"{settings.hub}/api/whoami-v2", headers=shown, limit_bytes=1 << 20)
    if reply.status in {401, 403}:
        raise SourceDenied("the hub does not know this token", hint="make one at huggingface.co/settings/tokens")
    try:
        name = json.loads(reply.content)["name"] if reply.status == 200 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str):
        raise SourceUnavailable(f"the hub answered {reply.status} and did not say whose token it is")
    return "".join(c for c in name[:80] if c.isprintable())
