"""ModelSpec in YAML: read within bounds and with line numbers, written so that it reads the same. Pure.

Plain mappings, lists and scalars only: tags, aliases, merges, several documents and repeated keys are refused, so a
small file cannot mean a large one. The JSON Schema beside this file says the same for editors; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.parameters import (
    MAX_STOP_CHARACTERS,
    MAX_STOP_WORDS,
    PARAMETERS,
    Parameter,
    check_parameter,
    parse_parameter,
)
from homelab_llm.store.build.spec import (
    MAX_ADAPTERS,
    MAX_LONG_CHARACTERS,
    MAX_MESSAGES,
    MAX_METADATA,
    MAX_METADATA_CHARACTERS,
    MAX_SHORT_CHARACTERS,
    MAX_SPEC_BYTES,
    ROLES,
    ModelSpec,
    check_length,
    check_metadata_key,
    check_requires,
    did_you_mean,
    fault,
    shown,
)

if TYPE_CHECKING:
    import yaml

_MAX_EVENTS = 20_000
_MAX_DEPTH = 6
_PREFIX = "tag:yaml.org,2002:"
_NOT_TEXT = (f"{_PREFIX}bool", f"{_PREFIX}null", f"{_PREFIX}merge")
_BREAKS = frozenset("\r\x85\u2028\u2029\ufeff")  # YAML 1.1 takes them for line ends, or drops them
SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class _Field:
    """One key of a ModelSpec: how it is read, and its JSON Schema."""

    text: str
    read: Callable[[Any, str], Any]
    schema: Mapping[str, Any]


# --- reading ------------------------------------------------------------------------------------------------------


def parse_modelspec(content: bytes) -> ModelSpec:
    """The value of a YAML ModelSpec.

    Raises:
        InvalidModelSpec: with the line and the field where they are known.
    """
    import yaml

    if len(content) > MAX_SPEC_BYTES:
        raise fault(f"a ModelSpec is at most {MAX_SPEC_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault("a ModelSpec is text in UTF-8", line=content[: error.start].count(b"\n") + 1) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_expansion(yaml.parse(text, Loader=loader))
        node = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        raise _not_yaml(error) from error
    pairs = dict(_pairs(node, "a ModelSpec", FIELDS))
    values = {key: FIELDS[key].read(value, key) for key, value in pairs.items()}
    if "base" not in values:
        raise fault("a ModelSpec needs a base", name="base", hint="base: smollm2:135m")
    return ModelSpec(**values)


def _refuse_expansion(events: Iterator[Any]) -> None:
    """Bound what the text can become before anything is built of it."""
    import yaml

    depth = documents = 0
    for count, event in enumerate(events):
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if isinstance(event, yaml.AliasEvent):
            raise fault("aliases are not taken", line=line, hint="write the value out")
        if getattr(event, "tag", None) not in (None, "!"):
            raise fault("tags are not taken", line=line, hint="write plain texts, numbers, lists and mappings")
        if count > _MAX_EVENTS or depth > _MAX_DEPTH or documents > 1:
            raise fault("a ModelSpec is one small document of plain values", line=line)


def _not_yaml(error: yaml.YAMLError) -> InvalidInput:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return fault(f"not YAML: {shown(str(problem))}", line=mark.line + 1 if mark else 0)


def _pairs(node: Any, what: str, known: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    """The keys and value nodes of a mapping; keys are texts that stand there once and are known."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise fault(f"{what} is a mapping: key: value", line=_line(node))
    seen: set[str] = set()
    for key_node, value in node.value:
        line = _line(key_node)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f"{_PREFIX}merge":
            raise fault("a key is a word", line=line)
        key = key_node.value
        if known is not None and key not in known:
            raise fault(f"{what} has no {shown(key)!r}{did_you_mean(key, known)}", line=line, name=key[:60])
        if key in seen:
            raise fault(f"{shown(key)!r} stands there twice", line=line, name=key[:60])
        seen.add(key)
        yield key, value


