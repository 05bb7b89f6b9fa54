"""The documentation is generated, run or checked."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")])
PAGE_NAMES = ["settings.md", "errors.md", "endpoints.md", "cli.md", "../foundation/system-docs-db-schema.md"]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.requirement("R-U6", "R-D3")
@pytest.mark.parametrize("page", PAGE_NAMES)
def test_a_reference_page_says_what_the_code_says(page: str) -> None:
    committed = (ROOT / "docs" / "reference" / page).read_text("utf-8")
    assert committed == _script("reference").pages()[page], "run: make docs"


@pytest.mark.requirement("R-U6")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8"))
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.requirement("R-U6")
def test_every_layer_has_its_readme_and_constraints() -> None:
    layers = [path for path in (ROOT / "src" / "homelab_llm").iterdir() if (path / "__init__.py").exists()]
    assert len(layers) >= 9
    missing = [
        f"{path.name}/{name}"
        for path in layers
        for name in ("README.md", "CONSTRAINTS.md")
        if not (path / name).exists()
    ]
    assert missing == []


@pytest.mark.requirement("R-U6")
def test_every_verb_and_setting_the_pages_name_exists() -> None:
    known_verbs = set(re.findall(r"^#+ `?mlxctl ([a-z][a-z-]*)", _script("reference").pages()["cli.md"], re.MULTILINE))
    settings = _script("reference").pages()["settings.md"]
    assert "run" in known_verbs
    for page in PAGES:
        text = page.read_text("utf-8")
        named = set(re.findall(r"(?:^|`|/)mlxctl ([a-z][a-z-]*)", text, re.MULTILINE))
        assert named <= known_verbs, page
        for section, key in re.findall(r"`(server|slots|fleet|engine|store|data|remote|log)\.((?!py`)[a-z_]+)`", text):
            assert f"| `{key}` |" in settings.split(f"## {section}\n", 1)[1].split("\n## ")[0], (page, section, key)


@pytest.mark.requirement("R-U6")
def test_every_requirement_a_test_names_exists() -> None:
    script = _script("requirements")
    known = script.promises()
    assert len(known) > 60
    assert {identity for identity, _ in script.marks()} <= set(known)


def test_the_glossary_has_every_word_once_in_order() -> None:
    rows = (ROOT / "docs" / "concepts" / "glossary.md").read_text("utf-8").split("|---|---|\n")[1].splitlines()
    words = [re.sub("[(),]", "", row.split("|")[1]).strip().lower() for row in rows]
    assert words == sorted(set(words))
