"""Live displays on a terminal. Imports Rich; only ``output`` imports this, and only when something moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)


def _console(stream: TextIO, *, colours: bool) -> Console:
    return Console(file=stream, no_color=not colours, highlight=False, markup=False, emoji=False)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, stage: str, done: float, total: float | None, pace: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, stage=stage, pace=pace)


@contextlib.contextmanager
def transfer_bar(stream: TextIO, title: str, *, colours: bool) -> Iterator[_Bar]:
    """Title, stage, bar, bytes, and the pace it is told; gone when the block ends."""
    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}", markup=False, style="dim"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Progress(*columns, console=_console(stream, colours=colours), transient=True) as progress:
        yield _Bar(progress, progress.add_task(title, total=None, stage="", pace=""))


class _Spinner:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, stage: str, done: float, total: float | None, pace: str = "") -> None:
        share = f"{100 * done / total:3.0f} %" if total and 0 < done < total else ""
        self._progress.update(self._task, stage=f"{stage} {share} {pace}".rstrip())


@contextlib.contextmanager
def load_spinner(stream: TextIO, title: str, *, colours: bool) -> Iterator[_Spinner]:
    """A turning sign, the title and the stage; gone when the block ends."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}", markup=False),
    )
    with Progress(*columns, console=_console(stream, colours=colours), transient=True) as progress:
        yield _Spinner(progress, progress.add_task(title, total=None, stage="", pace=""))
