"""Job kinds: what each kind of job takes, checked when it is asked for. Who does it is in ``ops/jobs/kinds.py``."""

from __future__ import annotations

from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.gateway.fields import Field, Flag, ListOf, OneOf, Record, Text, Whole, shown

_REFERENCE = Field(Text(1000, empty=False), "what to fetch, as `mlxctl pull` takes it", required=True)
_NAME = Field(Text(300, empty=False), "what it is called in the store; else a name is made")

_PATTERNS = ListOf(Text(300, empty=False), 64)
_MODEL = Field(Text(300, empty=False), "a model of the store", required=True)
_NEW = Field(Text(300, empty=False), "what the result is called", required=True)
_TYPE = Text(40, empty=False)
_MEASURED = {
    "tokens": Field(Whole(64, 10_000_000), "of the text quality is measured on; 8192 unless said otherwise"),
    "measure": Field(Flag(), "false: no figure of quality"),
    "force": Field(Flag(), "also what is quantized already"),
}

KINDS: dict[str, Record] = {
    "pull": Record(
        {
            "model": _REFERENCE,
            "name": _NAME,
            "include": Field(_PATTERNS, "of a repository only the weights that match"),
            "exclude": Field(_PATTERNS, "of a repository nothing that matches"),
        }
    ),
    "push": Record(
        {
            "model": _MODEL,
            "target": Field(Text(1000, empty=False), "oci://HOST/NAME:TAG or hf:ORG/NAME", required=True),
        }
    ),
    "verify": Record({"models": Field(ListOf(_MODEL.check, 1000, low=1), "these; else the whole store")}),
    "repair": Record({"model": _MODEL}),
    "create": Record(
        {
            "name": _NEW,
            "spec": Field(Text(1 << 20, empty=False), "a ModelSpec or Modelfile, as text", required=True),
        }
    ),
    "convert": Record(
        {
            "model": _MODEL,
            "name": _NEW,
            "to": Field(OneOf(("gguf", "mlx", "safetensors")), "the format", required=True),
            "type": Field(_TYPE, "f16, q8_0, 4bit, …; else the format's usual one"),
            **_MEASURED,
        }
    ),
    "quantize": Record(
        {"model": _MODEL, "name": _NEW, "type": Field(_TYPE, "q8_0, q4_0, 4bit, …", required=True), **_MEASURED}
    ),
    "fuse": Record(
        {
            "model": _MODEL,
            "adapter": Field(Text(1000, empty=False), "a LoRA adapter: its path, or that in the model", required=True),
            "name": _NEW,
            "tokens": _MEASURED["tokens"],
            "measure": _MEASURED["measure"],
        }
    ),
}


class JobOrder:
    """``{"kind": …, "parameters": {…}}``, the parameters as the kind takes them."""

    def __call__(self, value: Any, path: str) -> dict[str, Any]:
        order = self._outer(value, path)
        return {"kind": order["kind"], "parameters": parameters_of(order["kind"], order.get("parameters", {}))}

    class _Anything:
        def __call__(self, value: Any, path: str) -> Any:  # noqa: ARG002
            return value

        def schema(self) -> dict[str, Any]:
            return {"type": "object"}

    _outer = Record({"kind": Field(Text(40, empty=False), required=True), "parameters": Field(_Anything())})

    def schema(self) -> dict[str, Any]:
        """One alternative for each kind."""
        return {"oneOf": [self._alternative(kind, record) for kind, record in KINDS.items()]}

    @staticmethod
    def _alternative(kind: str, record: Record) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"kind": {"const": kind}, "parameters": record.schema()},
            "required": ["kind", "parameters"] if record.needed else ["kind"],
            "additionalProperties": False,
        }


def parameters_of(kind: str, given: Any) -> dict[str, Any]:
    """The parameters of a kind, checked.

    Raises:
        InvalidInput: no such kind, or parameters it does not take; with ``field``.
    """
    record = KINDS.get(kind)
    if record is None:
        known = ", ".join(KINDS)
        raise InvalidInput(f"no kind of job is called {shown(kind)!r}", hint=f"there are {known}", field="kind")
    return record(given, "parameters")
