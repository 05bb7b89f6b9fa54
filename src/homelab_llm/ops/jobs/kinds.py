"""Kinds: which function does the work of a job. What a kind takes is in ``gateway/job_kinds.py``.

A function gets the store, the parameters as they were checked, the settings, and where to report; it blocks, and what
its report raises ends it cleanly. It gives plain JSON, small: the result of the job. It may be killed at any moment and
is then called again with the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homelab_llm.core.names import ModelRef

if TYPE_CHECKING:
    from homelab_llm.core.facts import StoredModel
    from homelab_llm.core.settings import Settings
    from homelab_llm.store.model_store import ModelStore
    from homelab_llm.store.progress import JobProgress

_SHOWN = 1000  # damages in a result

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
    narrowed = {word: parameters[word] for word in ("name", "include", "exclude") if word in parameters}
    return _stored(pull(store, parameters["model"], **narrowed, settings=chosen, progress=tell))


def _push(store: ModelStore, parameters: Mapping[str, Any], settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.store.push import push
    from homelab_llm.store.settings import PullSettings

    chosen = PullSettings.of(settings.store)
    return asdict(push(store, parameters["model"], parameters["target"], settings=chosen, progress=tell))


def _verify(store: ModelStore, parameters: Mapping[str, Any], _settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.store.verify import verify

    found = verify(store, parameters.get("models"), progress=tell).as_dict()
    return {**found, "damages": found["damages"][:_SHOWN], "problems": found["problems"][:_SHOWN]}


def _repair(store: ModelStore, parameters: Mapping[str, Any], settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.store.repair import repair
    from homelab_llm.store.settings import PullSettings

    chosen = PullSettings.of(settings.store)
    return repair(store, parameters["model"], settings=chosen, progress=tell).as_dict()


def _create(store: ModelStore, parameters: Mapping[str, Any], settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.ops.conversion.quantized_base import quantized_base
    from homelab_llm.store.build.create import create
    from homelab_llm.store.build.modelfile import looks_like_yaml, parse_modelfile
    from homelab_llm.store.build.modelspec import parse_modelspec
    from homelab_llm.store.settings import PullSettings

    content = parameters["spec"].encode()
    is_modelfile = not looks_like_yaml(content)
    spec = parse_modelfile(content) if is_modelfile else parse_modelspec(content)
    ref, chosen = ModelRef.parse(parameters["name"]), PullSettings.of(settings.store)
    made = create(store, spec, ref, settings=chosen, progress=tell, ollama_names=is_modelfile, quantize=quantized_base)
    return _stored(made)


def _convert(store: ModelStore, parameters: Mapping[str, Any], _settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.ops.conversion.convert import ConversionOptions, convert
    from homelab_llm.ops.conversion.plan import target_of

    known = ("type", "measure", "tokens", "force")
    options = ConversionOptions(**{name: parameters[name] for name in known if name in parameters})
    notes: list[str] = []
    to = parameters.get("to") or target_of(options.type)
    ref = ModelRef.parse(parameters["name"])
    made = convert(store, parameters["model"], to=to, ref=ref, options=options, progress=tell, note=notes.append)
    return {**_stored(made), "measured": dict(made.provenance.measured), "notes": notes}


def _fuse(store: ModelStore, parameters: Mapping[str, Any], _settings: Settings, tell: Tell) -> dict[str, Any]:
    from homelab_llm.ops.conversion.convert import ConversionOptions, fuse

    options = ConversionOptions(**{name: parameters[name] for name in ("measure", "tokens") if name in parameters})
    notes: list[str] = []
    adapter, ref = Path(parameters["adapter"]), ModelRef.parse(parameters["name"])
    made = fuse(store, parameters["model"], adapter, ref=ref, options=options, progress=tell, note=notes.append)
    return {**_stored(made), "measured": dict(made.provenance.measured), "notes": notes}


def _stored(model: StoredModel) -> dict[str, Any]:
    return {"model": model.name, "digest": str(model.digest), "size_bytes": model.size_bytes}


KINDS: dict[str, Kind] = {
    "pull": Kind(_pull, again=True),
    "push": Kind(_push, again=True),
    "verify": Kind(_verify),
    "repair": Kind(_repair, again=True),
    "create": Kind(_create, again=True),
    "convert": Kind(_convert),
    "quantize": Kind(_convert),
    "fuse": Kind(_fuse),
}
