"""A real sshd on loopback, with keys of its own, that lets this user in and nobody else."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "far"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"


def sshd_installed() -> bool:
    """Whether this machine has OpenSSH's client and server."""
    return shutil.which("sshd", path=_PATH) is not None and shutil.which("ssh") is not None


@contextmanager
def running_sshd(folder: Path) -> Iterator[Path]:
    """Start sshd for a block; gives the options for ssh (``ssh -F``) that reach it as the host ``far``.

    Raises:
        RuntimeError: OpenSSH's server is not installed, or it did not start.
    """
    program = shutil.which("sshd", path=_PATH)
    if program is None or not sshd_installed():
        raise RuntimeError("OpenSSH's client and server are missing: apt-get install openssh-client openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd started by root insists on it
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized_keys").write_bytes((folder / "key.pub").read_bytes())
    server = folder / "sshd_config"
    server.write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nStrictModes no\n"
        "ListenAddress 127.0.0.1\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\nUsePAM no\nPrintMotd no\nPrintLastLog no\n"
    )
    log = folder / "sshd.log"
    for _ in range(5):  # a free port may be taken before sshd takes it
        port = _free_port()
        command = [program, "-D", "-e", "-f", str(server), "-p", str(port)]
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        if _greets(process, port):
            break
    else:
        raise RuntimeError(f"sshd did not start:\n{log.read_text()}")
    try:
        yield _client_options(folder, port)
    finally:
        process.terminate()
        process.wait(10)


def _client_options(folder: Path, port: int) -> Path:
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    options = folder / "ssh_config"
    options.write_text(
        f"Host {NAME}\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {folder}/key\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known_hosts\n StrictHostKeyChecking yes\n LogLevel ERROR\n"
        f"Host gone\n HostName 127.0.0.1\n Port {_free_port()}\n UserKnownHostsFile {folder}/known_hosts\n"
    )
    return options


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _greets(process: subprocess.Popen[bytes], port: int, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as link:
                return link.recv(4) == b"SSH-"
        except OSError:
            time.sleep(0.02)
    process.kill()
    process.wait(10)
    return False
