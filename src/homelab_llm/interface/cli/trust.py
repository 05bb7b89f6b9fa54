"""Verbs about the bytes of stored models: ``repair prune gc du``, and ``verify`` for models.

They work in this process, with or without a daemon; a running one knows at once what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from homelab_llm.core.errors import Cancelled, HomelabError
from homelab_llm.core.names import ModelRef
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli import exit_codes
from homelab_llm.interface.cli.completion import model_names
from homelab_llm.interface.cli.invocation import Invocation, verb

if TYPE_CHECKING:
    from homelab_llm.store.gc import PruneReport
    from homelab_llm.store.progress import JobProgress
    from homelab_llm.store.repair import RepairReport
    from homelab_llm.store.usage import ModelUsage, Usage
    from homelab_llm.store.verify import VerifyReport

Show = Callable[["JobProgress"], None]


def verify_models(invocation: Invocation, models: tuple[str, ...]) -> int:
    """Hash the models again, or the whole store when none is named; exit code 1 when something is damaged."""
    from homelab_llm.store.verify import verify

    what = " ".join(models) or "the store"
    with _progress(invocation, f"verifying {what}", f"mlxctl verify {' '.join(models) or '--store'}") as show:
        report = verify(invocation.store, list(models) or None, progress=show)
    if invocation.output.json:
        invocation.output.event({"status": "done", **report.as_dict()})
    else:
        invocation.output.result({}, lambda: _verified(report))
        for name in report.damaged_models:
            invocation.output.note(f"try: mlxctl repair {name}")
    return exit_codes.OK if report.ok else exit_codes.FAILED


def _verified(report: VerifyReport) -> Iterator[str]:
    for damage in report.damages:
        yield f"damaged  {damage.model or 'no model'}: {damage.file} {damage.text}"
    for problem in report.problems:
        yield f"problem  {problem}"
    speed = f", {format_bytes(int(report.bytes_hashed / report.took_s))}/s" if report.took_s > 0 else ""
    counted = f"{_count(report.models, 'model')}, {_count(report.blobs, 'blob')}, {format_bytes(report.bytes_hashed)}"
    yield f"{'whole' if report.ok else 'looked at'}: {counted} in {format_duration(report.took_s)}{speed}"
    if report.unreferenced:
        yield f"{_count(report.unreferenced, 'blob')} no model needs; mlxctl prune frees them"


@verb("repair")
@click.argument("models", nargs=-1, shell_complete=model_names)
@click.option("--all", "every", is_flag=True, help="Verify the whole store and repair what is damaged.")
def repair(invocation: Invocation, models: tuple[str, ...], every: bool) -> int:
    """Fetch again what is damaged of MODELS, and only that, from where they came.

    Damaged bytes are replaced when the right ones are here and proven. Exit code 1 when a model could not be repaired.
    """
    if bool(models) == every:
        raise click.UsageError("MODELS or --all is needed" if not every else "MODELS and --all exclude each other")
    names = [str(ModelRef.parse(name)) for name in models] if models else _damaged(invocation)
    failed: list[HomelabError] = []
    done = []
    for name in names:
        try:
            report = _repaired(invocation, name)
        except HomelabError as error:
            if len(names) == 1 or isinstance(error, Cancelled):
                raise
            failed.append(error)
        else:
            done.append(report)
            if not invocation.output.json:
                invocation.output.result({}, _mended(report))
    if invocation.output.json:
        errors = [failure.as_dict() for failure in failed]
        invocation.output.event({"status": "done", "repaired": [r.as_dict() for r in done], "failed": errors})
    elif not names:
        invocation.output.result({}, "nothing is damaged")
    for failure in failed:
        invocation.output.warning(failure.message, failure.hint)
    return exit_codes.FAILED if failed else exit_codes.OK


def _damaged(invocation: Invocation) -> list[str]:
    from homelab_llm.store.verify import verify

    with _progress(invocation, "verifying the store", "mlxctl repair --all") as show:
        return verify(invocation.store, progress=show).damaged_models


def _repaired(invocation: Invocation, name: str) -> RepairReport:
    from homelab_llm.store.pull import PullSettings
    from homelab_llm.store.repair import repair as repair_model

    settings = PullSettings.of(invocation.settings.store)
    with _progress(invocation, f"repairing {name}", f"mlxctl repair {name}    # goes on from there") as show:
        return repair_model(invocation.store, name, settings=settings, progress=show)


def _mended(report: RepairReport) -> str:
    if not report.files:
        return f"{report.model} is whole"
    fetched = f", {format_bytes(report.bytes_fetched)} fetched" if report.bytes_fetched else ""
    also = f"; {', '.join(report.also)} too" if report.also else ""
    renewed = "; its source has changed, so it is another model now" if report.renewed else ""
    return f"{report.model} is whole again: {', '.join(report.files)}{fetched}{also}{renewed}"


_DRY = click.option("--dry-run", "dry", is_flag=True, help="Only say what would go, and how much.")


@verb("prune")
@_DRY
def prune(invocation: Invocation, dry: bool) -> None:
    """Delete what no model refers to: blobs without a name, old partial downloads."""
    _prune(invocation, dry=dry)


@verb("gc")
@_DRY
def gc(invocation: Invocation, dry: bool) -> None:
    """Another name of prune."""
    _prune(invocation, dry=dry)


def _prune(invocation: Invocation, *, dry: bool) -> None:
    report = invocation.store.prune(dry=dry)
    invocation.output.result(report.as_dict(), lambda: _pruned(report))
    for problem in report.problems:
        invocation.output.warning(problem, "mlxctl doctor")


def _pruned(report: PruneReport) -> Iterator[str]:
    if report.dry:
        for item in sorted(report.items, key=lambda item: -item.bytes)[:20]:
            yield f"{format_bytes(item.bytes):>10}  {item.kind:8}  {item.name[:40]}"
        if len(report.items) > 20:
            yield f"{'':>10}  … and {len(report.items) - 20} more; --json has them all"
    counts = f"{_count(report.blobs, 'blob')}, {_count(report.partials, 'partial download')}"
    yield f"{'would free' if report.dry else 'freed'} {format_bytes(report.bytes_freed)} ({counts})"


@verb("du")
@click.argument("model", default="", shell_complete=model_names)
def du(invocation: Invocation, model: str) -> None:
    """Say what takes how much of the disk: each model, or MODEL; unfinished downloads; what nothing needs.

    OWN is what removing the name frees, SHARED what other names need too.
    """
    from homelab_llm.store.usage import usage

    found = usage(invocation.store)
    if model:
        name = str(invocation.store.entries(model)[0].ref)
        row = next(row for row in found.models if row.name == name)
        data = {**asdict(row), "size_bytes": row.size_bytes}
        invocation.output.table(_COLUMNS, [_row(row)], data)
        return
    invocation.output.table(_COLUMNS, map(_row, found.models), found.as_dict())
    if not invocation.output.json:
        for line in _totals(found):
            invocation.output.result({}, line)


_COLUMNS = ("NAME", "OWN", "SHARED", "FILES")


def _row(model: ModelUsage) -> tuple[str, ...]:
    name = f"{model.name} (damaged)" if model.damaged else model.name
    return (name, format_bytes(model.own_bytes), format_bytes(model.shared_bytes), str(model.files))


def _totals(found: Usage) -> Iterator[str]:
    yield f"models         {format_bytes(found.models_bytes)}"
    if found.linked_bytes:
        yield f"  of these     {format_bytes(found.linked_bytes)} lie in another place too, by link"
    if found.partials_bytes:
        yield f"unfinished     {format_bytes(found.partials_bytes)}"
    if found.unreferenced_bytes:
        yield f"not needed     {format_bytes(found.unreferenced_bytes)}    # mlxctl prune"
    for name in found.unknown[:10]:
        yield f"not ours       {name}"
    yield f"total          {format_bytes(found.total_bytes)}"


@contextmanager
def _progress(invocation: Invocation, title: str, again: str) -> Iterator[Show]:
    """A bar, or lines of JSON; Ctrl-C ends the work with the command that goes on."""
    with invocation.output.transfer(title) as bar:

        def show(step: JobProgress) -> None:
            if invocation.output.json:
                invocation.output.event({"status": "working", **asdict(step)})
            pace = f"{format_bytes(int(step.bytes_per_s))}/s" if step.bytes_per_s else ""
            bar.update(step.stage, step.done_bytes, step.total_bytes, pace)

        try:
            yield show
        except KeyboardInterrupt:
            raise Cancelled(f"{title} was interrupted; what was done is kept", hint=again) from None


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
