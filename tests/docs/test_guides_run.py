"""The commands of the pages: each one can be typed, and those of the guides on models do what they say, for real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from homelab_llm.core.paths import Home
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.output import Output
from homelab_llm.interface.cli.tree import mlxctl
from homelab_llm.testing.models import write_fake_model
from homelab_llm.testing.registries import Registry
from homelab_llm.testing.slotted import free_ports

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PAGES.remove(ROOT / "docs" / "reference" / "cli.md")  # generated from the verbs themselves
_BLOCK = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^ {4}(mlxctl .*)$", re.MULTILINE)
_INLINE = re.compile(r"`(mlxctl [^`]+)`")


def in_blocks(text: str) -> Iterator[str]:
    """The lines of a page's code blocks that call ``mlxctl``, in their order."""
    for found in sorted([*_BLOCK.finditer(text), *_INDENTED.finditer(text)], key=re.Match.start):
        for line in found[1].splitlines():
            line = line.removeprefix("$ ").strip()
            if re.match(r"(.*\| )?(\.venv/bin/)?mlxctl ", line):
                yield line


def in_line(text: str) -> list[str]:
    """Calls in the running text and in tables."""
    return [" ".join(found.split()) for found in _INLINE.findall(_BLOCK.sub("", text))]


def words(command: str) -> list[str]:
    """The arguments behind ``mlxctl``, without pipes, redirections, comments and the ``…`` of prose."""
    last = re.split(r"(?:^|[ /])mlxctl ", command, maxsplit=1)[1]
    parts = shlex.split(re.split(r" [|>&;]", last)[0], comments=True)
    return [part.rstrip("…") for part in parts if part.rstrip("…")]


def parse(command: click.Command, argv: list[str], above: click.Context | None = None) -> None:
    """Parse as a call would, down to the verb; nothing is carried out.

    Raises:
        UsageError: it cannot be typed like this.
    """
    call = Invocation(Output(sys.stdout, sys.stderr, json=True, environ={}), {})
    name = command.name or ""
    context = command.make_context(name, list(argv), parent=above, obj=call)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        chosen = command.get_command(context, rest[0])
        if chosen is None:
            raise click.UsageError(f"there is no verb {rest[0]}")
        parse(chosen, rest[1:], context)


@pytest.mark.requirement("R-U6")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    text = page.read_text("utf-8")
    for command in [*in_blocks(text), *in_line(text)]:
        try:
            parse(mlxctl, words(command))
        except click.exceptions.Exit:
            pass  # --help
        except (click.MissingParameter, click.BadOptionUsage, click.exceptions.NoArgsIsHelpError):
            assert command in in_line(text), command  # prose may name a verb alone
        except click.UsageError as wrong:
            pytest.fail(f"{command}: {wrong.format_message()}")


@dataclass(frozen=True)
class Walk:
    """How a guide is followed."""

    stands_for: Mapping[str, str] = field(default_factory=dict)
    """What takes the place of the guide's capitals and names; in this order."""
    before: str = ""
    """What a reader has done already."""
    elsewhere: tuple[str, ...] = ()
    """How commands begin that need the internet, another machine or a keyboard."""
    real: bool = False
    """With SmolLM2, whose answers are real, in place of a model that is small."""


