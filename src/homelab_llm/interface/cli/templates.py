"""``mlxctl template``: the chat templates of models, of our catalogue and of other tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from homelab_llm.core.errors import InvalidInput, InvalidTemplate, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.lazy import LazyGroup
from homelab_llm.interface.cli.models import resolve_or_none

MAX_FILE_BYTES = 4 << 20
_HERE = "homelab_llm.interface.cli.templates"


@click.group(
    "template",
    cls=LazyGroup,
    verbs={name: f"{_HERE}:{name}_" for name in ("list", "show", "check", "translate")},
)
def template() -> None:
    """Look at chat templates, check them, and translate those of Ollama."""


def template_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models and the names of the catalogue; a file is completed by the shell where neither fits."""
    from homelab_llm.store.templates.catalogue import ENTRIES

    names = [CompletionItem(entry.name) for entry in ENTRIES if entry.name.startswith(incomplete)]
    found = [*model_names(context, parameter, incomplete), *names]
    return found or [CompletionItem(incomplete, type="file")]


@verb("list")
def list_(invocation: Invocation) -> None:
    """List the catalogue: templates for models whose files have none."""
    from homelab_llm.store.templates.catalogue import ENTRIES

    data = [
        {
            "name": entry.name,
            "about": entry.about,
            "speaks": list(entry.speaks),
            "tokens": sorted(entry.tokens),
            "by_name_only": not entry.tokens,
        }
        for entry in ENTRIES
    ]
    rows = ((e.name, "vocabulary" if e.tokens else "name only", ", ".join(e.speaks), e.about) for e in ENTRIES)
    invocation.output.table(("NAME", "CHOSEN BY", "SPEAKS", "FOR"), rows, {"templates": data})


@verb("show")
@click.argument("name", metavar="MODEL|NAME", shell_complete=template_names)
def show_(invocation: Invocation, name: str) -> None:
    """Print the chat template that MODEL is used with and say where it comes from, or that of the catalogue's NAME."""
    found = _of_model_or_catalogue(invocation, name)
    if not found.text:
        raise InvalidTemplate(
            f"{name} has no chat template: its files have none, and its vocabulary fits none of the catalogue",
            hint=f"mlxctl registry set {name} chat_template=NAME    # a NAME of: mlxctl template list",
            model=name,
        )
    invocation.output.note(found.told)
    invocation.output.result(
        {"name": name, "from": found.origin, "entry": found.entry, "template": found.text}, found.text
    )


@verb("check")
@click.argument("name", metavar="FILE|MODEL|NAME", shell_complete=template_names)
@click.option(
    "--messages",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Render the conversation of this JSON file instead, and print the prompt: messages, or an object with"
    " messages and the variables beside them, such as tools.",
)
def check_(invocation: Invocation, name: str, messages: Path | None) -> None:
    """Render sample conversations with a template and say what it supports; exit code 1 when it cannot be used.

    FILE is a Jinja template, or one of Ollama when its name ends in .gotmpl; `-` is standard input. It is rendered
    in a process of its own, with limits on time, memory and text.
    """
    found = _of_file(name) or _of_model_or_catalogue(invocation, name)
    if not found.text:
        raise InvalidTemplate(f"{name} has no chat template", hint="mlxctl template list", model=name)
    if messages is not None:
        _print_prompt(invocation, found, messages)
        return
    from homelab_llm.store.templates.check import check

    report = check(found.text)
    data = {
        "name": name,
        "from": found.origin,
        "usable": report.usable,
        "supports": {finding.name: finding.status == "yes" for finding in report.findings},
        "findings": [{"name": f.name, "status": f.status, "reason": f.reason} for f in report.findings],
    }
    invocation.output.result(data, lambda: (_line(f.name, f.status, f.reason) for f in report.findings))
    if not report.usable:
        click.get_current_context().exit(1)


@verb("translate")
@click.argument("file", type=click.Path())
def translate_(invocation: Invocation, file: str) -> None:
    """Print Ollama's template in FILE (Go's text/template; `-` is standard input) as a Jinja chat template."""
    from homelab_llm.store.templates.go_template import translate

    text = translate(_read(file))
    invocation.output.result({"file": file, "template": text}, text)


