"""SIGHUP: read the settings again, apply the log level, and say what else changed and needs a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.settings import Section, Settings

log = logging.getLogger(__name__)
_LIVE = frozenset({"log.level"})


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """``section.key`` of every value that differs."""
    found: list[str] = []
    for section in Settings.model_fields:
        before: Section = getattr(old, section)
        after: Section = getattr(new, section)
        found += [
            f"{section}.{key}" for key in type(before).model_fields if getattr(before, key) != getattr(after, key)
        ]
    return found


def report_changes(current: Settings, read: Callable[[], Settings]) -> None:
    """Apply what can be applied; log the rest, or why the settings cannot be read. Nothing is half applied."""
    try:
        new = read()
    except HomelabError as error:
        log.error("settings not reloaded", extra={"error": error.message, "code": error.code})
        return
    changed = changed_keys(current, new)
    logging.getLogger("homelab_llm").setLevel(new.log.level.upper())
    needs_restart = [key for key in changed if key not in _LIVE]
    told: dict[str, object] = {"changed": changed, "needs_restart": needs_restart}
    if needs_restart:
        told["hint"] = "mlxctl daemon restart"  # loses no request and unloads nothing
    log.info("settings read again", extra=told)
