"""``mlxctl registry``: with and without a daemon, on a real database, with real editors."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.database import ready_database
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.postgres import Postgres

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl, Outcome, ScriptedDaemon

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "registry.json"
SLOTS = {"HOMELAB_SLOTS__PORTS": "8100-8109"}


@pytest.fixture(autouse=True)
def prepared(home: Home) -> None:
    """Every home here has a database already: making one takes as long as a test."""
    ready_database(home.database)


def a_document(**models: Any) -> bytes:
    return json.dumps({"version": 1, "models": models}).encode()


def an_entry(**fields: Any) -> dict[str, Any]:
    return {"repo_id": "Org/A", "format": "gguf", **fields}


def kept(mlxctl: Mlxctl) -> dict[str, Any]:
    """What the registry says."""
    models = json.loads(mlxctl("registry", "export", "-").out)["models"]
    assert isinstance(models, dict)
    return models


@pytest.mark.requirement("R-F1", "R-F2")
def test_the_example_with_four_intents_is_imported_and_exported_as_it_is(mlxctl: Mlxctl, home: Home) -> None:
    home.database.unlink()
    done = mlxctl("registry", "import", str(EXAMPLE), environ=SLOTS)
    assert done.code == 0, done.err
    assert "qwen3-235b-a22b-instruct-2507-6bit is new, on port 8100" in done.out
    assert (home.root / "registry.json").read_bytes() == EXAMPLE.read_bytes()
    by_port = {entry["port"]: entry["repo_id"] for entry in kept(mlxctl).values()}
    assert by_port == {
        8100: "mlx-community/Qwen3-235B-A22B-Instruct-2507-6bit",
        8101: "halley-ai/gpt-oss-120b-MLX-6bit-gs64",
        8102: "mlx-community/DeepSeek-R1-Distill-Llama-70B-8bit",
        8103: "mlx-community/Qwen2.5-Coder-32B-Instruct-8bit",
    }
    valid = mlxctl("registry", "validate", str(EXAMPLE), "--json", environ=SLOTS).json()
    assert valid == {"valid": True, "models": 4, "ports": 4, "intents": 4}


@pytest.mark.requirement("R-F2")
def test_an_import_merges_unless_it_replaces_and_a_dry_run_changes_nothing(mlxctl: Mlxctl) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry(model_id="a"), b=an_entry(model_id="b")))
    more = a_document(c=an_entry(model_id="c"))
    tried = mlxctl("registry", "import", "-", "--replace", "--dry-run", "--json", stdin=more).json()
    assert tried == {"changes": ["a is gone", "b is gone", "c is new"], "revision": 1, "dry_run": True}
    assert mlxctl("registry", "import", "-", stdin=more).out == "c is new\n"
    assert sorted(kept(mlxctl)) == ["a", "b", "c"]
    assert mlxctl("registry", "import", "-", stdin=more).out == "nothing changed\n"
    mlxctl("registry", "import", "-", "--replace", stdin=more)
    assert sorted(kept(mlxctl)) == ["c"]


BAD_DOCUMENTS = [
    (a_document(a=an_entry(port=8100), b=an_entry(model_id="b", port=8100)), "registry_invalid", "already"),
    (a_document(a=an_entry(port=8110)), "registry_invalid", "no slot of this node"),
    (a_document(a=an_entry(port="jerry-xxl")), "registry_invalid", "must be a port"),
    (b'{"version": 1, "models": {"a": {}, "a": {}}}', "registry_invalid", "there twice"),
    (b'{"version": 2, "models": {}}', "registry_too_new", "version 2"),
    (bytes(1000), "registry_invalid", "zeros"),
    (EXAMPLE.read_bytes()[:700], "registry_invalid", "ends in the middle"),
]


@pytest.mark.requirement("R-F2")
def test_bad_input_is_refused_in_words_and_changes_nothing(mlxctl: Mlxctl) -> None:
    before = mlxctl("registry", "import", "-", "--json", stdin=a_document(keep=an_entry())).json()
    for content, code, words in BAD_DOCUMENTS:
        done = mlxctl("registry", "import", "-", "--json", stdin=content, environ=SLOTS)
        assert (done.code, done.json()["error"]["code"]) == (3, code)
        assert words in done.json()["error"]["message"]
    again = mlxctl("registry", "import", "-", "--json", stdin=a_document(keep=an_entry())).json()
    assert (again["changes"], again["revision"]) == ([], before["revision"])
    refused = mlxctl("registry", "validate", "-", "--json", stdin=BAD_DOCUMENTS[0][0], environ=SLOTS)
    assert (refused.code, refused.json()["error"]["facts"]["field"]) == (3, "models.b.port")


@pytest.mark.requirement("R-F2")
@pytest.mark.requirement("R-F7")
def test_a_boot_script_is_taken_over_and_two_authorities_are_told(mlxctl: Mlxctl, tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text("mlx-openai-server launch --model-path Org/Big --port 8101 &\n")
    done = mlxctl("registry", "import", str(script), environ=SLOTS)
    assert done.code == 0, done.err
    assert "big is new, on port 8101" in done.out
    assert "two authorities" in done.err
    assert kept(mlxctl)["big"]["repo_id"] == "Org/Big"


def test_a_hand_edited_export_can_be_imported(mlxctl: Mlxctl, home: Home) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry(og_path="/base")))
    file = home.root / "registry.json"
    edited = json.loads(file.read_bytes())
    edited["models"]["a"] |= {"context_length": 4096, "port": 8105}
    file.write_text(json.dumps(edited))
    done = mlxctl("registry", "import", str(file), environ=SLOTS)
    assert done.out == "a has another context_length\na is on port 8105 in place of none\n"
    assert json.loads(file.read_bytes()) == edited, "fields this version does not know are kept"
    assert list(home.root.glob("*edited*")) == []


def test_an_edited_export_that_is_overwritten_is_kept_aside_with_a_warning(mlxctl: Mlxctl, home: Home) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()))
    (home.root / "registry.json").write_bytes(b"mine")
    done = mlxctl("registry", "export")
    assert (done.code, done.out) == (0, f"wrote 1 model to {home.root}/registry.json\n")
    assert "warning: " in done.err
    assert [path.read_bytes() for path in home.root.glob("registry.json.edited-*")] == [b"mine"]


def test_an_export_goes_where_it_is_told(mlxctl: Mlxctl, tmp_path: Path) -> None:
    place = tmp_path / "sub" / "mine.json"
    environ = {"HOMELAB_DATA__REGISTRY_FILE": str(place)}
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()), environ=environ)
    done = mlxctl("registry", "export", str(tmp_path / "copy.json"), "--json", environ=environ).json()
    assert done == {"path": str(tmp_path / "copy.json"), "models": 1, "ports": 0, "intents": 1}
    assert (tmp_path / "copy.json").read_bytes() == place.read_bytes()


def test_fields_are_set_and_taken_back(mlxctl: Mlxctl) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()))
    words = ["context_length=8192", "keep_alive=5m", 'flags=["--x"]', "engine=llama.cpp", "pinned=true", "port=8101"]
    done = mlxctl("registry", "set", "org/a", *words, environ=SLOTS)
    assert done.out == (
        "a has another context_length, engine, flags, keep_alive, pinned\na is on port 8101 in place of none\n"
    )
    assert kept(mlxctl)["a"] | {"context_length": 8192, "keep_alive": 300, "flags": ["--x"]} == kept(mlxctl)["a"]
    mlxctl("registry", "set", "a", "flags=", "port=", "pinned=", "repo_id=123", environ=SLOTS)
    entry = kept(mlxctl)["a"]
    assert "flags" not in entry
    assert (entry["port"], entry["repo_id"]) == (None, "123")


def test_a_stored_model_without_an_entry_gets_one(mlxctl: Mlxctl, home: Home) -> None:
    assert mlxctl("import", str(write_fake_model(home.root / "a.gguf")), "tiny").code == 0
    assert kept(mlxctl) == {}
    assert mlxctl("registry", "set", "tiny", "chat_template=chatml").code == 0
    assert [entry["chat_template"] for entry in kept(mlxctl).values()] == ["chatml"]
    assert mlxctl("registry", "set", "other", "chat_template=chatml").code == 4


def test_a_wrong_field_is_not_set(mlxctl: Mlxctl) -> None:
    other = an_entry(model_id="other", port=8100)
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry(), other=other), environ=SLOTS)
    for words, code, exit_code in (
        (["a", "contxt=1"], "unknown_field", 3),
        (["a", "context_length"], "invalid_input", 3),
        (["a", "context_length=long"], "registry_invalid", 3),
        (["a", "format="], "registry_invalid", 3),
        (["a", "chat_template=\udcff"], "registry_invalid", 3),
        (["b", "context_length=1"], "model_not_registered", 4),
        (["a", "port=8100"], "slot_in_use", 6),
    ):
        done = mlxctl("registry", "set", *words, "--json", environ=SLOTS)
        assert (done.json()["error"]["code"], done.code) == (code, exit_code)


def an_editor(folder: Path, *programs: str) -> dict[str, str]:
    """An editor that changes ``text`` by the n-th of these programs at its n-th start."""
    script = folder / "editor.py"
    script.write_text(
        "import sys, pathlib\n"
        "count = pathlib.Path(__file__).with_suffix('.count'); file = pathlib.Path(sys.argv[1])\n"
        "number = int(count.read_text()) if count.exists() else 0; count.write_text(str(number + 1))\n"
        f"names = {{'text': file.read_text()}}; exec({programs!r}[number], names); file.write_text(names['text'])\n"
    )
    return {"VISUAL": "", "EDITOR": f"{sys.executable} {script}", **SLOTS}


def test_the_registry_and_one_entry_can_be_edited(mlxctl: Mlxctl, home: Home, tmp_path: Path) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry(model_id="a"), b=an_entry(model_id="b")))
    editor = an_editor(tmp_path, "text = text.replace('null', '8104')", "text = text.replace('\"b\"', '\"c\"')", "")
    assert mlxctl("registry", "edit", "a", environ=editor).out == "a is on port 8104 in place of none\n"
    assert mlxctl("registry", "edit", environ=editor).out == "b is gone\nc is new\n"
    assert mlxctl("registry", "edit", environ=editor).out == "nothing changed\n"
    assert [path.name for path in home.run.glob("registry-*")] == []


def test_a_mistake_without_a_terminal_is_an_error_and_the_text_is_kept(
    mlxctl: Mlxctl, home: Home, tmp_path: Path
) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()))
    done = mlxctl("registry", "edit", environ=an_editor(tmp_path, "text = text.replace('null', '1')"))
    (left,) = home.run.glob("registry-*.json")
    assert done.code == 3
    assert f"your text is in {left}" in done.err
    assert '"port": 1' in left.read_text()
    assert kept(mlxctl)["a"]["port"] is None


def test_a_change_while_editing_is_not_overwritten(mlxctl: Mlxctl, home: Home, tmp_path: Path) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()))
    change = [sys.executable, "-m", "homelab_llm.interface.cli.main", "registry", "set", "a", "context_length=77"]
    program = f"import subprocess; subprocess.run({change!r}, check=True); text = text.replace('null', '8100')"
    done = mlxctl("registry", "edit", "--json", environ=an_editor(tmp_path, program))
    assert done.out[done.out.index("{") :].count('"conflict"') == 1
    assert (kept(mlxctl)["a"]["context_length"], kept(mlxctl)["a"]["port"]) == (77, None)


@pytest.mark.parametrize(("editor", "code"), [("false", "cancelled"), ("/nonesuch/editor", "not_found")])
def test_an_editor_that_fails_changes_nothing(mlxctl: Mlxctl, home: Home, editor: str, code: str) -> None:
    done = mlxctl("registry", "edit", "--json", environ={"VISUAL": editor})
    assert done.json()["error"]["code"] == code
    assert list(home.run.glob("registry-*")) == []


def on_a_terminal(argv: list[str], answers: bytes, environ: dict[str, str]) -> tuple[int, bytes]:
    """Run a program on a terminal of its own; what is typed and what is shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, environ)  # noqa: S606
    os.write(terminal, answers)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux: the other side is closed
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_mistake_on_a_terminal_opens_the_editor_again(mlxctl: Mlxctl, tmp_path: Path) -> None:
    mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()))
    editor = an_editor(tmp_path, "text = text.replace('null', '1')", "text = text.replace('1\\n', '8109\\n')")
    argv = [sys.executable, "-m", "homelab_llm.interface.cli.main", "registry", "edit"]
    code, shown = on_a_terminal(argv, b"y\n", {**os.environ, **editor})
    assert code == 0, shown
    assert b"edit it again?" in shown
    assert kept(mlxctl)["a"]["port"] == 8109


