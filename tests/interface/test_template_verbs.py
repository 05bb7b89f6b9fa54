"""``mlxctl template``: which template a model uses and why, what a template supports, and those of Ollama as Jinja."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.chat_template import ChatTemplate
from homelab_llm.core.paths import Home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.database import ready_database

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-M8")
QUESTION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France? Answer in one sentence."},
]
OLLAMA = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""


@pytest.fixture
def lost(home: Home, mlxctl: Mlxctl, smollm2_without_template: Path) -> str:
    """SmolLM2 without its template, in the store."""
    assert mlxctl("import", str(smollm2_without_template), "lost:1").code == 0
    return "lost:1"


@pytest.fixture
def daemon(mlxctl: Mlxctl, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The daemon that verbs start takes a free port, and is gone at the end."""
    monkeypatch.setenv("HOMELAB_SERVER__LISTEN", "127.0.0.1:0")
    yield
    assert mlxctl("daemon", "stop").code == 0


def test_the_catalogue_is_listed(mlxctl: Mlxctl) -> None:
    listed = mlxctl("template", "list", "--json").json()["templates"]
    assert {"chatml", "llama3.1", "qwen3", "gemma", "gpt-oss", "vicuna"} <= {entry["name"] for entry in listed}
    assert "ChatML" in mlxctl("template", "list").out


def test_a_models_template_is_shown_with_where_it_comes_from(
    mlxctl: Mlxctl, home: Home, lost: str, smollm2_gguf: Path
) -> None:
    shown = mlxctl("template", "show", lost, "--json").json()
    assert (shown["from"], shown["entry"]) == ("catalogue", "chatml")
    assert mlxctl("template", "show", lost).out.startswith("{#- ChatML")
    assert mlxctl("import", str(smollm2_gguf), "own:1").code == 0
    assert mlxctl("template", "show", "own:1", "--json").json()["from"] == "files"
    assert mlxctl("template", "show", "zephyr", "--json").json()["from"] == "catalogue"
    ready_database(home.database)
    entry = {"repo_id": "Org/Own", "model_id": "own:1", "format": "gguf", "chat_template": "vicuna"}
    document = json.dumps({"version": 1, "models": {"own": entry}}).encode()
    assert mlxctl("registry", "import", "-", stdin=document).code == 0
    shown = mlxctl("template", "show", "own:1", "--json").json()
    assert (shown["from"], shown["entry"]) == ("registry", "vicuna")
    missing = mlxctl("template", "show", "nothing-here", "--json")
    assert missing.json()["error"]["code"] == "model_not_found"


def test_a_check_says_what_a_template_supports_and_fails_when_it_is_of_no_use(mlxctl: Mlxctl, tmp_path: Path) -> None:
    supports = mlxctl("template", "check", "qwen3", "--json").json()["supports"]
    assert supports["tools"]
    assert supports["thinking"]
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    checked = mlxctl("template", "check", str(file))
    assert checked.code == 0
    assert "ignored" in checked.out
    file.write_text("always the same")
    assert mlxctl("template", "check", str(file)).code == 1
    file.write_text("{% for %}")
    assert mlxctl("template", "check", str(file), "--json").json()["error"]["code"] == "invalid_template"
    assert mlxctl("template", "check", "-", stdin=b"{{ messages[0].content }}").code == 0
    assert mlxctl("template", "check", "-", stdin=b"\xff").code == 3


def test_a_conversation_of_ones_own_is_rendered(mlxctl: Mlxctl, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(json.dumps({"messages": QUESTION, "tools": None}))
    prompt = mlxctl("template", "check", "chatml", "--messages", str(tmp_path / "talk.json")).out
    assert prompt.endswith("one sentence.<|im_end|>\n<|im_start|>assistant\n\n")
    (tmp_path / "talk.json").write_text("[1]")
    refused = mlxctl("template", "check", "chatml", "--messages", str(tmp_path / "talk.json"), "--json")
    assert refused.json()["error"]["facts"]["field"] == "messages"


def test_ollamas_template_gives_smollm2_the_prompt_of_its_own(
    mlxctl: Mlxctl, home: Home, smollm2_gguf: Path, tmp_path: Path
) -> None:
    (tmp_path / "smollm2.gotmpl").write_text(OLLAMA)
    translated = mlxctl("template", "translate", str(tmp_path / "smollm2.gotmpl")).out
    assert mlxctl("import", str(smollm2_gguf), "own:1").code == 0
    own = ModelStore(home.store).resolve("own:1").facts.chat_template
    talk: list[dict[str, Any]] = [
        *QUESTION,
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Ok?"},
    ]
    for messages in (QUESTION, talk):
        assert ChatTemplate(translated).render(messages, {}) == ChatTemplate(own).render(messages, {})
    (tmp_path / "odd.gotmpl").write_text("a\n{{ .Odd }}")
    refused = mlxctl("template", "translate", str(tmp_path / "odd.gotmpl"), "--json").json()["error"]
    assert (refused["code"], refused["facts"]["line"]) == ("invalid_template", 2)


def test_a_model_that_lost_its_template_answers_as_with_its_own(
    mlxctl: Mlxctl, daemon: None, lost: str, smollm2_gguf: Path
) -> None:
    assert mlxctl("import", str(smollm2_gguf), "own:1").code == 0
    asked = ("--system", QUESTION[0]["content"], "--temperature", "0", "--json")
    answers = [mlxctl("run", name, QUESTION[1]["content"], *asked).json()["answer"] for name in (lost, "own:1")]
    assert answers[0] == answers[1]
    assert "Paris" in answers[0]
