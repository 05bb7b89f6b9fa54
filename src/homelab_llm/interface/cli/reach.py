"""Reach: where each verb can run, and whether it changes anything there. One table; a test holds it against the tree.

``--host`` and ``remote.inference_host`` run a verb on another machine over ssh, ``--url`` speaks to a daemon there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Reach:
    """What one verb may do.

    ``changes``: it may change something, so it is refused on another version. ``here_only``: it concerns the machine
    it is typed on and is never forwarded. ``by_url``: it needs nothing but the daemon's API.
    """

    changes: bool = False
    here_only: bool = False
    by_url: bool = False


_READS = Reach()
_ASKS = Reach(by_url=True)
_CHANGES = Reach(changes=True)
_ORDERS = Reach(changes=True, by_url=True)
_HERE = Reach(changes=True, here_only=True)

REACH: dict[str, Reach] = {
    "run": _ORDERS,
    "chat": _ORDERS,
    "pull": _CHANGES,
    "import": _CHANGES,
    "init": _CHANGES,
    "list": _READS,
    "show": _READS,
    "convert": _CHANGES,
    "quantize": _CHANGES,
    "fuse": _CHANGES,
    "perplexity": _READS,
    "create": _CHANGES,
    "cp": _CHANGES,
    "export": _CHANGES,
    "exchange give": _READS,
    "exchange take": _CHANGES,
    "rm": _CHANGES,
    "prune": _CHANGES,
    "gc": _CHANGES,
    "du": _READS,
    "repair": _CHANGES,
    "push": _CHANGES,
    "pack": _CHANGES,
    "login": _CHANGES,
    "logout": _CHANGES,
    "template list": _READS,
    "template show": _READS,
    "template check": _READS,
    "template translate": _READS,
    "suggest": _READS,
    "load": _ORDERS,
    "swap": _ORDERS,
    "unload": _ORDERS,
    "unload-all": _ORDERS,
    "adopt": _ORDERS,
    "reconcile": _ORDERS,
    "verify": _ASKS,
    "pin": _ORDERS,
    "unpin": _ORDERS,
    "unquarantine": _ORDERS,
    "fit": _ASKS,
    "explain": _ASKS,
    "events": _ASKS,
    "jobs list": _ASKS,
    "jobs show": _ASKS,
    "jobs wait": _ASKS,
    "jobs cancel": _ORDERS,
    "ps": _ASKS,
    "stop": _ORDERS,
    "status": _ASKS,
    "logs": _READS,
    "key create": _CHANGES,
    "key list": _READS,
    "key revoke": _CHANGES,
    "registry export": _READS,
    "registry import": _CHANGES,
    "registry validate": _READS,
    "registry set": _CHANGES,
    "registry edit": _CHANGES,
    "handles export": _CHANGES,
    "handles validate": _READS,
    "handles import": _CHANGES,
    "db status": _READS,
    "db upgrade": _CHANGES,
    "db query": _READS,
    "db backup": _CHANGES,
    "db vacuum": _CHANGES,
    "db copy": _CHANGES,
    "daemon start": _CHANGES,
    "daemon stop": _CHANGES,
    "daemon restart": _CHANGES,
    "daemon status": _READS,
    "serve": _HERE,
    "service install": _HERE,
    "service uninstall": _HERE,
    "service status": _HERE,
    "doctor": _READS,
    "version": _READS,
    "completion": _HERE,
}

BY_JOB = frozenset({"pull", "push", "convert", "quantize"})
"""Verbs that need nothing but the daemon's API when they are called with ``--detach``."""


def verb_path(argv: Sequence[str]) -> str:
    """The verb of a command line, without what follows it: ``key list``. Empty when there is none."""
    words = [word for word in argv if not word.startswith("-")]
    named = (" ".join(words[:2]), " ".join(words[:1]), f"{words[0]} list" if words == ["jobs"] else "")
    return next((path for path in named if path in REACH), "")


def reach_of(argv: Sequence[str]) -> Reach:
    """The reach of a command line; what is not in the table counts as changing something."""
    path = verb_path(argv)
    reach = REACH.get(path, _CHANGES)
    return replace(reach, by_url=True) if path in BY_JOB and "--detach" in argv else reach
