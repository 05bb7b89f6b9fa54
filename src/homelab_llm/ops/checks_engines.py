"""The checks of ``doctor`` that look at engines, accelerators and memory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from homelab_llm.core.facts import Format, ModelFacts
from homelab_llm.core.units import format_bytes
from homelab_llm.inference.engines.base import Support
from homelab_llm.ops.doctor import Finding, Surroundings

_PACKAGES = {"llama.cpp": ("xllamacpp",), "mlx": ("mlx", "mlx-lm")}
_FORMATS: tuple[Format, ...] = ("gguf", "safetensors", "mlx")
_SMALLEST_USEFUL_BYTES = 10**9


def engines(around: Surroundings) -> Iterator[Finding]:
    """Which engines run models here, in which version; and whether the one that is used leaves a GPU idle (B-11)."""
    from homelab_llm.core.settings import load_settings
    from homelab_llm.inference.engines.table import ENGINES, choose

    for engine in ENGINES:
        answers = [engine.supports(_probe(form)) for form in _FORMATS]
        yield _about(engine.name, answers, [support for support in answers if support.ok])
    prefer = load_settings(around.home.config, around.environ).engine.prefer
    used = choose(ENGINES, _probe("gguf"), prefer)  # none at all: its error is the finding
    support = used.supports(_probe("gguf"))
    if support.warning:
        yield Finding("accelerator", "warn", support.warning, support.hint)
    else:
        yield Finding("accelerator", "ok", f"no GPU lies idle under {used.name}")


def _about(name: str, answers: list[Support], able: list[Support]) -> Finding:
    if able:
        return Finding(f"engine {name}", "ok", _versions(name) or "found on PATH")
    first = answers[0]
    return Finding(f"engine {name}", "ok", f"not used: {first.reason}", facts={"hint": first.hint})


def _probe(form: Format) -> ModelFacts:
    """An ordinary chat model in this format."""
    return ModelFacts(
        format=form,
        architecture="llama",
        size_bytes=10**8,
        quantization="Q4_1" if form == "gguf" else "",
        capabilities=("chat",),
    )


def _versions(engine: str) -> str:
    found: list[str] = []
    for package in _PACKAGES.get(engine, ()):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def memory(around: Surroundings) -> Iterator[Finding]:
    """What models may take together, and whether that is enough for one."""
    from homelab_llm.core.settings import load_settings
    from homelab_llm.inference.fleet.budget import measure_budget

    fleet = load_settings(around.home.config, around.environ).fleet
    budget = fleet.memory_budget_bytes or measure_budget(fleet.memory_fraction)
    facts = {"budget_bytes": budget}
    if budget < _SMALLEST_USEFUL_BYTES:
        step = "set fleet.memory_budget_bytes, or give this machine or container more memory"
        yield Finding("memory", "warn", f"only {format_bytes(budget)} for models", step, facts)
    else:
        yield Finding("memory", "ok", f"{format_bytes(budget)} for models", facts=facts)
