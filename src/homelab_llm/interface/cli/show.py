"""``mlxctl show``: everything about one model, in words or as one of its parts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.models import summary

if TYPE_CHECKING:
    from homelab_llm.interface.cli.foretelling import Foretold
    from homelab_llm.store.scan import ScanReport

_TEMPLATES = {"model": "its own, in place of the files'", "catalogue": "the catalogue's, for the files have none"}


@verb("show")
@click.argument("model", shell_complete=model_names)
@click.option("--template", is_flag=True, help="Print the chat template only.")
@click.option("--modelfile", is_flag=True, help="Print it as an Ollama Modelfile.")
@click.option("--spec", is_flag=True, help="Print the ModelSpec that makes it again.")
@click.option("--licence", is_flag=True, help="Print the licence.")
@click.option("--files", is_flag=True, help="List its files with sizes and where they lie.")
def show(invocation: Invocation, /, model: str, **parts: bool) -> None:
    """Say everything about MODEL: facts, memory, the engine that will run it here and why, defaults, origin."""
    asked = [name for name, wanted in parts.items() if wanted]
    if len(asked) > 1:
        raise click.UsageError(" and ".join(f"--{name}" for name in asked) + " exclude each other")
    part = asked[0] if asked else None
    found = invocation.store.resolve(model)
    if part == "files":
        _files(invocation, found)
    elif part is not None:
        text = _part(found, part)
        key = "chat_template" if part == "template" else part
        if invocation.output.json:
            invocation.output.result({key: text}, "")
        else:
            invocation.output.result({}, text.removesuffix("\n"))
    else:
        _whole(invocation, found)


def _part(model: StoredModel, part: str) -> str:
    """One part as text."""
    if part == "template":
        if not model.facts.chat_template:
            raise InvalidInput(
                f"{model.name} brings no chat template", hint=f"mlxctl template show {model.name}", field="template"
            )
        return model.facts.chat_template
    from homelab_llm.store.build.create import spec_of

    spec = spec_of(model)
    if part == "spec":
        from homelab_llm.store.build.modelspec import write_modelspec

        return write_modelspec(spec)
    if part == "modelfile":
        return _modelfile(model)
    if not spec.licence:
        raise InvalidInput(
            f"nothing tells the licence of {model.name}", hint=f"mlxctl show {model.name}", field="licence"
        )
    return spec.licence


def _modelfile(model: StoredModel) -> str:
    """A Modelfile as Ollama reads it: its template only where that is in Go's language, adapters as files."""
    from dataclasses import replace

    from homelab_llm.store.build.create import spec_of
    from homelab_llm.store.build.modelfile import write_modelfile

    spec = spec_of(model)
    adapters = tuple(
        str(path)
        for name in model.defaults.adapters
        for path in list(model.adapter_files(name).values())[:1]
        if name.endswith(".gguf")
    )
    notes = []
    if spec.template and not model.defaults.go_template:
        notes.append("# its chat template is Jinja, which a Modelfile cannot hold: mlxctl show MODEL --template")
    if len(adapters) < len(model.defaults.adapters):
        notes.append("# an adapter in PEFT's format is left out: mlxctl show MODEL --files")
    parameters = {name: value for name, value in spec.parameters.items() if name != "reasoning_effort"}
    written = replace(spec, template=model.defaults.go_template, adapters=adapters, parameters=parameters)
    return "".join(f"{note}\n" for note in notes) + write_modelfile(written)


def _files(invocation: Invocation, model: StoredModel) -> None:
    rows = [(name, path.stat().st_size, path) for name, path in model.files.items()]
    data = {"files": [{"name": name, "size_bytes": size, "path": str(path)} for name, size, path in rows]}
    table = [(name, format_bytes(size), path.name[:12], str(path)) for name, size, path in rows]
    invocation.output.table(("NAME", "SIZE", "SHA256", "PATH"), table, data)