_MODEL = {"MODEL": "smollm2:135m", "NAME": "smollm2:135m"}
WALKS = {
    "build-a-model.md": Walk(before=f"cp {ROOT}/docs/examples/modelspec.yaml .", elsewhere=("pull",), real=True),
    "registries.md": Walk(
        {"ghcr.io": "$REGISTRY", "HOST/NAME:TAG": "$REGISTRY/a/b:c", "HOST": "$REGISTRY", "FILE": "other"} | _MODEL,
        before="TOKEN=secret NAME=me",
        elsewhere=("login HOST", "login huggingface.co"),
    ),
    "templates.md": Walk(
        {"qwen3": "smollm2:135m", "FILE": "mine"} | _MODEL,
        before="echo '{{ .System }} {{ .Prompt }} {{ .Response }}' > mine.gotmpl",
        elsewhere=("pull ollama:",),
    ),
    "trust-and-repair.md": Walk({"PATH NAME": "$GGUF again"} | _MODEL, elsewhere=("doctor",)),
    "models.md": Walk(
        {"oci://HOST/NAME@sha256:…": "oci://$REGISTRY/m@$DIGEST", "HOST/NAME:TAG": "$REGISTRY/m:1", "PATH": "$GGUF"},
        before="mlxctl push smollm2:135m oci://$REGISTRY/m:1\n"
        "DIGEST=$(mlxctl show smollm2:135m | sed -n 's/^digest *//p')",
        elsewhere=("pull hf:", "pull ollama:", "pull https:", "pull packages:", "pull smollm2:", "login"),
    ),
    "share-models.md": Walk(
        {"oci://HOST/NAME:TAG": "oci://$REGISTRY/m:1", "--hf-cache": "--hf-cache --as me/it", "FILE.tar": "it.tar"}
        | {"FILE": "handles.jsonl"}
        | _MODEL,
        before="export HF_HUB_CACHE=$PWD/cache\nmlxctl export smollm2:135m --hf-cache --as me/it\n"
        "mlxctl registry set smollm2:135m port=$SLOT\nmlxctl handles export - > handles.jsonl\n"
        "grep -q smollm2 handles.jsonl",
        elsewhere=("cp ", "push NAME hf:", "login huggingface.co"),
    ),
    "jobs.md": Walk(
        {
            "8100": "$SLOT",
            "hf:org/name": "file:$GGUF fetched",
            "job-1f0c2a9b": "$(mlxctl jobs list --all | sed -n 's/ .*//;2p')",
        },
        before="mlxctl registry set smollm2:135m port=$SLOT",
    ),
}


def script(name: str, walk: Walk) -> str:
    """The guide as a program for bash: every command it shows, once each, in its order."""
    text = (ROOT / "docs" / "guides" / name).read_text("utf-8")
    lines = ["set -euo pipefail", "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR", walk.before]
    for command in dict.fromkeys([*in_blocks(text), *in_line(text)]):
        if any(f"mlxctl {start}".rstrip() in command for start in walk.elsewhere) or len(words(command)) < 1:
            continue
        for capitals, thing in walk.stands_for.items():
            command = re.sub(rf"(?<![\w$]){re.escape(capitals)}(?!\w)", thing.replace("\\", r"\\"), command)
        lines.append(command.replace("…", ""))
    return "\n".join(lines) + "\n"


@pytest.mark.requirement("R-U6")
@pytest.mark.parametrize("name", WALKS)
def test_a_guide_can_be_followed(
    name: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    walk = WALKS[name]
    gguf = request.getfixturevalue("smollm2_gguf") if walk.real else write_fake_model(tmp_path / "fake.gguf")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mlxctl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m homelab_llm.interface.cli.main "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOMELAB_SERVER__LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("HOMELAB_STORE__FREE_FLOOR_BYTES", "1000000")
    monkeypatch.setenv("GGUF", str(gguf))
    (tmp_path / "work").mkdir()
    (slot,) = free_ports(1)
    monkeypatch.setenv("HOMELAB_SLOTS__PORTS", str(slot))
    monkeypatch.setenv("SLOT", str(slot))
    with Registry() as registry:
        monkeypatch.setenv("REGISTRY", f"127.0.0.1:{registry.port}")
        steps = f'mlxctl import "$GGUF" smollm2:135m\n{script(name, walk)}'
        try:
            done = _bash(steps, tmp_path / "work")
        finally:
            _bash("mlxctl daemon stop", tmp_path / "work")
    assert done.returncode == 0, f"{done.stdout[-1500:]}{done.stderr[-1500:]}"


def _bash(steps: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", steps],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        stdin=subprocess.DEVNULL,
        check=False,
    )
