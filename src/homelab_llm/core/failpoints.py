"""Failpoints: named places where a test makes this process fail, to show that nothing is lost.

Off by default and then one dictionary look-up. ``HOMELAB_FAILPOINTS="store.before_rename=kill;pull.chunk=raise@3"``
arms them at import: ``kill`` (SIGKILL to ourselves), ``raise`` (``OSError``), ``enospc`` (disk full), ``exit``;
``@N`` means at the N-th passage. The idea is etcd's gofail. ``ARMED`` is empty in production.
"""

from __future__ import annotations

import errno
import os
import signal

ARMED: dict[str, tuple[str, int]] = {}
_passages: dict[str, int] = {}


def arm(specification: str) -> None:
    """Replace the armed set; the empty string disarms all.

    Raises:
        ValueError: not ``name=action[@count]`` pairs split by ``;``.
    """
    ARMED.clear()
    _passages.clear()
    for item in filter(None, specification.split(";")):
        name, equals, rest = item.partition("=")
        action, _, count = rest.partition("@")
        if not equals or action not in {"kill", "raise", "enospc", "exit"}:
            raise ValueError(f"not a failpoint: {item!r}")
        ARMED[name] = (action, int(count or 1))


def failpoint(name: str) -> None:
    """Fail here if ``name`` is armed and this is the chosen passage."""
    if not ARMED:
        return
    if name not in ARMED:
        return
    action, at = ARMED[name]
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] != at:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "exit":
        os._exit(86)
    if action == "enospc":
        raise OSError(errno.ENOSPC, f"failpoint {name}")
    raise OSError(errno.EIO, f"failpoint {name}")


arm(os.environ.get("HOMELAB_FAILPOINTS", ""))
