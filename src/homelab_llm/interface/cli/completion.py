"""``mlxctl completion``: the script a shell needs to complete verbs, options and model names."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from homelab_llm.core.errors import HomelabError
from homelab_llm.interface.cli.invocation import Invocation, verb

_HINTS = {
    "bash": 'eval "$(mlxctl completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(mlxctl completion zsh)"   # in ~/.zshrc',
    "fish": "mlxctl completion fish | source   # in ~/.config/fish/config.fish",
}
_PATIENCE_S = 1.0  # a shell waits


@verb("completion")
@click.argument("shell", type=click.Choice(list(_HINTS)))
def completion(invocation: Invocation, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 — click knows the three shells of the choice
    script = kind(click.get_current_context().find_root().command, {}, "mlxctl", "_MLXCTL_COMPLETE").source()
    if invocation.output.json:
        invocation.output.result({"shell": shell, "script": script, "use": _HINTS[shell]}, "")
        return
    invocation.output.raw(script)


def model_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The stored models that begin as typed; nothing on any trouble, for a shell waits for this."""
    try:
        models = _invocation(context).store.models()
    except (HomelabError, OSError):
        return []
    return [CompletionItem(model.name) for model in models if model.name.startswith(incomplete)]


def references(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Short names of the catalogue, and how the other references begin."""
    from homelab_llm.store.catalogue import ENTRIES
    from homelab_llm.store.references import GRAMMAR

    named = [(entry.name, entry.summary) for entry in ENTRIES]
    named += [(form[: form.index(":") + 1], what) for scheme, form, what in GRAMMAR if scheme != "catalogue"]
    return [CompletionItem(name, help=text) for name, text in named if name.startswith(incomplete)]


def slot_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ports and aliases of the slots that begin as typed; with what they serve as help."""
    named = [("auto", "the first free slot")] if parameter.default == "auto" else []
    for slot in _slots(_invocation(context)):
        named += [(str(slot["port"]), slot["alias"]), (slot["alias"], slot.get("desired") or f"port {slot['port']}")]
    return [CompletionItem(name, help=text) for name, text in named if name.startswith(incomplete)]


def models_and_aliases(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a request may name as its model."""
    slots = _slots(_invocation(context))
    named = [
        CompletionItem(slot["alias"]) for slot in slots if slot.get("model") and slot["alias"].startswith(incomplete)
    ]
    return [*model_names(context, parameter, incomplete), *named]


def slots_and_models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What ``unload`` takes: slots, and models."""
    return [*slot_names(context, parameter, incomplete), *model_names(context, parameter, incomplete)]


def job_ids(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The latest jobs; none on any trouble."""
    try:
        client = _invocation(context).daemon_if_running()
        found = client.get("/admin/jobs?limit=50", timeout_s=_PATIENCE_S)["jobs"] if client else []
    except (HomelabError, OSError):
        return []
    return [
        CompletionItem(job["job_id"], help=f"{job['kind']}, {job['state']}")
        for job in found
        if job["job_id"].startswith(incomplete)
    ]


def job_kinds(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The kinds of long work."""
    from homelab_llm.ops.jobs.kinds import KINDS

    return [CompletionItem(kind) for kind in KINDS if kind.startswith(incomplete)]


def weight_types(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """How weights may be stored: of the format that ``--to`` names, else of all."""
    from homelab_llm.ops.conversion.plan import TYPES

    target = context.params.get("to")
    kinds = dict.fromkeys(kind for to, kinds in TYPES.items() if target in (None, to) for kind in kinds)
    return [CompletionItem(kind) for kind in kinds if kind.startswith(incomplete.lower())]


def targets(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """How the places begin that a model can be pushed to."""
    named = (("oci://", "an OCI registry"), ("hf:", "the hub"))
    return [CompletionItem(start, help=text) for start, text in named if start.startswith(incomplete)]


def _slots(invocation: Invocation) -> list[dict[str, Any]]:
    """The daemon's slots, else those the settings describe; none on any trouble."""
    try:
        if client := invocation.daemon_if_running():
            return list(client.get("/admin/slots", timeout_s=_PATIENCE_S).get("slots") or ())
        return [{"port": slot.port, "alias": slot.alias} for slot in invocation.settings.slots.table().slots]
    except (HomelabError, OSError):
        return []


def _invocation(context: click.Context) -> Invocation:
    """The call being completed: the options before the verb are known, but nothing has run yet."""
    invocation = context.find_root().ensure_object(Invocation)
    invocation.home_root = context.find_root().params.get("root")
    return invocation
