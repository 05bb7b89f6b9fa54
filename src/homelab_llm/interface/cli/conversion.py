"""Verbs that make models out of models: convert, quantize, fuse; and perplexity, which judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import Cancelled
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.completion import model_names, weight_types
from homelab_llm.interface.cli.detached import detach, order
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.models import summary

if TYPE_CHECKING:
    from homelab_llm.ops.conversion.convert import ConversionOptions
    from homelab_llm.store.progress import JobProgress

_TEXT = click.option(
    "--text", type=click.Path(path_type=Path, dir_okay=False), help="A UTF-8 text to measure on, in place of ours."
)
_TOKENS = click.option(
    "--tokens", type=click.IntRange(64, 10_000_000), default=8192, show_default=True, help="So many of it at most."
)
_NO_MEASURE = click.option("--no-measure", is_flag=True, help="Do not measure quality before and after.")
_FORCE = click.option("--force", is_flag=True, help="Also what is quantized already.")


@verb("convert")
@click.argument("model", shell_complete=model_names)
@click.argument("newname")
@click.option("--to", type=click.Choice(["gguf", "mlx", "safetensors"]), required=True, help="The format.")
@click.option(
    "--type",
    "kind",
    default="",
    metavar="TYPE",
    shell_complete=weight_types,
    help="f16, q8_0, q4_0, … or 4bit, 8bit, mixed_3_6, …",
)
@_TEXT
@_TOKENS
@_NO_MEASURE
@_FORCE
@detach
def convert(
    invocation: Invocation,
    /,
    model: str,
    newname: str,
    to: Any,
    kind: str,
    **how: Any,
) -> None:
    """Make NEWNAME out of MODEL in another format, and say what that costs in quality."""
    if how.pop("detach"):
        order(invocation, "convert", {"model": model, "name": newname, "to": to, **_asked(kind, **how)})
        return
    _convert(invocation, model, newname, to, _options(kind, **how))


@verb("quantize")
@click.argument("model", shell_complete=model_names)
@click.argument("newname")
@click.argument("kind", metavar="TYPE", shell_complete=weight_types)
@_TEXT
@_TOKENS
@_NO_MEASURE
@_FORCE
@detach
def quantize(
    invocation: Invocation,
    /,
    model: str,
    newname: str,
    kind: str,
    **how: Any,
) -> None:
    """Make NEWNAME out of MODEL with smaller weights: q8_0, q4_0, … as GGUF; 8bit, 4bit, mixed_3_6, … as MLX."""
    if how.pop("detach"):
        order(invocation, "quantize", {"model": model, "name": newname, **_asked(kind, **how)})
        return
    from homelab_llm.ops.conversion.plan import target_of

    _convert(invocation, model, newname, target_of(kind), _options(kind, **how))


def _asked(kind: str, *, text: Path | None, tokens: int, no_measure: bool, force: bool) -> dict[str, Any]:
    """The parameters of a job; it measures on the text of the package, which the daemon can read for certain."""
    if text is not None:
        raise click.UsageError("--text and --detach exclude each other")
    wished = {"type": kind, "force": force}
    return {"tokens": tokens, "measure": not no_measure, **{name: value for name, value in wished.items() if value}}


@verb("fuse")
@click.argument("model", shell_complete=model_names)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("newname")
@_TEXT
@_TOKENS
@_NO_MEASURE
@detach
def fuse(invocation: Invocation, /, model: str, adapter: Path, newname: str, **how: Any) -> None:
    """Make NEWNAME out of MODEL and a LoRA ADAPTER: one model, no adapter beside it.

    ADAPTER is a folder of PEFT or mlx-lm for a model in safetensors format, a GGUF adapter for a GGUF model of floats,
    or the path of an adapter that is attached to MODEL.
    """
    if how.pop("detach"):
        here = str(adapter.absolute()) if adapter.exists() else str(adapter)
        asked = _asked("", force=False, **how)
        order(invocation, "fuse", {"model": model, "adapter": here, "name": newname, **asked})
        return
    from homelab_llm.ops.conversion.convert import fuse as make

    options, ref = _options("", **how), ModelRef.parse(newname)
    notes: list[str] = []
    with _shown(invocation, f"making {newname}") as show:
        made = make(invocation.store, model, adapter, ref=ref, options=options, progress=show, note=notes.append)
    _tell(invocation, made, notes)


def _options(
    kind: str, *, text: Path | None, tokens: int, no_measure: bool = False, force: bool = False
) -> ConversionOptions:
    from homelab_llm.ops.conversion.convert import ConversionOptions, check_text

    check_text(text)
    return ConversionOptions(kind, not no_measure, text, tokens, force)


def _convert(invocation: Invocation, model: str, newname: str, to: Any, options: ConversionOptions) -> None:
    from homelab_llm.ops.conversion.convert import convert as make

    ref = ModelRef.parse(newname)
    notes: list[str] = []
    with _shown(invocation, f"making {newname}") as show:
        made = make(invocation.store, model, to=to, ref=ref, options=options, progress=show, note=notes.append)
    _tell(invocation, made, notes)


def _tell(invocation: Invocation, made: StoredModel, notes: list[str]) -> None:
    measured = dict(made.provenance.measured)
    if invocation.output.json:
        done = {"status": "done", "model": summary(made), "measured": measured, "notes": notes}
        invocation.output.event(done)
        return
    facts = made.facts
    kind = f"{facts.format} {facts.quantization}".strip()
    invocation.output.result({}, f"{made.name} is in the store ({kind}, {format_bytes(made.size_bytes)})")
    for text in notes:
        invocation.output.note(text)
    if quality := quality_of(measured):
        invocation.output.result({}, quality)


def quality_of(measured: dict[str, float]) -> str:
    """The figures of a conversion in words; empty when there are none."""
    if "perplexity_after" in measured:
        before, after = measured["perplexity_before"], measured["perplexity_after"]
        change = 100 * (after / before - 1)
        return f"perplexity {before:.3f} before, {after:.3f} after ({change:+.2f} %); smaller is better"
    if "cosine_mean" in measured:
        mean, least = measured["cosine_mean"], measured["cosine_min"]
        return f"embeddings agree to {mean:.5f} with those before, at least {least:.5f} (cosine; 1 is the same)"
    return ""


@verb("perplexity")
@click.argument("model", shell_complete=model_names)
@_TEXT
@_TOKENS
def perplexity(invocation: Invocation, model: str, text: Path | None, tokens: int) -> None:
    """Say how well MODEL foretells a text; smaller is better. Figures of one text and tokenizer can be compared.

    Windows of 512 tokens, the second half scored, as llama.cpp's llama-perplexity does it; computed in 32-bit floats
    from the weights as they are stored.
    """
    from homelab_llm.ops.conversion.convert import perplexity as measure

    options = _options("", text=text, tokens=tokens)
    with _shown(invocation, f"measuring {model}") as show:
        found = measure(invocation.store, model, options=options, progress=show)
    if invocation.output.json:
        invocation.output.event({"status": "done", **found})
        return
    figure = f"perplexity {found['perplexity']:.3f} ± {found['standard_error']:.3f}"
    invocation.output.result({}, f"{figure} over {found['scored_tokens']:,} tokens ({found['method']})")


@contextmanager
def _shown(invocation: Invocation, title: str) -> Iterator[Callable[[JobProgress], None]]:
    """Progress as a bar or as lines of JSON.

    Raises:
        Cancelled: Ctrl-C; nothing is left behind.
    """
    last: list[str] = []
    with invocation.output.transfer(title) as bar:

        def show(progress: JobProgress) -> None:
            if invocation.output.json:
                line = {"status": progress.stage, **asdict(progress)}
                if [str(line)] != last:  # said again only to keep Ctrl-C quick
                    last[:] = [str(line)]
                    invocation.output.event(line)
            bar.update(progress.stage, progress.done_bytes, progress.total_bytes)

        try:
            yield show
        except KeyboardInterrupt:
            raise Cancelled(f"{title} was interrupted; nothing is left of it") from None