@dataclass(frozen=True, slots=True)
class _Found:
    """A template and where it is from: registry, model, files, catalogue, file, or empty."""

    text: str
    origin: str
    told: str
    entry: str = ""


def _of_model_or_catalogue(invocation: Invocation, name: str) -> _Found:
    from homelab_llm.store.templates.catalogue import ENTRIES, named

    entry = named(name)
    model = resolve_or_none(invocation, name) if _may_be_model(name) else None
    if model is not None:
        return _of_model(invocation, model)
    if entry is not None:
        return _Found(entry.text, "catalogue", f"{name} of the catalogue", name)
    raise ModelNotFound(
        f"there is no model, no file and no template of the catalogue named {name[:80]!r}",
        hint=f"one of: {', '.join(entry.name for entry in ENTRIES)}",
    )


def _may_be_model(name: str) -> bool:
    from homelab_llm.core.errors import InvalidName
    from homelab_llm.core.names import ModelRef

    try:
        ModelRef.parse(name)
    except InvalidName:
        return False
    return True


def _of_model(invocation: Invocation, model: StoredModel) -> _Found:
    """The registry's entry comes before what the model brings, that before its files, those before the catalogue."""
    from homelab_llm.store.templates.catalogue import choose, named

    if chosen := _registered(invocation, model.name):
        entry = named(chosen)
        given = Path(chosen)
        if entry is not None:
            return _Found(entry.text, "registry", f"the registry's entry of {model.name}: {chosen}", chosen)
        if "{" in chosen or "\n" in chosen or not given.is_absolute():
            return _Found(chosen, "registry", f"the registry's entry of {model.name}")
        return _Found(_read(chosen), "registry", f"the registry's entry of {model.name}: {chosen}")
    origin = model.template_from
    found = choose(model.facts) if origin == "catalogue" else None
    told = {
        "model": f"what {model.name} was created with",
        "files": f"the files of {model.name}",
        "catalogue": f"{found.name if found else ''} of the catalogue; the files of {model.name} have none",
    }.get(origin, "")
    return _Found(model.facts.chat_template, origin, told, found.name if found else "")


def _registered(invocation: Invocation, name: str) -> str:
    """The template of the model's registry entry; no database is made to find that there is none."""
    if not (invocation.home.database.exists() or invocation.may_be_set("data", "url")):
        return ""
    with invocation.registry() as registry:
        entry = registry.read().by_model(name)
    return entry.chat_template if entry else ""


def _of_file(name: str) -> _Found | None:
    """The template in a file, if it is one; Ollama's are translated by the end of their name."""
    if name != "-" and not Path(name).is_file():
        return None
    text = _read(name)
    if name.endswith(".gotmpl"):
        from homelab_llm.store.templates.go_template import translate

        return _Found(translate(text), "file", f"{name}, translated")
    return _Found(text, "file", name)


def _read(file: str) -> str:
    """The text of a file, or of standard input for ``-``."""
    if file == "-":
        content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        try:
            with Path(file).open("rb") as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {error.strerror}", field="file") from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInput(f"{file} is larger than {MAX_FILE_BYTES} bytes", field="file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is not text in UTF-8", field="file") from error


def _print_prompt(invocation: Invocation, found: _Found, file: Path) -> None:
    from homelab_llm.store.templates.rendering import Conversation, render

    messages, values = _conversation(file)
    (rendered,) = render(found.text, [Conversation(messages, values)])
    if rendered.code:
        raise InvalidTemplate(rendered.reason, field="messages")
    invocation.output.result({"prompt": rendered.prompt}, rendered.prompt)


def _conversation(file: Path) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    try:
        told = json.loads(_read(str(file)))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} is not JSON: {error}", field="messages") from error
    values = {name: value for name, value in told.items() if name != "messages"} if isinstance(told, dict) else {}
    messages = told.get("messages") if isinstance(told, dict) else told
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InvalidInput(f"{file} has no list of messages, each with a role", field="messages")
    if taken := {"add_generation_prompt", "messages"} & values.keys():
        raise InvalidInput(f"{file} must not set {taken.pop()}", field="messages")
    return messages, values


def _line(name: str, status: str, reason: str) -> str:
    word = {"yes": "yes", "no": "no", "lost": "ignored"}[status]
    return f"{name:20}{word}{f' ({reason})' if reason else ''}"
