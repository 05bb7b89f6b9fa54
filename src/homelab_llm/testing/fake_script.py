"""What the fake engine shall do with one request: a directive in the prompt, and what the body asks for.

The directive stands in the last message or the prompt: ``fake: tokens=64 rate=100 prefill_s=0.5 crash_at=5``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

DEFAULT_TOKENS = 16
_DIRECTIVE = re.compile(r"fake:((?:\s+[a-z_]+=[\w.+-]+)*)")
_MAX_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Script:
    """One request's behaviour. Every ``*_at`` is the number of tokens sent before it happens; None = never.

    ``tokens``: None = what the body asks for. ``rate``: tokens per second, 0 = as fast as possible.
    ``crash_at`` aborts the process (``exit`` gives it an exit code instead; alone it means at token 0),
    ``kill_at`` ends it with SIGKILL, ``oom_at`` prints what engines print when memory ends and aborts,
    ``stall_at`` says nothing more, ``error_at`` sends an error (0: an HTTP error), ``garbage_at`` an event
    that is not JSON, ``close_at`` closes the connection. ``coalesce``: events per write, 0 or 1 = each alone.
    ``stamp``: each token's text is the monotonic nanosecond at which it was written.
    """

    tokens: int | None = None
    rate: float = 0.0
    prefill_s: float = 0.0
    crash_at: int | None = None
    kill_at: int | None = None
    oom_at: int | None = None
    stall_at: int | None = None
    error_at: int | None = None
    garbage_at: int | None = None
    close_at: int | None = None
    exit: int | None = None
    coalesce: int = 32
    stamp: bool = False

    @property
    def plain(self) -> bool:
        """No pause and no fault: the whole answer can leave at once."""
        return not (self.rate or self.prefill_s or self.stamp or self.coalesce < 2 or self.faults)

    @property
    def faults(self) -> dict[int, str]:
        """The misfortune at each token count."""
        names = ("crash_at", "kill_at", "oom_at", "stall_at", "error_at", "garbage_at", "close_at")
        found = {getattr(self, name): name[:-3] for name in names if getattr(self, name) is not None}
        if self.exit is not None and self.crash_at is None:
            found[0] = "crash"
        return found


@lru_cache(maxsize=1024)
def _scripted(default: Script, directive: str) -> Script:
    kinds = {field.name: str(field.type) for field in fields(Script)}
    changes: dict[str, Any] = {}
    for pair in directive.split():
        key, _, value = pair.partition("=")
        if key not in kinds:
            raise ValueError(f"the fake engine knows no {key!r}")
        changes[key] = float(value) if kinds[key] == "float" else int(value)
    return replace(default, **changes)


def script_of(text: str, default: Script) -> Script:
    """The script ``text`` carries, over ``default``.

    Raises:
        ValueError: a key that is none, or a value that is no number.
    """
    if "fake:" not in text:
        return default
    found = _DIRECTIVE.search(text)
    return _scripted(default, found[1]) if found else default


def texts_of(body: dict[str, Any]) -> list[str]:
    """Every text of the prompt or the messages, in order.

    Raises:
        ValueError: neither a prompt nor messages.
    """
    if isinstance(messages := body.get("messages"), list) and messages:
        return [_flatten(message.get("content")) for message in messages]
    if "prompt" in body:
        return [_flatten(body["prompt"])]
    raise ValueError("neither 'messages' nor 'prompt'")


def _flatten(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(_flatten(part.get("text") if isinstance(part, dict) else part) for part in content)
    return "" if content is None else str(content)


def schema_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON Schema the answer must follow, in any of the places llama.cpp reads it from."""
    if isinstance(given := body.get("json_schema"), dict):
        return given
    wanted = body.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") not in {"json_object", "json_schema"}:
        return None
    nested = wanted.get("json_schema")
    schema = nested.get("schema") if isinstance(nested, dict) else wanted.get("schema")
    return schema if isinstance(schema, dict) else {"type": "object"}


def example_of(schema: Any, root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """The smallest value that ``schema`` allows, for the keywords tool schemas use; not a validator."""
    root = root if root is not None else schema
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return example_of(_lookup(root or {}, reference), root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf"):
        if schema.get(choice):
            return example_of(schema[choice][0], root, depth + 1)
    if schema.get("allOf"):
        parts = [example_of(part, root, depth + 1) for part in schema["allOf"]]
        objects = [part for part in parts if isinstance(part, dict)]
        return {key: value for part in objects for key, value in part.items()} if objects else parts[0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object" or "properties" in schema:
        known = schema.get("properties", {})
        return {key: example_of(known.get(key, {}), root, depth + 1) for key in schema.get("required", ())}
    if kind == "array":
        return [example_of(schema.get("items", {}), root, depth + 1)] * int(schema.get("minItems", 0))
    if kind == "string":
        return "x" * max(1, int(schema.get("minLength", 1)))
    if kind in {"integer", "number"}:
        above = schema.get("exclusiveMinimum")
        return schema.get("minimum", above + 1 if above is not None else min(0, schema.get("maximum", 0)))
    return False if kind == "boolean" else None


def _lookup(root: dict[str, Any], reference: str) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(part, {}) if part and isinstance(found, dict) else found
    return found
