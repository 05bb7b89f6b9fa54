"""Planner: which engine runs a model here, with which options, and what that needs. Decides; starts nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from homelab_llm.core.atomic import write_atomic
from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.core.facts import NO_DEFAULTS, StoredModel
from homelab_llm.core.parameters import context_tokens
from homelab_llm.inference.engines.base import Adapter, Engine, EngineOptions, LaunchPlan, ModelOptions, Support
from homelab_llm.inference.engines.table import choose
from homelab_llm.inference.fleet.seams import Planned
from homelab_llm.inference.fleet.vocabulary import Demand

_MOST_TEMPLATE_BYTES = 1 << 20
_ALWAYS_HONOURED = frozenset({"engine", "context_tokens"})


def _nothing_chosen(_: StoredModel) -> ModelOptions:
    return ModelOptions()


class Planner:
    """Plans models for this machine.

    Args:
        engines: the table, in order of preference.
        prefer: an engine's name, or ``auto``.
        derived: the folder for conversions; templates that are given as text lie there too.
        chosen: what the operator chose for a model.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        options: EngineOptions,
        prefer: str,
        derived: Path,
        chosen: Callable[[StoredModel], ModelOptions] = _nothing_chosen,
    ) -> None:
        self._engines = engines
        self._options = options
        self._prefer = prefer
        self._derived = derived
        self._chosen = chosen

    def __call__(self, model: StoredModel, wanted: int | None = None) -> Planned:
        """How ``model`` will be run; kept by the fleet, so the engines may look around.

        Args:
            wanted: context tokens in place of the option, to see what they would need.

        Raises:
            EngineUnavailable: with every engine's reason.
            UnsupportedRequest: an option of this model that its engine does not honour.
        """
        chosen, own = self._chosen(model), _own_options(model)
        engine = self._engine(model, chosen, own)
        template = _template_of(model, chosen) or own.template
        options = replace(
            self._options,
            context_tokens=wanted or chosen.context_tokens or own.context_tokens or self._options.context_tokens,
            chat_template=self._template_file(template) if template else None,
            flags=chosen.flags,
            adapters=own.adapters,
        )
        footprint = engine.estimate(model.facts, options)
        if own.adapters:
            footprint = replace(footprint, weights_bytes=footprint.weights_bytes + own.adapters_bytes)
        # The socket's path is not known yet; what the plan says besides does not depend on it.
        sketch = engine.plan(model, options, Path("planned.http"), self._derived)
        key = f"{model.digest.short}/{engine.name}/{sketch.context_tokens}x{sketch.parallel}{_mark(template, chosen)}"
        return Planned(
            demand=Demand(key, model.name, footprint.total_bytes, sketch.parallel),
            launch=partial(self._launch, engine, model, options, template),
            engine=engine.name,
            context_tokens=sketch.context_tokens,
            traits=sketch.traits,
            warning=_warning(engine.supports(model.facts)),
            footprint=footprint,
        )

    def _engine(self, model: StoredModel, chosen: ModelOptions, own: _OwnOptions) -> Engine:
        """The engine that is asked for, else the best of those that honour what the model brings.

        Raises:
            EngineUnavailable, UnsupportedRequest: as ``__call__``.
        """
        prefer = chosen.engine or self._prefer
        able = [engine for engine in self._engines if own.needs <= engine.honours]
        if own.needs and prefer == "auto" and any(engine.supports(model.facts).ok for engine in able):
            engine = choose(able, model.facts)
        else:
            engine = choose(self._engines, model.facts, prefer)
        _refuse_unhonoured(model, engine, chosen)
        if lost := sorted(own.needs - engine.honours - _set_fields(chosen)):
            raise _not_for(model, engine, lost[0], [other.name for other in able if other.supports(model.facts).ok])
        return engine

    def _launch(
        self, engine: Engine, model: StoredModel, options: EngineOptions, template: str, socket: Path
    ) -> LaunchPlan:
        if options.chat_template is not None:
            options.chat_template.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(options.chat_template, template.encode())
        return engine.plan(model, options, socket, self._derived)

    def _template_file(self, template: str) -> Path:
        return self._derived / "templates" / f"{hashlib.sha256(template.encode()).hexdigest()[:32]}.jinja"


