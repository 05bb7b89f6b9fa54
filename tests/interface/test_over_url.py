"""``--url``: the daemon's API over TCP with a key, plain on loopback and encrypted."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from homelab_llm.core.errors import DaemonUnavailable, InvalidInput
from homelab_llm.core.names import ModelRef
from homelab_llm.core.paths import Home
from homelab_llm.interface.cli.reach import BY_JOB
from homelab_llm.interface.cli.reference import verbs
from homelab_llm.interface.daemon_client import DaemonClient
from homelab_llm.interface.doors import WebDoor
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.daemon import Daemon
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.waits import until

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-F4")


@pytest.fixture
def far(home: Home, mlxctl: Mlxctl) -> Iterator[Daemon]:
    """A daemon with the model ``fake:latest``; this test reaches it over TCP only."""
    ModelStore(home.store).import_path(write_fake_model(home.root / "fake.gguf"), ModelRef.parse("fake"))
    with Daemon(home, fake=True) as running:
        yield running


def test_verbs_of_the_api_work_with_an_admin_key(mlxctl: Mlxctl, far: Daemon, tmp_path: Path) -> None:
    key = mlxctl("key", "create", "boss", "--admin", "--json").json()["key"]
    elsewhere = ("--home", str(tmp_path / "nothing here"), "--url", far.url)
    environ = {"HOMELAB_KEY": key}
    answer = mlxctl(*elsewhere, "run", "fake", "fake: tokens=2", environ=environ)
    assert (answer.code, answer.out) == (0, "tok0 tok1\n")
    (tmp_path / "key").write_text(key + "\n")
    with_file = (*elsewhere, "--key-file", str(tmp_path / "key"))
    assert [m["model"] for m in mlxctl(*with_file, "ps", "--json").json()["models"]] == ["fake:latest"]
    assert mlxctl(*with_file, "status", "--json").json()["pid"] == far.pid
    assert mlxctl(*with_file, "stop", "fake").out == "stopped fake\n"
    assert not (tmp_path / "nothing here").exists(), "nothing is started or written here"


def test_without_an_admin_key_the_reason_is_typed(mlxctl: Mlxctl, far: Daemon) -> None:
    assert mlxctl("--url", far.url, "ps").code == 5
    key = mlxctl("key", "create", "guest", "--json").json()["key"]
    assert mlxctl("--url", far.url, "ps", environ={"HOMELAB_KEY": key}).code == 5
    assert mlxctl("--url", far.url, "run", "fake", "fake: tokens=1", environ={"HOMELAB_KEY": key}).code == 0


def test_verbs_that_need_files_of_a_machine_are_refused_with_what_works(mlxctl: Mlxctl, tmp_path: Path) -> None:
    for argv in (["list"], ["pull", "smollm2:135m"], ["key", "list"], ["daemon", "stop"], ["doctor"]):
        shown = mlxctl("--url", "http://127.0.0.1:9", *argv)
        assert shown.code == 3, argv
        assert "mlxctl --host NAME" in shown.err
    nobody = mlxctl("--url", "http://127.0.0.1:9", "ps", "--json")
    assert nobody.code == 10
    assert nobody.json()["error"]["facts"] == {"url": "http://127.0.0.1:9"}
    assert mlxctl("--url", "http://127.0.0.1:9", "--host", "x", "ps").code == 2
    assert mlxctl("--key-file", str(tmp_path / "k"), "ps").code == 2
    assert mlxctl("--url", "http://127.0.0.1:9", "--key-file", str(tmp_path / "k"), "ps").code == 4
    (tmp_path / "k").write_text("two words\n")
    assert mlxctl("--url", "http://127.0.0.1:9", "--key-file", str(tmp_path / "k"), "ps").code == 3


@pytest.mark.parametrize(
    "url", ["mini", "ftp://x", "http://", "http://x:y", "http://x/path", "http://me@x", "http://[x"]
)
def test_what_is_no_address_of_a_daemon_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        WebDoor(url)


def test_a_key_in_the_clear_is_said_aloud() -> None:
    assert WebDoor("http://mini:1234", "hl-x").in_the_clear
    assert not WebDoor("http://127.0.0.1:1234", "hl-x").in_the_clear
    assert not WebDoor("https://mini", "hl-x").in_the_clear
    with pytest.raises(InvalidInput):
        WebDoor("http://mini", "a\r\nX-Evil: 1")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for ``localhost`` and its key in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is missing: apt-get install openssl")
    path = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", str(tmp_path / "crt")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "crt").read_bytes())
    return path


def test_an_https_address_is_spoken_to_only_with_a_certificate_that_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                link, _ = listener.accept()
                try:
                    with context.wrap_socket(link, server_side=True) as safe:
                        asked.append(safe.recv(65536))
                        body = json.dumps({"models": []}).encode()
                        safe.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                except ssl.SSLError:
                    link.close()

        thread = threading.Thread(target=serve)
        thread.start()
        client = DaemonClient(WebDoor(f"https://localhost:{port}", "hl-secret"))
        with pytest.raises(DaemonUnavailable):
            client.get("/admin/models")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert client.get("/admin/models") == {"models": []}
        thread.join(10)
    (request,) = asked
    assert b"Authorization: Bearer hl-secret\r\n" in request
    assert f"Host: localhost:{port}\r\n".encode() in request


def test_a_job_is_ordered_over_url_but_not_of_files_of_this_machine(mlxctl: Mlxctl, far: Daemon) -> None:
    detaching = {path.removeprefix("mlxctl ") for path, command in verbs() if "--detach" in _options(command)}
    assert detaching == BY_JOB | {"fuse"}, "an adapter is a file of the machine the command is typed on"
    environ = {"HOMELAB_KEY": mlxctl("key", "create", "boss", "--admin", "--json").json()["key"]}
    over = ("--url", far.url, "--json")
    assert until(lambda: mlxctl(*over, "ps", environ=environ).code == 0)  # a daemon looks for new keys twice a second
    ordered = mlxctl(*over, "push", "fake", "oci://127.0.0.1:9/a/b:1", "--detach", environ=environ)
    assert ordered.code == 0, ordered
    job_id = ordered.json()["job"]["job_id"]
    assert [job["job_id"] for job in mlxctl(*over, "jobs", "--all", environ=environ).json()["jobs"]] == [job_id]
    for argv in (["--detach", "file:x.gguf"], ["--detach", "--wanted"], ["hf:org/name"]):
        refused = mlxctl(*over, "pull", *argv, environ=environ)
        assert refused.json()["error"]["code"] == "unsupported_request", argv


def test_a_mistyped_verb_is_mended_here_before_anybody_is_asked(mlxctl: Mlxctl) -> None:
    for where in (("--url", "http://127.0.0.1:9"), ("--host", "nobody.invalid")):
        assert mlxctl(*where, "pul", "--json").json()["error"]["hint"] == "mlxctl pull"


def _options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}