def test_a_running_daemon_is_told(mlxctl: Mlxctl, daemon: ScriptedDaemon) -> None:
    content = a_document(a=an_entry(port=8100))
    daemon.says("/admin/registry/refresh", 200, {"refreshed": True})
    told = mlxctl("registry", "import", "-", stdin=content, environ=SLOTS)
    assert ("/admin/registry/refresh", {}) in daemon.asked
    assert "mlxctl reconcile --apply" in told.err
    daemon.asked.clear()
    mlxctl("registry", "import", "-", stdin=content, environ=SLOTS)
    assert [path for path, _ in daemon.asked if "refresh" in path] == [], "nothing changed"


@pytest.mark.parametrize(
    ("status", "code", "words"), [(404, "endpoint_not_found", ""), (500, "internal_error", "did not read")]
)
def test_a_daemon_that_cannot_be_told_costs_nothing(
    mlxctl: Mlxctl, daemon: ScriptedDaemon, status: int, code: str, words: str
) -> None:
    daemon.says("/admin/registry/refresh", status, {"error": {"code": code, "message": "no"}})
    done = mlxctl("registry", "import", "-", stdin=a_document(a=an_entry()))
    assert (done.code, done.out) == (0, "a is new\n")
    assert words in done.err
    assert bool(words) == bool(done.err)


def test_the_registry_can_live_in_postgresql(mlxctl: Mlxctl, postgres: Postgres, home: Home) -> None:
    environ = {"HOMELAB_DATA__URL": postgres.url()}
    home.database.unlink()

    def call(*argv: str, stdin: bytes = b"") -> Outcome:
        return mlxctl("registry", *argv, stdin=stdin, environ=environ)

    assert call("import", "-", stdin=a_document(a=an_entry())).out == "a is new\n"
    assert call("export", "-").out == (home.root / "registry.json").read_text()
    assert not home.database.exists()


def test_what_is_no_file_is_an_error_of_ours(mlxctl: Mlxctl, tmp_path: Path) -> None:
    assert mlxctl("registry", "validate", str(tmp_path / "none.json"), "--json").json()["error"]["code"] == "not_found"
    assert mlxctl("registry", "import", str(tmp_path), "--json").code != 0
    assert mlxctl("registry", "export", str(tmp_path), "--json").code != 0
