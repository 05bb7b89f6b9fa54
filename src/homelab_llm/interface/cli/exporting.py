"""``mlxctl export``: make a model of the store visible to other tools, by link."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb


@verb("export")
@click.argument("model", shell_complete=model_names)
@click.option(
    "--hf-cache",
    "cache",
    required=True,
    is_flag=False,
    flag_value="",
    metavar="[FOLDER]",
    help="The Hugging Face cache; without FOLDER the usual one (HF_HUB_CACHE, HF_HOME).",
)
@click.option("--as", "repo_id", default="", metavar="ORG/NAME", help="Repository id, for a model not from the hub.")
def export(invocation: Invocation, model: str, cache: str, repo_id: str) -> None:
    """Let tools that look into the Hugging Face cache find MODEL; no bytes are copied.

    A model that came from the hub appears under its own repository and revision. `hf cache rm` removes it there; the
    store keeps it.
    """
    from homelab_llm.core.paths import hub_cache
    from homelab_llm.store.hf_export import export_to_cache

    place = Path(cache).expanduser().absolute() if cache else hub_cache(invocation.environ)
    found, known = invocation.store.resolve(model), invocation.store.verification
    done = export_to_cache(found, place, repo_id, verification=known)
    kind = "symbolic links; they end with the model" if done.symbolic else "hard links"
    data = {**asdict(done), "snapshot": str(done.snapshot)}
    invocation.output.result(data, f"{done.repo_id} is in {place} ({done.links} new {kind}, {done.kept} there already)")
