"""Kinds: which function does the work of a job. What a kind takes is in ``gateway/job_kinds.py``.

A function gets the store, the parameters as they were checked, the settings, and where to report; it blocks, and what
its report raises ends it cleanly. It gives plain JSON, small: the result of the job. It may be killed at any moment and
is then called again with the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homelab_llm.core.facts import StoredModel
    from homelab_llm.core.settings import Settings
    from homelab_llm.store.model_store import ModelStore
    from homelab_llm.store.progress import JobProgress

Tell = Callable[["JobProgress"], None]
Run = Callable[["ModelStore", Mapping[str, Any], "Settings", Tell], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of job.

    ``again``: when its program dies without a word, another is started, once; for work that goes on where it was.
    """

    run: Run
    again: bool = False


def _pull(store: ModelStore, parameters: Mapping[str, Any], settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.store.pull import PullSettings, pull

    chosen = PullSettings.of(settings.store)
    return _stored(pull(store, parameters["model"], name=parameters.get("name"), settings=chosen, progress=tell))


def _stored(model: StoredModel) -> dict[str, Any]:
    return {"model": model.name, "digest": str(model.digest), "size_bytes": model.size_bytes}


KINDS: dict[str, Kind] = {
    "pull": Kind(_pull, again=True),
}
