"""``mlxctl create`` and ``show``, on a real store; and the real model, made into another one, end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.core.paths import Home
from homelab_llm.testing.adapters import write_gguf_adapter
from homelab_llm.testing.models import write_fake_model

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

pytestmark = pytest.mark.requirement("R-M6")

DOCS = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def tiny(home: Home, mlxctl: Mlxctl) -> str:
    path = write_fake_model(home.root / "tiny.gguf")
    assert mlxctl("import", str(path), "smollm2:135m").code == 0
    return "smollm2:135m"


@pytest.mark.parametrize("file", ["modelspec.yaml", "Modelfile"])
def test_the_examples_of_the_docs_make_a_model(mlxctl: Mlxctl, tiny: str, file: str) -> None:
    made = mlxctl("create", "pirate", "-f", str(DOCS / file), "--json")
    assert made.code == 0, made
    last = json.loads(made.out.splitlines()[-1])
    assert (last["status"], last["model"]["name"]) == ("done", "pirate:latest")
    shown = mlxctl("show", "pirate")
    for words in ("You are a pirate.", "temperature 0.2", "made by         create from smollm2:135m"):
        assert words in shown.out
    data = mlxctl("show", "pirate", "--json").json()
    assert data["provenance"]["base"] == tiny
    assert data["defaults"]["parameters"]["stop"] == ["THE END"]


def test_the_name_may_stand_in_the_spec_and_the_file_in_this_folder(
    mlxctl: Mlxctl, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mlxctl("create", "x", "--json").json()["error"]["code"] == "invalid_model_spec"
    (tmp_path / "ModelSpec.yaml").write_text(f"base: {tiny}\nname: here\n")
    assert mlxctl("create").out.startswith("created here:latest from smollm2:135m")
    (tmp_path / "ModelSpec.yaml").write_text(f"base: {tiny}\n")
    assert "no name" in mlxctl("create").err
    assert mlxctl("create", "other", "--base", "here").code == 0
    assert mlxctl("show", "other", "--json").json()["provenance"]["base"] == "here:latest"


def test_an_error_names_the_file_and_the_line_and_nothing_is_made(mlxctl: Mlxctl, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("FROM smollm2:135m\n\nPARAMETER temperatur_x 1\n")
    refused = mlxctl("create", "bad", "-f", str(tmp_path / "bad"))
    assert refused.code == 3
    assert "bad: line 3: there is no parameter 'temperatur_x'; did you mean temperature?" in refused.err
    facts = mlxctl("create", "bad", "-f", str(tmp_path / "bad"), "--json").json()["error"]["facts"]
    assert facts["line"] == 3
    assert len(mlxctl("list", "--json").json()["models"]) == 1


def test_a_model_is_shown_as_a_spec_and_as_a_modelfile_that_make_it_again(
    mlxctl: Mlxctl, tiny: str, tmp_path: Path
) -> None:
    go = "{{ if .System }}[{{ .System }}] {{ end }}{{ .Prompt }}"
    (tmp_path / "m").write_text(f'FROM {tiny}\nTEMPLATE "{go}"\nSYSTEM be\nPARAMETER stop a b\nLICENSE """L\nM"""\n')
    assert mlxctl("create", "one", "-f", str(tmp_path / "m")).code == 0
    for part in ("--spec", "--modelfile"):
        (tmp_path / "again").write_text(mlxctl("show", "one", part).out)
        assert mlxctl("create", "two", "-f", str(tmp_path / "again")).code == 0
        one, two = (mlxctl("show", name, "--json").json() for name in ("one", "two"))
        assert (one["defaults"] | {"go_template": ""}) == (two["defaults"] | {"go_template": ""})
        assert one["files"] == two["files"]
    assert go in mlxctl("show", "one", "--modelfile").out
    assert mlxctl("show", "one", "--licence").out == "L\nM\n"
    assert mlxctl("show", "one", "--licence", "--json").json() == {"licence": "L\nM"}
    files = mlxctl("show", "one", "--files", "--json").json()["files"]
    assert [file["name"] for file in files] == ["LICENSE", "model.gguf"]


def test_a_jinja_template_is_left_out_of_a_modelfile_and_that_is_said(
    mlxctl: Mlxctl, tiny: str, tmp_path: Path
) -> None:
    (tmp_path / "s").write_text(
        f"base: {tiny}\ntemplate: '{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}'\n"
    )
    assert mlxctl("create", "one", "-f", str(tmp_path / "s")).code == 0
    shown = mlxctl("show", "one", "--modelfile").out
    assert "Jinja, which a Modelfile cannot hold" in shown
    assert "TEMPLATE" not in shown


# --- the real model -----------------------------------------------------------------------------------------------


@pytest.fixture
def smollm2(home: Home, mlxctl: Mlxctl, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOMELAB_SERVER__LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("HOMELAB_ENGINE__PARALLEL", "1")
    assert mlxctl("import", str(smollm2_gguf), "smollm2:135m").code == 0
    yield "smollm2:135m"
    assert mlxctl("daemon", "stop").code == 0


def _asked(mlxctl: Mlxctl, model: str, *options: str) -> dict[str, Any]:
    said = mlxctl("run", model, "What is the capital of France? Answer in one sentence.", "--json", *options)
    assert said.code == 0, said
    answer: dict[str, Any] = said.json()
    return answer


def test_a_real_model_is_what_its_spec_says(mlxctl: Mlxctl, smollm2: str, smollm2_gguf: Path, tmp_path: Path) -> None:
    write_gguf_adapter(tmp_path / "lora.gguf", smollm2_gguf)
    plain = "base: smollm2:135m\nparameters: {temperature: 0, max_tokens: 24, num_ctx: 256}\n"
    specs = {
        "plain": plain,
        "pirate": plain + "system: You are a pirate. Begin every answer with Arrr.\n"
        "messages: [{role: user, content: Who are you?}, {role: assistant, content: 'Arrr, I be a pirate, matey!'}]\n",
        "stopped": plain + "stop: Paris\n",
        "short": "base: smollm2:135m\n"
        "template: '{% for m in messages %}{{ m.content }}{% endfor %} The answer is'\nparameters: {max_tokens: 4}\n",
        "adapted": plain + "adapters: ./lora.gguf\n",
    }
    answers = {}
    for name, text in specs.items():
        (tmp_path / name).write_text(text)
        made = mlxctl("create", name, "-f", str(tmp_path / name))
        assert made.code == 0, made
        assert "warning" not in made.err
        answers[name] = _asked(mlxctl, name)
    assert "Paris" in answers["plain"]["answer"]
    assert answers["pirate"]["answer"].startswith("Arrr")
    assert "Paris" not in answers["stopped"]["answer"]
    assert answers["stopped"]["finish_reason"] == "stop"
    assert answers["short"]["usage"]["prompt_tokens"] < answers["plain"]["usage"]["prompt_tokens"] / 1.5
    assert answers["adapted"]["answer"] != answers["plain"]["answer"], "a random adapter speaks in tongues"
    assert "Arrr" not in _asked(mlxctl, "pirate", "--system", "You answer questions.")["answer"][:4]
    loaded = {entry["model"]: entry for entry in mlxctl("ps", "--json").json()["models"]}
    assert loaded["plain:latest"]["context_tokens"] == 256
    long = mlxctl("run", "plain", "word " * 400, "--json")
    assert long.json()["error"]["code"] == "context_overflow"
    shown = mlxctl("show", "adapted").out
    assert "runs here with  llama.cpp, 256 tokens of context" in shown
    assert "adapters        adapters/0/adapter.gguf" in shown
    assert " at 4k" in shown
    assert " at full context" in shown
