"""Fetching: a pull in this process with its progress, for ``pull`` and for the verbs that need a model first."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from homelab_llm.core.errors import Cancelled, ModelNotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.interface.cli.invocation import Invocation
from homelab_llm.interface.cli.models import next_step, resolve_or_none, summary

if TYPE_CHECKING:
    from homelab_llm.store.progress import JobProgress


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