def _refuse_unhonoured(model: StoredModel, engine: Engine, chosen: ModelOptions) -> None:
    """No option is without effect (fails closed)."""
    if lost := sorted(_set_fields(chosen) - _ALWAYS_HONOURED - engine.honours):
        raise _refused(model, lost[0], f"the {engine.name} engine here does not honour it")


def _set_fields(chosen: ModelOptions) -> frozenset[str]:
    return frozenset(field.name for field in fields(chosen) if getattr(chosen, field.name))


@dataclass(frozen=True, slots=True)
class _OwnOptions:
    """What a model itself brings for its loading; below what the operator chose for it.

    ``needs`` are the words of ``Engine.honours`` without which it would not be what it says it is.
    """

    context_tokens: int = 0
    template: str = ""
    adapters: tuple[Adapter, ...] = ()
    needs: frozenset[str] = frozenset()

    @property
    def adapters_bytes(self) -> int:
        return sum(path.stat().st_size for adapter in self.adapters for path in adapter.files.values())


def _own_options(model: StoredModel) -> _OwnOptions:
    """The defaults of a model as options. A template is text and never a path: a model may come from anywhere."""
    defaults = model.defaults
    template = defaults.template
    if not template and model.template_from == "catalogue":  # the files have none
        template = model.facts.chat_template
    if defaults is NO_DEFAULTS and not template:
        return _OwnOptions()
    adapters = tuple(_adapter(model, name) for name in defaults.adapters)
    named = {
        "chat_template": template,
        "tool_call_parser": defaults.tool_call_parser,
        "reasoning_parser": defaults.reasoning_parser,
    }
    needs = {name for name, value in named.items() if value} | {adapter.needs for adapter in adapters}
    return _OwnOptions(context_tokens(defaults.parameters), template, adapters, frozenset(needs))


def _adapter(model: StoredModel, name: str) -> Adapter:
    files = model.adapter_files(name)
    if not files:
        raise UnsupportedRequest(
            f"{model.name} names the adapter {name[:80]!r} and does not have it",
            hint=f"mlxctl show {model.name} --files",
            field="adapters",
        )
    return Adapter("gguf" if all(file.endswith(".gguf") for file in files) else "peft", files)


def _not_for(model: StoredModel, engine: Engine, need: str, able: list[str]) -> UnsupportedRequest:
    """What the model brings and its engine does not honour, with the way out."""
    kind = need.removesuffix("_adapters")
    what = f"an adapter in the {kind.upper()} format" if kind != need else f"a {need} of its own"
    if able:
        hint = f"mlxctl registry set {model.name} engine={able[0]}"
    elif need == "peft_adapters":
        hint = f"mlxctl fuse {model.name} NEW-NAME"
    else:
        hint = f"mlxctl show {model.name} --spec    # then create it without {need}"
    return UnsupportedRequest(
        f"{model.name} brings {what}, which the {engine.name} engine here does not load"
        + (f"; {', '.join(able)} does" if able else ""),
        hint=hint,
        field=need,
        engines=able,
    )


def _template_of(model: StoredModel, chosen: ModelOptions) -> str:
    """The template's text, read now: a changed file is another plan."""
    given = chosen.chat_template
    if not given or "{" in given or "\n" in given:
        return given
    path = Path(given)
    try:
        if not path.is_absolute() or not path.is_file() or path.stat().st_size > _MOST_TEMPLATE_BYTES:
            raise _refused(model, "chat_template", "it is neither a template nor the absolute path of a file with one")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _refused(model, "chat_template", f"{path.name} cannot be read") from error


def _refused(model: StoredModel, field: str, why: str) -> UnsupportedRequest:
    return UnsupportedRequest(
        f"{field} is set for {model.name}, but {why}",
        hint=f"mlxctl registry set {model.name} {field}=",
        field=field,
    )


def _mark(template: str, chosen: ModelOptions) -> str:
    """Tells plans of one model apart that differ in what the rest of the key does not show; mostly empty."""
    if not (template or chosen.flags):
        return ""
    return "/" + hashlib.sha256("\0".join((template, *chosen.flags)).encode()).hexdigest()[:8]


def _warning(support: Support) -> str:
    return f"{support.warning}: {support.hint}" if support.warning and support.hint else support.warning
