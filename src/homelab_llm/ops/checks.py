"""The checks of ``doctor`` that look at this machine: Python, folders, disk, settings, the daemon and its ports."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path

import homelab_llm
from homelab_llm.core.errors import HomelabError
from homelab_llm.core.paths import Home
from homelab_llm.core.units import format_bytes
from homelab_llm.ops.doctor import Finding, Surroundings
from homelab_llm.ops.launch import owner_pid
from homelab_llm.ops.record import DaemonRecord, read_record

_FLOORS = {"h11": (0, 16), "jinja2": (3, 1, 6)}
_LOW_DISK_BYTES = 2 * 10**9


def python(_: Surroundings) -> Iterator[Finding]:
    """Version, compiled bytecode, and dependencies below a version known to be bad."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version} at {sys.executable}", facts={"version": version})
    source = Path(homelab_llm.__file__)
    if not Path(cache_from_source(str(source))).exists():
        step = f"{sys.executable} -m compileall -q {source.parent}"
        if os.access(source.parent, os.W_OK) and not sys.dont_write_bytecode:
            why = "bytecode is not compiled yet; the next start is slower"
        else:
            why = "bytecode is not kept, so every start is slow (PYTHONDONTWRITEBYTECODE, or a read-only folder)"
        yield Finding("bytecode", "warn", why, step)
    for package, floor in _FLOORS.items():
        found = _version(package)
        if found and found < floor:
            wanted = ".".join(map(str, floor))
            yield Finding(
                "dependencies",
                "fail",
                f"{package} {'.'.join(map(str, found))} is known to be unsafe",
                f"install {package}>={wanted}",
            )


def _version(package: str) -> tuple[int, ...] | None:
    try:
        text = metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def home(around: Surroundings) -> Iterator[Finding]:
    """The data folder is there and can be written, the runtime folder is private."""
    root = around.home.root
    around.home.ensure()
    if not os.access(root, os.W_OK | os.X_OK):
        yield Finding("home", "fail", f"{root} cannot be written by this user", f"chown -R $USER {root}")
        return
    yield Finding("home", "ok", str(root))
    longest = len(os.fsencode(around.home.runtime / "daemon.sock"))
    if longest >= 104:
        yield Finding(
            "runtime folder",
            "fail",
            f"{around.home.runtime} is too long for a socket",
            "set XDG_RUNTIME_DIR to a short folder",
        )
    else:
        yield Finding("runtime folder", "ok", str(around.home.runtime))


def disk(around: Surroundings) -> Iterator[Finding]:
    """Room for models."""
    free = shutil.disk_usage(around.home.root).free
    facts = {"free_bytes": free}
    if free < _LOW_DISK_BYTES:
        yield Finding("disk", "warn", f"only {format_bytes(free)} free", "mlxctl prune", facts)
    else:
        yield Finding("disk", "ok", f"{format_bytes(free)} free", facts=facts)


def settings(around: Surroundings) -> Iterator[Finding]:
    """The settings can be read, file and environment."""
    from homelab_llm.core.settings import load_settings

    file = around.home.config
    load_settings(file, around.environ)
    yield Finding("settings", "ok", str(file) if file.exists() else "defaults; there is no config.yaml")


def daemon(around: Surroundings) -> Iterator[Finding]:
    """A daemon answers and is as new as this program."""
    record = read_record(around.home)
    if around.ask is None:
        yield from _no_daemon(around.home, record)
        return
    found = around.ask("/admin/status")
    if found["version"] != homelab_llm.__version__:
        why = f"it runs version {found['version']}, this program is {homelab_llm.__version__}"
        yield Finding("daemon", "fail", why, "mlxctl daemon restart")
        return
    yield Finding("daemon", "ok", f"version {found['version']}, pid {found['pid']}", facts={"pid": found["pid"]})
    for warning in found.get("warnings") or ():
        yield Finding("daemon", "warn", warning["text"], warning.get("hint") or "")


def _no_daemon(where: Home, record: DaemonRecord | None) -> Iterator[Finding]:
    pid = owner_pid(where)
    if pid is not None:
        yield Finding("daemon", "fail", f"process {pid} holds this home but does not answer", "mlxctl logs daemon")
    elif record is not None:
        yield Finding("daemon", "warn", f"the last one (pid {record.pid}) was killed", "mlxctl logs daemon")
    else:
        yield Finding("daemon", "ok", "not running; it starts when a verb needs it")


def ports(around: Surroundings) -> Iterator[Finding]:
    """The addresses of the settings are ours, or free."""
    from homelab_llm.core.settings import load_settings

    record = read_record(around.home) if around.ask else None
    ours = set(record.listeners) if record else set()
    for address in load_settings(around.home.config, around.environ).server.listen:
        if address in ours:
            yield Finding("ports", "ok", f"{address} is served by our daemon")
        elif address.endswith(":0"):
            yield Finding("ports", "ok", f"{address} takes a free port")
        elif _is_taken(address):
            step = f"lsof -i :{address.rpartition(':')[2]}    # or set server.listen"
            yield Finding("ports", "warn", f"{address} is held by another program; clients cannot reach us there", step)
        else:
            yield Finding("ports", "ok", f"{address} is free")


def _is_taken(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except (OSError, ValueError, OverflowError):
            return True
    return False


def models(around: Surroundings) -> Iterator[Finding]:
    """The store can be read and none of its models is damaged."""
    from homelab_llm.store.model_store import ModelStore

    store = ModelStore(around.home.store)
    try:
        count = len(store.models())
    except HomelabError as error:
        yield Finding("models", "fail", error.message, error.hint)
        return
    problems = store.problems()
    for problem in problems:
        yield Finding("models", "fail", problem.message, problem.hint, {"model": problem.name})
    bad = {digest.hex for digest in store.verification.damaged()}
    broken = [model.name for model in store.models() if bad and any(path.name in bad for path in model.files.values())]
    for name in broken:
        yield Finding(
            "models", "fail", f"{name} was found damaged by a check", f"mlxctl repair {name}", {"model": name}
        )
    if not problems and not broken:
        yield Finding(
            "models", "ok", f"{count} stored, none damaged" if count else "none yet", "" if count else "mlxctl suggest"
        )
