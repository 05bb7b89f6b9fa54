"""Job kinds: what each kind of job takes, checked when it is asked for. Who does it is in ``ops/jobs/kinds.py``."""

from __future__ import annotations

from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.gateway.fields import Field, Record, Text, shown

_REFERENCE = Field(Text(1000, empty=False), "what to fetch, as `mlxctl pull` takes it", required=True)
_NAME = Field(Text(300, empty=False), "what it is called in the store; else a name is made")

KINDS: dict[str, Record] = {
    "pull": Record({"model": _REFERENCE, "name": _NAME}),
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
