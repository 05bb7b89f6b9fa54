"""``mlxctl completion``: the script a shell needs to complete verbs, options and model names."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from homelab_llm.core.errors import HomelabError
from homelab_llm.interface.cli.invocation import Invocation, verb

_HINTS = {
    "bash": 'eval "$(mlxctl completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(mlxctl completion zsh)"   # in ~/.zshrc',
    "fish": "mlxctl completion fish | source   # in ~/.config/fish/config.fish",
}


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
    from homelab_llm.core.paths import Home
    from homelab_llm.store.model_store import ModelStore

    try:
        models = ModelStore(Home.at(context.find_root().params.get("root")).store).models()
    except (HomelabError, OSError):
        return []
    return [CompletionItem(model.name) for model in models if model.name.startswith(incomplete)]
