"""The daemon is killed at every named place of load, unload and swap: the next one puts everything in line."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from pathlib import Path

import pytest

from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.slotted import rows, slotted, steps

VERBS = {
    "load": ("/admin/slots/load", {"model": "b", "slot": "1"}),
    "unload": ("/admin/slots/unload", {"slot": "0"}),
    "swap": ("/admin/slots/swap", {"slot": "0", "model": "b"}),
}
PLACES = {
    "load": ("controller.before_load", "controller.after_load", "controller.before_serve", "controller.after_serve"),
    "unload": ("controller.before_unload", "controller.after_unload"),
    "swap": ("controller.before_load", "controller.after_load", "controller.before_flip", "controller.after_serve"),
}
REGISTRY = ("registry.before_commit", "registry.after_commit", "registry.before_export")
EVERY = [(verb, place) for verb, places in PLACES.items() for place in (*places, *REGISTRY)]
CASES = EVERY if os.environ.get("HOMELAB_SIZE") == "full" else EVERY[::4]


@pytest.mark.requirement("R-S2")
@pytest.mark.requirement("R-F2")
@pytest.mark.parametrize(("verb", "place"), CASES, ids=[f"{verb} at {place}" for verb, place in CASES])
def test_a_daemon_killed_anywhere_converges_after_its_restart(verb: str, place: str) -> None:
    with slotted(environ={"HOMELAB_FLEET__ORPHAN_GRACE_S": "60"}) as daemon:
        ports = [str(row["port"]) for row in rows(daemon)]
        steps(daemon.call("POST", "/admin/slots/load", {"model": "a", "slot": ports[0]}))
        path, body = VERBS[verb]
        body = {**body, "slot": ports[int(body["slot"])]}
        _die_at(daemon, place, path, body)
        daemon.start()
        steps(daemon.call("POST", "/admin/reconcile", {"apply": True}))
        found = rows(daemon)
        assert [row["drift"] for row in found] == ["", ""]
        assert daemon.call("POST", "/admin/verify", {})[1]["ok"] is True
        _agrees_with_the_export(daemon.home.root / "registry.json", found)
        steps(daemon.call("POST", "/admin/slots/load", {"model": "b", "slot": ports[1], "force": True}))
        assert rows(daemon)[1]["model"] == "b:latest"


def _die_at(daemon: Daemon, place: str, path: str, body: dict[str, str]) -> None:
    """Restart with the failpoint armed, ask, and wait for the death.

    The worker is adopted, so that the start itself loads nothing and passes none of the places.
    """
    daemon.kill()
    daemon.start(environ={"HOMELAB_FAILPOINTS": f"{place}=kill"})
    with contextlib.suppress(OSError, http.client.HTTPException):
        daemon.call("POST", path, body)
    assert daemon.wait() == -9, f"{place} was never passed"


def _agrees_with_the_export(path: Path, found: list[dict[str, object]]) -> None:
    models = json.loads(path.read_text())["models"]
    exported = {entry["port"]: slug for slug, entry in models.items() if entry["port"] is not None}
    assert exported == {row["port"]: row["desired"] for row in found if row["desired"]}
