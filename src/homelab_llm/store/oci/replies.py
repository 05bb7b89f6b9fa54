"""Replies: what a registry's refusal means, as an error of ours with its own words, bounded and printable. Pure.

Source: OCI distribution-spec, error codes: ``{"errors": [{"code", "message", "detail"}]}``.
"""

from __future__ import annotations

import json
import re

from homelab_llm.core.errors import HomelabError, SourceDenied, SourceNotFound, SourceUnavailable
from homelab_llm.core.http import Reply, retry_after_s

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_CODE = re.compile(r"[A-Z][A-Z_]{0,39}")
_SAID_CHARACTERS = 200


def refusal(reply: Reply, host: str, what: str) -> HomelabError:
    """The error for a reply that is not a success; ``what`` was asked of ``host``."""
    code, message = _said(reply.content)
    words = ": ".join(filter(None, (code, message)))
    said = f" ({words})" if words else ""
    status, source_code = reply.status, code or None
    if status in {401, 403}:
        return SourceDenied(
            f"{host} refuses {what}{said}", hint=f"mlxctl login {host}", status=status, source_code=source_code
        )
    if status in {404, 410}:
        return SourceNotFound(
            f"{host} does not have {what}{said}",
            hint="check name and tag",
            status=status,
            source_code=source_code,
        )
    if status in RETRIED or (status >= 500 and status != 501):
        return SourceUnavailable(
            f"{host} answered {status} to {what}{said}",
            hint="try again later",
            status=status,
            retry_after_s=retry_after_s(reply.headers.get("retry-after", "")),
            source_code=source_code,
        )
    if 300 <= status < 400:
        return SourceDenied(f"{host} sends {what} elsewhere, where it may not go", status=status)
    return SourceDenied(f"{host} does not accept {what}: {status}{said}", status=status, source_code=source_code)


def _said(content: bytes) -> tuple[str, str]:
    """Code and message of the first error, made safe to show; empty where the body says nothing in that form."""
    try:
        first = json.loads(content[:65_536])["errors"][0]
        code, message = first.get("code", ""), first.get("message", "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", ""
    code = code if isinstance(code, str) and _CODE.fullmatch(code) else ""
    message = message if isinstance(message, str) else ""
    shown = "".join(c if c.isprintable() else " " for c in message[:_SAID_CHARACTERS])
    return code, " ".join(shown.split())
