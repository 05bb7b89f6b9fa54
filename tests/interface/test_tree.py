"""The tree of verbs: complete, documented, and the same for all."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from homelab_llm.interface.cli.contents import CHAPTERS
from homelab_llm.interface.cli.reference import render, verbs
from homelab_llm.interface.cli.tree import VERBS

if TYPE_CHECKING:
    from tests.interface.conftest import Mlxctl

EVERY = dict(verbs())
ENTRIES = {name: entry for chapter in CHAPTERS for name, entry in chapter.verbs.items()}


@pytest.mark.requirement("R-F4")
@pytest.mark.parametrize("path", EVERY)
def test_every_verb_takes_json_and_says_what_it_does(path: str) -> None:
    command = EVERY[path]
    options = [name for parameter in command.params for name in parameter.opts]
    assert "--json" in options
    assert "-v" in options
    assert (command.help or "").strip()
    assert all(option.help for option in command.params if isinstance(option, click.Option))


@pytest.mark.requirement("R-U1")
def test_the_verbs_of_the_product_are_there() -> None:
    wanted = "run chat pull import list show cp rm prune ps stop status logs version completion serve doctor suggest"
    assert set(wanted.split()) <= set(VERBS)
    groups = {"daemon": "start stop restart status", "key": "create list revoke", "service": "install uninstall status"}
    assert {f"mlxctl {group} {name}" for group, names in groups.items() for name in names.split()} <= set(EVERY)


def test_the_reference_page_has_every_verb_and_every_option() -> None:
    page = render()
    for path, command in EVERY.items():
        if not ENTRIES[path.split()[1]].summary:
            continue
        assert f"\n## {path}\n" in page
        section = page.split(f"\n## {path}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in ("json", "verbose"):
                assert f"`{parameter.opts[-1]}" in section or f"{parameter.opts[-1]}" in section
    assert "| 130 |" in page


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_is_printed(mlxctl: Mlxctl, shell: str) -> None:
    script = mlxctl("completion", shell)
    assert script.code == 0
    assert "_MLXCTL_COMPLETE" in script.out
    assert mlxctl("completion", shell, "--json").json()["script"].strip() == script.out.strip()


def test_the_script_for_bash_is_bash(mlxctl: Mlxctl) -> None:
    script = mlxctl("completion", "bash").out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_completion_offers_verbs(mlxctl: Mlxctl) -> None:
    environ = {"_MLXCTL_COMPLETE": "bash_complete", "COMP_WORDS": "mlxctl st", "COMP_CWORD": "1"}
    assert mlxctl(environ=environ).out.split() == ["plain,stop", "plain,status"]


def test_the_help_groups_the_verbs_by_what_they_are_for(mlxctl: Mlxctl) -> None:
    page = mlxctl("--help").out
    listed = [line.split(None, 1) for line in page.split("\nTalk:\n")[1].splitlines() if line.startswith("  ")]
    assert dict(listed) == {name: entry.summary for name, entry in ENTRIES.items() if entry.summary}
    assert all(f"\n{chapter.title}:\n" in page for chapter in CHAPTERS)
    assert max(map(len, page.splitlines())) <= 80
    assert len(VERBS) == sum(len(chapter.verbs) for chapter in CHAPTERS)


def test_verbs_without_a_summary_are_the_hidden_ones() -> None:
    for name, entry in ENTRIES.items():
        module, _, attribute = entry.place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert command.hidden == (not entry.summary), name


def test_help_and_the_completion_of_verbs_import_no_verb() -> None:
    program = """
import json, sys
from homelab_llm.interface.cli.guard import run_command_line
code = run_command_line(["--help"], {})
from homelab_llm.interface.cli.contents import CHAPTERS
places = {entry.place.partition(":")[0] for chapter in CHAPTERS for entry in chapter.verbs.values()}
print(json.dumps([code, sorted(places & set(sys.modules))]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr) == [0, []]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("pul", "mlxctl pull"),
        ("template checks", "mlxctl template check"),
        ("jobs lis", "mlxctl jobs list"),
        ("xyzzy", "mlxctl --help"),
    ],
)
def test_a_mistyped_verb_is_answered_with_the_one_that_was_meant(mlxctl: Mlxctl, typed: str, meant: str) -> None:
    wrong = mlxctl(*typed.split(), "--json")
    assert wrong.code == 2
    assert wrong.json()["error"]["hint"] == meant