def _whole(invocation: Invocation, model: StoredModel) -> None:
    from homelab_llm.interface.cli.foretelling import foretell
    from homelab_llm.store.scan import scan

    foretold, report = foretell(invocation, model), scan(model)
    data = {
        **summary(model),
        "facts": model.facts.as_dict(),
        "files": {name: str(path) for name, path in model.files.items()},
        "pulled_from": model.pulled_from,
        "defaults": model.defaults.as_dict(),
        "provenance": model.provenance.as_dict(),
        "engine": {"name": foretold.engine, "why": foretold.why, "hint": foretold.hint, "warning": foretold.warning},
        "memory_bytes": dict(foretold.memory_bytes or {}),
        "scan": [{"name": check.name, "status": check.status, "text": check.text} for check in report.checks],
    }
    invocation.output.result(data, lambda: _shown(model, foretold, report))
    if not report.ok:
        invocation.output.warning(f"{model.name} would be refused if it came today", f"mlxctl rm {model.name}")


def _shown(model: StoredModel, foretold: Foretold, report: ScanReport) -> Iterator[str]:
    facts = model.facts
    pairs = {
        "name": model.name,
        "digest": str(model.digest),
        "source": model.source,
        "pulled from": model.pulled_from if model.pulled_from != model.source else "",
        "size": format_bytes(model.size_bytes),
        "format": f"{facts.format} {facts.quantization}".strip(),
        "architecture": facts.architecture,
        "parameters": f"{facts.parameters:,}" if facts.parameters else "",
        "context": f"{facts.context_tokens:,} tokens" if facts.context_tokens else "",
        "KV cache": f"{facts.kv_bytes_per_token:,} bytes per token" if facts.kv_bytes_per_token else "",
        "embedding width": str(facts.embedding_width or ""),
        "layers": str(facts.layers or ""),
        "capabilities": ", ".join(facts.capabilities),
        "licence": facts.licence,
        "files": ", ".join(model.files),
        "runs here with": _engine_words(foretold),
        "memory": _memory_words(foretold),
        **_default_words(model),
        **_origin_words(model),
        "scan": _scan_words(report),
    }
    for name, value in pairs.items():
        if value:
            yield f"{name:16}{' '.join(value.split())}"


def _words(value: object) -> str:
    return " or ".join(map(json.dumps, value)) if isinstance(value, list | tuple) else str(value)


def _engine_words(foretold: Foretold) -> str:
    if not foretold.engine:
        return f"no engine: {foretold.why}" + (f"; try: {foretold.hint}" if foretold.hint else "")
    words = f"{foretold.engine}, {foretold.context_tokens:,} tokens of context"
    words += f"; {foretold.warning}" if foretold.warning else ""
    return f"{words} ({foretold.why})" if foretold.why else words


def _memory_words(foretold: Foretold) -> str:
    """With its weights and the KV cache of one request."""
    if not foretold.memory_bytes:
        return ""
    sizes = [f"{format_bytes(size)} at {name}" for name, size in foretold.memory_bytes.items()]
    return ", ".join(sizes) + " context, for one request at a time"


def _default_words(model: StoredModel) -> dict[str, str]:
    from homelab_llm.core.parameters import without_effect

    defaults = model.defaults
    lost = without_effect(defaults.parameters)
    return {
        "defaults": ", ".join(
            f"{name} {_words(value)}" for name, value in defaults.parameters.items() if name not in lost
        ),
        "without effect": ", ".join(lost) + " (made for another runtime)" if lost else "",
        "system": defaults.system[:200],
        "examples": f"{len(defaults.messages)} messages" if defaults.messages else "",
        "template": _TEMPLATES.get(model.template_from, ""),
        "adapters": ", ".join(defaults.adapters),
        "parsers": ", ".join(filter(None, (defaults.tool_call_parser, defaults.reasoning_parser))),
        "requires": defaults.requires,
        **{f"metadata {key}"[:15]: value for key, value in defaults.metadata.items()},
    }


def _origin_words(model: StoredModel) -> dict[str, str]:
    made = model.provenance
    if not made.action:
        return {}
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.created_unix_s))
    base = f" from {made.base}" + (f" ({made.base_digest[:19]})" if made.base_digest else "") if made.base else ""
    return {
        "made by": f"{made.action}{base} with {made.tool}, {when}",
        "measured": ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in made.measured.items()),
    }


def _scan_words(report: ScanReport) -> str:
    told = [f"{check.name}: {check.text}" for check in report.checks if check.status != "ok"]
    return "; ".join(told) or f"{len(report.checks)} checks, nothing found"
