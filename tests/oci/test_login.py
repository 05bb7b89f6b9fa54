"""Login and logout: proved first, kept where docker and podman look, everything else in the file left alone."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, InvalidInput, SourceDenied
from homelab_llm.store.hub_login import is_hub, log_in_to_hub, log_out_of_hub
from homelab_llm.store.oci.auth import find_credentials, read_auth_file
from homelab_llm.store.oci.credentials import Credentials
from homelab_llm.store.oci.login import log_in, log_out
from homelab_llm.store.settings import PullSettings
from homelab_llm.store.sources.huggingface import hub_token
from homelab_llm.testing.hub import FakeHub
from homelab_llm.testing.registries import PASSWORD, USER, Registry
from homelab_llm.testing.registry_front import TokenAuth

Settings = Callable[..., PullSettings]
GOOD = Credentials(USER, PASSWORD)
AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

HELPER = """#!/usr/bin/python3
import json, os, sys
path = os.path.join(os.environ["HOME"], "kept.json")
kept = json.load(open(path)) if os.path.exists(path) else {}
told = sys.stdin.read()
with open(os.path.join(os.environ["HOME"], "calls"), "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "store":
    entry = json.loads(told)
    kept[entry["ServerURL"]] = entry
elif sys.argv[1] == "erase":
    kept.pop(told.strip(), None)
elif told.strip() in kept:
    print(json.dumps(kept[told.strip()]))
else:
    print("credentials not found in native keychain")
    sys.exit(1)
json.dump(kept, open(path, "w"))
"""


@pytest.fixture
def docker(environ: dict[str, str]) -> Path:
    """Docker's file in the test's home; not there yet."""
    path = Path(environ["HOME"]) / ".docker" / "config.json"
    path.parent.mkdir(parents=True)
    return path


@pytest.fixture
def helper(environ: dict[str, str], tmp_path: Path, docker: Path) -> Callable[[], list[str]]:
    """A credential helper ``homelab`` in the path; tells with what it was called."""
    program = tmp_path / "bin" / "docker-credential-homelab"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    environ["PATH"] = f"{program.parent}:{environ['PATH']}"
    calls = Path(environ["HOME"]) / "calls"
    return lambda: calls.read_text().split() if calls.exists() else []


@pytest.fixture
def guarded(shared_registry: Registry) -> Iterator[TokenAuth]:
    with TokenAuth(shared_registry, anonymous="") as front:
        yield front


def document(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.requirement("R-M1")
def test_credentials_are_proved_and_then_kept_for_this_user_alone(
    guarded: TokenAuth, settings: Settings, environ: dict[str, str], docker: Path
) -> None:
    docker.write_text(json.dumps({"psFormat": "x", "auths": {"other.example": {"auth": "a2VlcDptZQ=="}}}))
    docker.chmod(0o644)
    done = log_in(guarded.host, GOOD, settings())
    assert (done.registry, done.place, done.asked) == (guarded.host, str(docker), True)
    kept = document(docker)
    assert kept == {
        "psFormat": "x",
        "auths": {"other.example": {"auth": "a2VlcDptZQ=="}, guarded.host: {"auth": AUTH}},
    }
    assert stat.S_IMODE(docker.stat().st_mode) == 0o600
    assert find_credentials(guarded.host, environ) == GOOD
    assert PASSWORD not in repr(find_credentials(guarded.host, environ))


def test_wrong_credentials_are_not_kept(guarded: TokenAuth, settings: Settings, docker: Path) -> None:
    with pytest.raises(SourceDenied) as denied:
        log_in(guarded.host, Credentials(USER, "wrong secret"), settings())
    assert "wrong secret" not in str(denied.value.as_dict())
    assert not docker.exists()


def test_a_registry_that_asks_for_nothing_is_told_apart(
    shared_registry: Registry, settings: Settings, docker: Path
) -> None:
    assert not log_in(shared_registry.host, GOOD, settings()).asked
    assert document(docker)["auths"] == {shared_registry.host: {"auth": AUTH}}


def test_a_registry_with_passwords_proves_them(settings: Settings, docker: Path) -> None:
    with Registry(password=True) as registry:
        with pytest.raises(SourceDenied):
            log_in(registry.host, Credentials(USER, "wrong"), settings())
        assert log_in(registry.host, GOOD, settings()).asked


def test_an_identity_token_is_kept_as_docker_keeps_it(
    guarded: TokenAuth, settings: Settings, environ: dict[str, str], docker: Path
) -> None:
    log_in(guarded.host, Credentials(identity_token=TokenAuth.IDENTITY), settings())
    assert document(docker)["auths"][guarded.host]["identitytoken"] == TokenAuth.IDENTITY
    found = find_credentials(guarded.host, environ)
    assert found is not None
    assert found.identity_token == TokenAuth.IDENTITY


def test_logout_forgets_in_every_file(
    guarded: TokenAuth, settings: Settings, environ: dict[str, str], docker: Path
) -> None:
    log_in(guarded.host, GOOD, settings())
    podman = Path(environ["HOME"]) / ".config" / "containers" / "auth.json"
    podman.parent.mkdir(parents=True)
    podman.write_text(json.dumps({"auths": {f"https://{guarded.host}/v2/": {"auth": AUTH}, "other": {"auth": AUTH}}}))
    assert log_out(guarded.host, settings()) == [str(docker), str(podman)]
    assert document(docker)["auths"] == {}
    assert document(podman)["auths"] == {"other": {"auth": AUTH}}
    assert find_credentials(guarded.host, environ) is None
    assert log_out(guarded.host, settings()) == []


@pytest.mark.parametrize("named", ["credsStore", "credHelpers"])
def test_a_credential_helper_keeps_the_secret(
    guarded: TokenAuth,
    settings: Settings,
    environ: dict[str, str],
    docker: Path,
    helper: Callable[[], list[str]],
    named: str,
) -> None:
    docker.write_text(json.dumps({named: "homelab" if named == "credsStore" else {guarded.host: "homelab"}}))
    assert log_in(guarded.host, GOOD, settings()).place == "docker-credential-homelab"
    assert document(docker)["auths"] == {guarded.host: {}}
    assert find_credentials(guarded.host, environ) == GOOD
    log_out(guarded.host, settings())
    assert find_credentials(guarded.host, environ) is None
    assert helper() == ["store", "get", "erase", "get"]


def test_a_helper_that_is_not_there_or_has_a_bad_name_is_an_error(environ: dict[str, str], docker: Path) -> None:
    for name in ("absent", "../../bin/sh", "a b", 3):
        docker.write_text(json.dumps({"credsStore": name}))
        with pytest.raises(InvalidInput):
            find_credentials("ghcr.io", environ)


def test_the_first_file_that_knows_the_registry_counts(environ: dict[str, str], docker: Path, tmp_path: Path) -> None:
    def write(path: Path, user: str, *keys: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        auth = base64.b64encode(f"{user}:x".encode()).decode()
        path.write_text(json.dumps({"auths": {key: {"auth": auth} for key in keys}}))

    def user(host: str, repository: str = "") -> str:
        found = find_credentials(host, environ, repository)
        return found.username if found else ""

    home = Path(environ["HOME"])
    write(home / ".config" / "containers" / "auth.json", "podman", "ghcr.io", "ghcr.io/org/name")
    assert user("ghcr.io") == "podman"
    environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    write(tmp_path / "run" / "containers" / "auth.json", "session", "ghcr.io")
    assert user("ghcr.io") == "session"
    write(docker, "docker", "https://index.docker.io/v1/", "https://ghcr.io/v2/")
    assert (user("ghcr.io"), user("docker.io")) == ("docker", "docker")
    environ["DOCKER_CONFIG"] = str(tmp_path / "docker")
    write(tmp_path / "docker" / "config.json", "named", "ghcr.io")
    assert user("ghcr.io") == "named"
    environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "auth.json")
    write(tmp_path / "auth.json", "told", "ghcr.io/org", "ghcr.io")
    assert user("ghcr.io", "org/name") == "told"
    assert user("quay.io") == ""


@given(st.binary(max_size=300))
def test_any_file_of_credentials_is_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            read_auth_file(Path(file.name))
        except HomelabError as error:
            assert error.code == "invalid_input"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_entry_is_credentials_or_nothing(entry: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "auth.json"
        path.write_text(json.dumps({"auths": {"ghcr.io": entry}}))
        found = find_credentials("ghcr.io", {"REGISTRY_AUTH_FILE": str(path)})
        assert found is None or found.password or found.identity_token


def test_the_hubs_token_is_proved_and_kept_where_its_tools_look(
    settings: Settings, environ: dict[str, str], tmp_path: Path
) -> None:
    environ["HF_HOME"] = str(tmp_path / "hf")
    whoami = (200, {"content-type": "application/json"}, json.dumps({"name": "tester"}).encode())
    with FakeHub(pages={"/api/whoami-v2": whoami}) as hub:
        own = settings(hf_endpoint=hub.url)
        assert is_hub("huggingface.co", own)
        assert is_hub(f"127.0.0.1:{hub.port}", own)
        assert log_in_to_hub("hf_secret", own) == ("tester", tmp_path / "hf" / "token")
        assert hub.requests[-1].authorization == "Bearer hf_secret"
        assert hub_token(environ) == "hf_secret"
        assert stat.S_IMODE((tmp_path / "hf" / "token").stat().st_mode) == 0o600
        hub.pages["/api/whoami-v2"] = (401, {}, b"")
        with pytest.raises(SourceDenied):
            log_in_to_hub("hf_other", own)
        assert hub_token(environ) == "hf_secret"
        assert log_out_of_hub(own) == [str(tmp_path / "hf" / "token")]
        assert (hub_token(environ), log_out_of_hub(own)) == ("", [])


@pytest.mark.parametrize(
    "entry",
    [
        {"auth": "\u00e9\u00e9\u00e9="},
        {"username": "\ud800", "password": "x"},
        {"username": "x", "password": "\ud800"},
        {"identitytoken": "\ud800"},
    ],
)
def test_an_entry_that_is_not_text_holds_no_credentials(
    environ: dict[str, str], docker: Path, entry: dict[str, str]
) -> None:
    docker.write_text(json.dumps({"auths": {"registry.example": entry}}))
    assert find_credentials("registry.example", environ) is None


def test_a_fifo_in_the_place_of_the_file_is_refused_at_once(environ: dict[str, str], docker: Path) -> None:
    os.mkfifo(docker)
    with pytest.raises(InvalidInput) as refused:
        find_credentials("registry.example", environ)
    assert str(docker) in refused.value.message


@pytest.mark.parametrize("user", ["a:b", "\udcff", "a\nb"])
def test_a_name_that_cannot_be_sent_is_refused_before_anything_is_asked(
    guarded: TokenAuth, settings: Settings, docker: Path, user: str
) -> None:
    with pytest.raises(InvalidInput):
        log_in(guarded.host, Credentials(user, PASSWORD), settings())
    assert guarded.seen == []
    assert not docker.exists()
