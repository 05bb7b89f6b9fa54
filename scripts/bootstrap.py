"""Make the Python environment a target needs: find or fetch `uv`, then install one locked set of packages.

Usage: python3 scripts/bootstrap.py ENVIRONMENT   (run, mlx-cpu, dev or bench)

Runs on Python 3.9 with nothing but the standard library and needs no root. `uv` is taken from PATH; else pip
installs it into .cache/uv (pip itself may come from the wheel that Python carries in `ensurepip`); else the wheel is
fetched from the package index this machine is configured for. Its hash is pinned in requirements/uv.txt in each case.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
UV_FOLDER = ROOT / ".cache" / "uv"
# A larger environment serves a smaller one: `make run` after `make test` installs nothing.
SERVED_BY = {"run": ("run", "mlx-cpu", "dev"), "mlx-cpu": ("mlx-cpu", "dev"), "dev": ("dev",), "bench": ("bench",)}


def say(text: str) -> None:
    """Tell the person at the terminal what takes time."""
    print(text, file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """End with a reason and the next step."""
    say(f"error: {text}")
    raise SystemExit(1)


def pip_command() -> list[str] | None:
    """How to run pip: as a module, or straight from the wheel that Python carries for `ensurepip`."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip"]
    folders = [Path("/usr/share/python-wheels")]
    try:
        import ensurepip

        folders.insert(0, Path(ensurepip.__file__).parent / "_bundled")
    except ImportError:
        pass
    for folder in folders:
        for wheel in sorted(folder.glob("pip-*.whl"), reverse=True):
            return [sys.executable, str(wheel / "pip")]
    return None


def index_address() -> str | None:
    """The package index this machine is configured for, where the environment or pip's own file names one."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if os.environ.get(name):
            return os.environ[name].rstrip("/")
    for path in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf", Path("/etc/pip.conf")):
        if path.is_file():
            match = re.search(r"^\s*index-url\s*=\s*(\S+)", path.read_text(), re.MULTILINE)
            if match:
                return match.group(1).rstrip("/")
    return None


def pinned_hashes() -> set[str]:
    """The SHA-256 of every wheel of the pinned `uv`."""
    return set(re.findall(r"sha256:([0-9a-f]{64})", (REQUIREMENTS / "uv.txt").read_text()))


def wheel_fits(name: str) -> bool:
    """Whether a wheel of `uv` is for this machine; its tags name system and processor."""
    machine = {"AMD64": "x86_64", "arm64": "arm64" if sys.platform == "darwin" else "aarch64"}.get(
        platform.machine(), platform.machine()
    )
    return name.endswith(".whl") and machine in name and ("macosx" if sys.platform == "darwin" else "manylinux") in name


def fetch_wheel(target: Path) -> bool:
    """Fetch the `uv` wheel without pip and unpack its program; its hash must be one of the pinned ones."""
    index = index_address()
    if index is None or not index.startswith(("http://", "https://")):
        return False
    ask = urllib.request.Request(f"{index}/uv/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})  # noqa: S310
    with urllib.request.urlopen(ask, timeout=60) as reply:  # noqa: S310
        files = json.load(reply)["files"]
    hashes = pinned_hashes()
    for entry in files:
        if entry.get("hashes", {}).get("sha256") in hashes and wheel_fits(entry["filename"]):
            url = urllib.parse.urljoin(ask.full_url, entry["url"])
            with urllib.request.urlopen(url, timeout=300) as reply:  # noqa: S310
                content = reply.read()
            if hashlib.sha256(content).hexdigest() not in hashes:
                fail("the uv wheel does not have its pinned hash; nothing was installed")
            target.parent.mkdir(parents=True, exist_ok=True)
            wheel = target.parent / "uv.whl"
            wheel.write_bytes(content)
            with zipfile.ZipFile(wheel) as archive:
                member = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
                target.write_bytes(archive.read(member))
            wheel.unlink()
            target.chmod(target.stat().st_mode | stat.S_IXUSR)
            return True
    return False


def find_uv() -> str:
    """The path of a `uv` program, fetched when this machine has none."""
    found = shutil.which("uv")
    if found:
        return found
    local = UV_FOLDER / "bin" / "uv"
    if local.exists():
        return str(local)
    say("fetching uv (the package installer) into .cache/uv …")
    pip = pip_command()
    if pip:
        command = [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        command += ["--target", str(UV_FOLDER), "--upgrade", "-r", str(REQUIREMENTS / "uv.txt")]
        if subprocess.run(command, check=False).returncode == 0 and local.exists():
            return str(local)
    if fetch_wheel(local):
        return str(local)
    fail("no uv, no pip and no configured package index; install uv, or set UV_DEFAULT_INDEX, and run make again")
    return ""


def fingerprint(environment: str) -> str:
    """What an installed environment must have been made from to count as current."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (REQUIREMENTS / f"{environment}.txt", ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return f"{environment} {digest.hexdigest()}"


def folder_of(environment: str) -> Path:
    """Where an environment lives: the bench has its own, its packages contradict ours."""
    return ROOT / (".venv-bench" if environment == "bench" else ".venv")


def is_current(environment: str) -> bool:
    """Whether the folder already holds this environment, or a larger one."""
    stamp = folder_of(environment) / ".made-from"
    if not stamp.exists() or not (folder_of(environment) / "bin" / "python").exists():
        return False
    return stamp.read_text() in {fingerprint(name) for name in SERVED_BY[environment]}


def install(environment: str) -> None:
    """Create the environment from its lock, byte-compiled, with this checkout installed in place."""
    folder = folder_of(environment)
    uv = find_uv()
    python = str(folder / "bin" / "python")
    say(f"installing the locked packages of '{environment}' into {folder.name} …")
    settings = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")}

    def run(*arguments: str) -> None:
        if subprocess.run([uv, *arguments], cwd=ROOT, env=settings, check=False).returncode:
            fail(f"uv {arguments[0]} {arguments[1]} failed; the lines above say why")

    if not Path(python).exists():
        run("venv", "--quiet", "--allow-existing", "--python", ">=3.11", str(folder))
    lock = str(REQUIREMENTS / f"{environment}.txt")
    run("pip", "sync", "--quiet", "--python", python, "--require-hashes", "--compile-bytecode", lock)
    if environment != "bench":
        place = ["--quiet", "--python", python, "--no-deps", "--no-build-isolation", "--editable", "."]
        run("pip", "install", *place)
        compiler = [python, "-m", "compileall", "-q", "src"]
        subprocess.run(compiler, cwd=ROOT, env=settings, check=False)
    (folder / ".made-from").write_text(fingerprint(environment))


def main() -> None:
    """Install the environment named on the command line unless it is current."""
    if len(sys.argv) != 2 or sys.argv[1] not in SERVED_BY:
        fail(f"usage: bootstrap.py {'|'.join(SERVED_BY)}")
    if not is_current(sys.argv[1]):
        install(sys.argv[1])


if __name__ == "__main__":
    main()
