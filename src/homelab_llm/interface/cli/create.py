"""``mlxctl create``: a model from a ModelSpec or a Modelfile."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from homelab_llm.core.errors import Cancelled, HomelabError, InvalidModelSpec
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.models import next_step, resolve_or_none, summary

if TYPE_CHECKING:
    from homelab_llm.store.build.spec import ModelSpec
    from homelab_llm.store.progress import JobProgress

_USUAL = ("ModelSpec.yaml", "modelspec.yaml", "Modelfile")


@verb("create")
@click.argument("name", required=False)
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="ModelSpec or Modelfile; else ModelSpec.yaml or Modelfile in this folder.",
)
@click.option("--base", shell_complete=model_names, help="In place of the file's base.")
def create(invocation: Invocation, name: str | None, path: Path | None, base: str | None) -> None:
    """Make the model NAME from a ModelSpec or a Modelfile: a base with its own instructions, parameters, adapters.

    No weights are copied. A base that is not in the store is pulled first; where the spec asks for other weights, they
    are made first and stay beside the base. Which of the two the file is, its content tells. With --json one line of
    progress after another, then the model.
    """
    path = path or _usual(Path.cwd())
    spec, is_modelfile = read_spec(path)
    spec = replace(spec, base=base) if base else spec
    if not (name := name or spec.name):
        raise InvalidModelSpec("the model has no name", hint=f"mlxctl create NAME -f {path}", field="name")
    before = resolve_or_none(invocation, name)
    model = _create(invocation, spec, ModelRef.parse(name), path, is_modelfile)
    shown = summary(model)
    if invocation.output.json:
        invocation.output.event({"status": "done", "model": shown})
        return
    if before and before.digest != model.digest:
        invocation.output.note(f"{model.name} was {before.digest.short} until now")
    size = format_bytes(model.size_bytes)
    invocation.output.result({}, f"created {model.name} from {model.provenance.base} ({size}); try: {next_step(model)}")
    _warn_if_nothing_runs_it(invocation, model)


def read_spec(path: Path) -> tuple[ModelSpec, bool]:
    """The spec in a file, and whether that is a Modelfile.

    Raises:
        InvalidModelSpec: with the line; also when there is no such file.
    """
    from homelab_llm.store.build.modelfile import looks_like_yaml, parse_modelfile
    from homelab_llm.store.build.modelspec import parse_modelspec
    from homelab_llm.store.build.spec import MAX_SPEC_BYTES
    from homelab_llm.store.inspect.regular import open_regular

    with open_regular(path) as stream:
        content = stream.read(MAX_SPEC_BYTES + 1)
    try:
        return (parse_modelspec(content), False) if looks_like_yaml(content) else (parse_modelfile(content), True)
    except InvalidModelSpec as error:
        raise InvalidModelSpec(f"{path.name}: {error.message}", hint=error.hint, **error.facts) from error


def _usual(folder: Path) -> Path:
    found = next((folder / name for name in _USUAL if (folder / name).exists()), None)
    if found is None:
        raise InvalidModelSpec("there is no ModelSpec.yaml or Modelfile here", hint="mlxctl create NAME -f FILE")
    return found


def _create(invocation: Invocation, spec: ModelSpec, ref: ModelRef, path: Path, is_modelfile: bool) -> StoredModel:
    from homelab_llm.ops.conversion.quantized_base import quantized_base
    from homelab_llm.store.build.create import create as build
    from homelab_llm.store.settings import PullSettings

    events = invocation.output.json
    with invocation.output.transfer(f"creating {ref}") as bar:

        def show(progress: JobProgress) -> None:
            if events:
                invocation.output.event({"status": "creating", **asdict(progress)})
            bar.update(progress.stage, progress.done_bytes, progress.total_bytes)

        try:
            return build(
                invocation.store,
                spec,
                ref,
                settings=PullSettings.of(invocation.settings.store),
                progress=show,
                base_folder=path.absolute().parent,
                ollama_names=is_modelfile,
                quantize=quantized_base,
            )
        except KeyboardInterrupt:
            raise Cancelled(f"creating {ref} was interrupted; nothing was made", hint="run it again") from None


def _warn_if_nothing_runs_it(invocation: Invocation, model: StoredModel) -> None:
    from homelab_llm.interface.cli.foretelling import engine_here

    try:
        engine_here(invocation, model)
    except HomelabError as error:
        invocation.output.warning(f"it cannot be loaded here: {error.message}", error.hint)
