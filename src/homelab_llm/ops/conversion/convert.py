"""Convert a model of the store into another format or quantization, and say what that cost in quality.

The work is done by programs (``inference/conversion``) in a scratch folder of the store; the result then becomes a
model in one step. Killed at any moment it leaves nothing but that folder, which the next conversion or ``prune``
removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from homelab_llm import __version__
from homelab_llm.core.errors import (
    AlreadyExists,
    EngineUnavailable,
    InsufficientMemory,
    InvalidInput,
    UnsupportedRequest,
)
from homelab_llm.core.facts import Provenance, StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.names import ModelRef
from homelab_llm.core.units import format_bytes
from homelab_llm.ops.conversion.child import run_program
from homelab_llm.ops.conversion.plan import Needs, Step, Target, file_arguments, needs_of, needs_of_fusing, plan
from homelab_llm.store.layout import disk_full, free_bytes
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress, Stage
from homelab_llm.store.scratch import scratch_folder

FAILPOINTS = ("ops.conversion.made", "ops.conversion.measured")

Report = Callable[[JobProgress], None]


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """What may be chosen.

    ``type`` is the quantization or float type, empty = the format's usual one. ``text`` is what perplexity is measured
    on, None = the text of the package, at most ``tokens`` tokens of it. ``force`` quantizes what is quantized already.
    """

    type: str = ""
    measure: bool = True
    text: Path | None = None
    tokens: int = 8192
    force: bool = False


@dataclass(slots=True)
class _Work:
    """One conversion under way: where it reports, and what it has to say beside its result."""

    report: Report
    size_bytes: int
    notes: list[str] = field(default_factory=list)

    def run(self, stage: Stage, module: str, arguments: list[str]) -> dict[str, Any]:
        """A program, its progress shown as bytes of the model."""

        def show(_stage: str, done: float) -> None:
            self.report(JobProgress(stage, module, int(done * self.size_bytes), self.size_bytes))

        return run_program(module, arguments, show)


def convert(
    store: ModelStore,
    name: str,
    *,
    to: Target,
    ref: ModelRef,
    options: ConversionOptions = ConversionOptions(),
    progress: Report | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> StoredModel:
    """Make the model ``ref`` out of the model ``name``; blocks for minutes.

    Args:
        note: gets what a person should know beside the result: why there is no figure of quality.

    Raises:
        ModelNotFound: no such model.
        AlreadyExists: ``ref`` is the model itself.
        UnsupportedRequest, InvalidInput, BadModelFile: it cannot be made of this model; nothing was written.
        InsufficientMemory, DiskFull: there is less than it takes; nothing was written.
        EngineUnavailable: a library the conversion needs is not installed.
        JobFailed: a program died.
    """
    base = store.resolve(name)
    refuse_same(base, ref)
    steps = plan(base, to, options.type, force=options.force)
    check_room(store, needs_of(base.facts, to, options.type, measure=options.measure))
    work = _Work(progress or (lambda _progress: None), base.size_bytes)
    with scratch_folder(store.root) as folder:
        files: Mapping[str, Path] = base.own_files
        for step in steps:
            files = _made(work, step, files, folder)
        failpoint("ops.conversion.made")
        measured = _measured(work, base, files, options) if options.measure else {}
        failpoint("ops.conversion.measured")
        action = "quantize" if base.facts.format == to else "convert"
        model = publish(
            store,
            folder / steps[-1].makes,
            ref,
            base=base,
            action=action,
            program=steps[-1].module,
            measured=measured,
            report=work.report,
        )
    for text in work.notes:
        note(text)
    return model


def fuse(
    store: ModelStore,
    name: str,
    adapter: Path,
    *,
    ref: ModelRef,
    options: ConversionOptions = ConversionOptions(),
    progress: Report | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> StoredModel:
    """Make the model ``ref`` out of ``name`` and a LoRA adapter; blocks for minutes.

    Args:
        adapter: a GGUF adapter or a folder of PEFT or mlx-lm; or the path of one that is attached to the model.

    Raises:
        As ``convert``; also InvalidInput when there is no adapter, and BadModelFile for one of another model.
    """
    base = store.resolve(name)
    refuse_same(base, ref)
    attached = adapter_files(base, adapter)
    if [path for path in base.defaults.adapters if path != str(adapter)]:
        raise UnsupportedRequest("the model has other adapters attached, which would be lost")
    check_room(store, needs_of_fusing(base.facts, measure=options.measure))
    work = _Work(progress or (lambda _progress: None), base.size_bytes)
    makes = "model.gguf" if base.facts.format == "gguf" else "model"
    with scratch_folder(store.root) as folder:
        pairs = [part for file, path in sorted(attached.items()) for part in ("--adapter", f"{file}={path}")]
        target = folder / makes
        work.run("converting", "fuse", [*file_arguments(base.own_files), *pairs, "--target", str(target)])
        failpoint("ops.conversion.made")
        measured = _measured(work, base, files_below(target), options) if options.measure else {}
        failpoint("ops.conversion.measured")
        model = publish(
            store,
            target,
            ref,
            base=base,
            action="fuse",
            program="fuse",
            measured=measured,
            report=work.report,
        )
    for text in work.notes:
        note(text)
    return model


def adapter_files(base: StoredModel, adapter: Path) -> dict[str, Path]:
    """The files of an adapter: attached to the model under that path, or on disk.

    Raises:
        InvalidInput: neither.
    """
    name = str(adapter)
    if name in base.defaults.adapters:
        if name in base.files:
            return {adapter.name: base.files[name]}
        return {file[len(name) + 1 :]: path for file, path in base.files.items() if file.startswith(f"{name}/")}
    if adapter.is_file():
        return {adapter.name: adapter}
    if adapter.is_dir():
        wanted = ("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors")
        return {file: adapter / file for file in wanted if (adapter / file).is_file()}
    raise InvalidInput(f"there is no adapter {name[:200]}", hint="a GGUF adapter, or a folder with adapter_config.json")


def refuse_same(base: StoredModel, ref: ModelRef) -> None:
    """Raises ``AlreadyExists`` when the new name is the old one: the model would be lost."""
    if str(ref) == base.name or ref.digest is not None:
        raise AlreadyExists(f"{base.name} is the model itself", hint="choose another name for the result")


def check_room(store: ModelStore, needs: Needs) -> None:
    """Compare with what is free now.

    Raises:
        DiskFull, InsufficientMemory: with ``needed_bytes`` and ``free_bytes``.
    """
    import psutil

    if (free := free_bytes(store.root)) < needs.disk_bytes:
        raise disk_full(needs.disk_bytes, free)
    available = psutil.virtual_memory().available
    if available < needs.memory_bytes:
        raise InsufficientMemory(
            f"the conversion takes up to {format_bytes(needs.memory_bytes)} of memory,"
            f" {format_bytes(available)} are free",
            hint="mlxctl ps, mlxctl stop MODEL",
            needed_bytes=needs.memory_bytes,
            free_bytes=available,
        )


def _made(work: _Work, step: Step, files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    target = folder / step.makes
    work.run(step.stage, step.module, [*step.arguments, *file_arguments(files), "--target", str(target)])
    return files_below(target)


def files_below(target: Path) -> dict[str, Path]:
    """The files a program made, by their names in a model."""
    if target.is_file():
        return {target.name: target}
    return {str(path.relative_to(target)): path for path in sorted(target.rglob("*")) if path.is_file()}


def _measured(
    work: _Work, base: StoredModel, files: Mapping[str, Path], options: ConversionOptions
) -> dict[str, float]:
    """Quality before and after; nothing, and a note, where this model cannot be measured."""
    try:
        if "embedding" in base.facts.capabilities:
            return _similarity(work, base.own_files, files)
        before = perplexity_of(base.own_files, options, lambda *given: work.run("measuring", *given))
        after = perplexity_of(files, options, lambda *given: work.run("measuring", *given))
    except (UnsupportedRequest, EngineUnavailable) as error:
        work.notes.append(f"no figure of quality: {error.message}")
        return {}
    return {
        "perplexity_before": before["perplexity"],
        "perplexity_after": after["perplexity"],
        "perplexity_error": after["standard_error"],
        "scored_tokens": after["scored_tokens"],
        "window_tokens": after["window_tokens"],
    }


def _similarity(work: _Work, before: Mapping[str, Path], after: Mapping[str, Path]) -> dict[str, float]:
    found = work.run("measuring", "similarity", [*file_arguments(before), *_others(after)])
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _others(files: Mapping[str, Path]) -> list[str]:
    return [part for name, path in sorted(files.items()) for part in ("--other", f"{name}={path}")]


def perplexity_of(
    files: Mapping[str, Path], options: ConversionOptions, run: Callable[[str, list[str]], dict[str, Any]]
) -> dict[str, Any]:
    """The figures of the program ``perplexity`` for a model's files."""
    text = ["--text", str(options.text)] if options.text else []
    return run("perplexity", [*file_arguments(files), *text, "--tokens", str(options.tokens)])