def _line(node: Any) -> int:
    return node.start_mark.line + 1 if node is not None else 1


def _wrong(node: Any, name: str, wanted: str) -> NoReturn:
    raise fault(f"{name} must be {wanted}", line=_line(node), name=name)


def _scalar(node: Any, name: str) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag in _NOT_TEXT:
        _wrong(node, name, "a text (put quotes around yes, no, true, false and null)")
    return str(node.value)


def _short(node: Any, name: str) -> str:
    text = check_length(_scalar(node, name), MAX_SHORT_CHARACTERS, line=_line(node), name=name)
    if "\n" in text:
        _wrong(node, name, "one line")
    return text.strip()


def _long(node: Any, name: str) -> str:
    return check_length(_scalar(node, name), MAX_LONG_CHARACTERS, line=_line(node), name=name)


def _items(node: Any, name: str, most: int) -> list[Any]:
    """The nodes of a list; a scalar is a list of one."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return [node]
    if not isinstance(node, yaml.SequenceNode) or not 0 < len(node.value) <= most:
        _wrong(node, name, f"a list of 1 to {most}")
    return list(node.value)


def _stop(node: Any, name: str) -> tuple[str, ...]:
    texts = [_scalar(item, name) for item in _items(node, name, MAX_STOP_WORDS)]
    return tuple(_checked(node, lambda: check_parameter("stop", texts)[1]))


def _checked(node: Any, check: Callable[[], Any]) -> Any:
    """What ``check`` gives; its error gets the line."""
    try:
        return check()
    except InvalidInput as error:
        name = str(error.facts.get("field", ""))
        raise fault(error.message, line=_line(node), name=name, hint=error.hint) from error


def _adapters(node: Any, name: str) -> tuple[str, ...]:
    return tuple(_short(item, name) for item in _items(node, name, MAX_ADAPTERS))


def _parameters(node: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in _pairs(node, name, None):
        if key == "stop":
            raise fault(
                "stop stands beside parameters, not in them", line=_line(value), name="stop", hint="stop: [...]"
            )
        text = _scalar(value, key)
        known, checked = _checked(value, lambda key=key, text=text: parse_parameter(key, text))  # type: ignore[misc]
        if known in found:
            raise fault(f"{key} and {known} are the same parameter", line=_line(value), name=key)
        if checked is not None:
            found[known] = checked
    return found


def _messages(node: Any, name: str) -> tuple[Mapping[str, str], ...]:
    found = []
    for item in _items(node, name, MAX_MESSAGES):
        pairs = dict(_pairs(item, "a message", {"role": "", "content": ""}))
        if len(pairs) != 2:
            _wrong(item, name, "a list of {role: user, content: …}")
        role = _short(pairs["role"], "role")
        if role not in ROLES:
            _wrong(pairs["role"], "role", f"one of {', '.join(ROLES)}")
        found.append({"role": role, "content": _long(pairs["content"], "content")})
    return tuple(found)


def _metadata(node: Any, name: str) -> dict[str, str]:
    found = {}
    for key, value in _pairs(node, name, None):
        check_metadata_key(key, line=_line(value))
        found[key] = check_length(_scalar(value, key), MAX_METADATA_CHARACTERS, line=_line(value), name=key)
    if len(found) > MAX_METADATA:
        _wrong(node, name, f"at most {MAX_METADATA} short texts")
    return found


def _requires(node: Any, name: str) -> str:
    return check_requires(_short(node, name), line=_line(node))


# --- the table ----------------------------------------------------------------------------------------------------

_SHORT_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_SHORT_CHARACTERS}
_LONG_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_LONG_CHARACTERS}


def _one_or_more(item: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": most}]}


def _parameter_schema(parameter: Parameter) -> dict[str, Any]:
    told: dict[str, Any] = {"description": parameter.text} if parameter.text else {}
    if parameter.kind == "word":
        return {**told, "enum": list(parameter.words)}
    kind = "integer" if parameter.kind == "whole" else "number"
    return {**told, "type": kind, "minimum": parameter.low, "maximum": parameter.high}


_MESSAGE_SCHEMA = {
    "type": "object",
    "properties": {"role": {"enum": list(ROLES)}, "content": _LONG_TEXT},
    "required": ["role", "content"],
    "additionalProperties": False,
}

FIELDS: dict[str, _Field] = {
    "name": _Field("the name in the store when the command gives none", _short, _SHORT_TEXT),
    "base": _Field(
        "a model of the store, a reference as pull takes it, or a path beside this file", _short, _SHORT_TEXT
    ),
    "revision": _Field("branch, tag or commit of a hf: base", _short, _SHORT_TEXT),
    "quantization": _Field("how the weights must be stored: Q4_0, 4bit, …", _short, _SHORT_TEXT),
    "template": _Field(
        "a chat template (Jinja, or Go as Ollama's), its path, or a name of the catalogue", _long, _LONG_TEXT
    ),
    "parameters": _Field(
        "used where a request says nothing",
        _parameters,
        {
            "type": "object",
            "properties": {name: _parameter_schema(p) for name, p in PARAMETERS.items() if name != "stop"},
        },
    ),
    "system": _Field("the system message of conversations that have none", _long, _LONG_TEXT),
    "stop": _Field(
        "an answer ends before any of these",
        _stop,
        _one_or_more({"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS}, MAX_STOP_WORDS),
    ),
    "messages": _Field(
        "an example conversation, put before every one",
        _messages,
        {"type": "array", "items": _MESSAGE_SCHEMA, "minItems": 1, "maxItems": MAX_MESSAGES},
    ),
    "tool_call_parser": _Field(
        "as in a registry entry; an engine that lacks it refuses the model", _short, _SHORT_TEXT
    ),
    "reasoning_parser": _Field(
        "as in a registry entry; an engine that lacks it refuses the model", _short, _SHORT_TEXT
    ),
    "adapters": _Field(
        "LoRA adapters: a GGUF file, a folder in PEFT's format, or a model of the store that has them",
        _adapters,
        _one_or_more(_SHORT_TEXT, MAX_ADAPTERS),
    ),
    "licence": _Field("a short name such as apache-2.0, a text, or the path of one", _long, _LONG_TEXT),
    "metadata": _Field(
        "short texts for people",
        _metadata,
        {
            "type": "object",
            "maxProperties": MAX_METADATA,
            "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_.-]{0,63}$"},
            "additionalProperties": {"type": "string", "minLength": 1, "maxLength": MAX_METADATA_CHARACTERS},
        },
    ),
    "requires": _Field("least version of what serves it: homelab-llm>=0.1", _requires, _SHORT_TEXT),
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a ModelSpec; ``modelspec.schema.json`` holds it for editors."""
    return {
        "$schema": SCHEMA_ID,
        "title": "ModelSpec of homelab-llm",
        "type": "object",
        "properties": {name: {"description": entry.text, **entry.schema} for name, entry in FIELDS.items()},
        "required": ["base"],
        "additionalProperties": False,
    }


# --- writing ------------------------------------------------------------------------------------------------------


def write_modelspec(spec: ModelSpec) -> str:
    """YAML that reads as ``spec``."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Several lines of text stay several lines."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = '"' if _BREAKS.intersection(value) else "|" if "\n" in value else None
        return dumper.represent_scalar(f"{_PREFIX}str", value, style=style)

    Dumper.add_representer(str, text)
    values = {entry.name: getattr(spec, entry.name) for entry in fields(spec)}
    plain = {name: _plain(value) for name, value in values.items() if value}
    ordered = {name: plain[name] for name in FIELDS if name in plain}
    return str(yaml.dump(ordered, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