def perplexity(
    store: ModelStore, name: str, *, options: ConversionOptions = ConversionOptions(), progress: Report | None = None
) -> dict[str, Any]:
    """How well a model foretells a text: perplexity, its standard error, the method. Blocks, seconds to minutes.

    Raises:
        ModelNotFound, UnsupportedRequest, InsufficientMemory: as ``convert``.
    """
    model = store.resolve(name)
    if "embedding" in model.facts.capabilities:
        raise UnsupportedRequest(
            f"{model.name} embeds text and foretells none", hint="convert it: the result is compared with it"
        )
    work = _Work(progress or (lambda _progress: None), model.size_bytes)
    return perplexity_of(model.own_files, options, lambda *given: work.run("measuring", *given))


def publish(
    store: ModelStore,
    path: Path,
    ref: ModelRef,
    *,
    base: StoredModel,
    action: str,
    program: str,
    measured: Mapping[str, float],
    report: Report,
) -> StoredModel:
    """Bring what was made into the store under its name, with where it comes from."""

    def hashed(done: int, total: int) -> None:
        report(JobProgress("storing", path.name, done, total))

    model = store.import_path(
        path,
        ref,
        progress=hashed,
        source=base.source,
        link=True,
        defaults=replace(base.defaults, adapters=()),
        provenance=Provenance(
            base=base.name,
            base_digest=str(base.digest),
            action=action,
            tool=f"homelab-llm {__version__} {program}",
            created_unix_s=round(time.time(), 3),
            measured=dict(measured),
        ),
    )
    report(JobProgress("done", "", model.size_bytes, model.size_bytes))
    return model


def check_text(path: Path | None) -> None:
    """Refuse early a text that is not there.

    Raises:
        InvalidInput: no such file.
    """
    if path is not None and not path.is_file():
        raise InvalidInput(f"there is no file {path}", field="text")
