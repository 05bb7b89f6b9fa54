"""Modelfile: Ollama's way to write down a model; parsed to the same value as a ModelSpec, and written again. Pure.

The grammar is Ollama's: an instruction per line, its keyword in any case, order free, ``#`` begins a comment line. A
value that begins with one or three double quotes ends at the first line that ends with as many; there are no escapes.
Stricter than Ollama: what would have no effect here is refused by name, with the reason.
Source: github.com/ollama/ollama, parser/parser.go and docs/modelfile.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from homelab_llm.core.errors import InvalidInput
from homelab_llm.core.parameters import MAX_STOP_WORDS, parse_parameter
from homelab_llm.store.build.spec import (
    MAX_ADAPTERS,
    MAX_LONG_CHARACTERS,
    MAX_MESSAGES,
    MAX_SHORT_CHARACTERS,
    MAX_SPEC_BYTES,
    ROLES,
    ModelSpec,
    check_length,
    check_requires,
    did_you_mean,
    fault,
    shown,
)

_INSTRUCTION = re.compile(r"([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)
_WORD = re.compile(r"(\S+)(?:[ \t]+(.*))?", re.DOTALL)
_YAML = re.compile(r"\s*(?:---|%|\{|[A-Za-z_]\w*\s*:(?:\s|$))")
_TRIPLE = '"""'
_REFUSED = {
    "RENDERER": "it names a prompt builder inside Ollama; write the chat template as TEMPLATE",
    "PARSER": "it names an answer parser inside Ollama; engines here read tool calls and thinking by the template",
    "DRAFT": "no engine here runs a draft model",
}


def looks_like_yaml(content: bytes) -> bool:
    """Whether a spec file is YAML rather than a Modelfile: its first line that says something is ``key:``."""
    text = content[:MAX_SPEC_BYTES].decode("utf-8-sig", "replace")
    said = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return bool(_YAML.match(next(said, "")))


def parse_modelfile(content: bytes) -> ModelSpec:
    """The value of a Modelfile.

    Raises:
        InvalidModelSpec: with the line.
    """
    reading = _Reading()
    for line, keyword, value in _instructions(_decoded(content)):
        reading.take(line, keyword, value)
    return reading.spec()


def _decoded(content: bytes) -> str:
    if len(content) > MAX_SPEC_BYTES:
        raise fault(f"a Modelfile is at most {MAX_SPEC_BYTES} bytes")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise fault("a Modelfile is text in UTF-8", line=content[: error.start].count(b"\n") + 1) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, keyword in upper case, and value with its quotes taken off."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line, begun = lines[at].lstrip(), at + 1
        at += 1
        if not line.rstrip() or line.startswith("#"):
            continue
        found = _INSTRUCTION.fullmatch(line)
        keyword = (found[1] if found else _first_word(line)).upper()
        if found is None or keyword not in _TAKERS:
            known = ", ".join(_TAKERS)
            meant = did_you_mean(keyword, map(str.lower, _TAKERS)).upper().replace("DID YOU MEAN", "did you mean")
            raise fault(f"there is no instruction {shown(keyword)!r}{meant}", line=begun, hint=f"known are {known}")
        head, value = _head(keyword, found[2] or "")
        following = [value]
        while (closed := _unquoted(following)) is None:
            if at == len(lines):
                raise fault(f"the quotes of {keyword} are never closed", line=begun, name=keyword.lower())
            following.append(lines[at])
            at += 1
        yield begun, keyword, head + closed


def _first_word(line: str) -> str:
    return line.split(maxsplit=1)[0]


def _head(keyword: str, rest: str) -> tuple[str, str]:
    """The word before the value, with a space: the name of a parameter, the role of a message. Else empty."""
    if keyword not in ("PARAMETER", "MESSAGE"):
        return "", rest
    found = _WORD.match(rest.lstrip())
    return (f"{found[1]} ", found[2] or "") if found else ("", "")


def _unquoted(lines: list[str]) -> str | None:
    """The value of these lines without its quotes; None when they are not closed yet. Looks at the ends only."""
    first, last = lines[0].lstrip(), lines[-1].rstrip()
    for quote in (_TRIPLE, '"'):
        if first.startswith(quote):
            text = first.rstrip() if len(lines) == 1 else last
            if not text.endswith(quote) or (len(lines) == 1 and len(text) < 2 * len(quote)):
                return None
            return "\n".join(lines).strip()[len(quote) : -len(quote)]
    return "\n".join(lines).strip()


@dataclass(slots=True)
class _Reading:
    """A Modelfile while it is read."""

    once: dict[str, tuple[int, str]] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    stop: list[str] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)

    def take(self, line: int, keyword: str, value: str) -> None:
        """One instruction."""
        if not value.strip():
            raise fault(f"{keyword} says nothing", line=line, name=keyword.lower())
        _TAKERS[keyword](self, line, keyword, value)

    def spec(self) -> ModelSpec:
        """What was read.

        Raises:
            InvalidModelSpec: there was no FROM.
        """
        if "FROM" not in self.once:
            raise fault("a Modelfile needs a FROM", name="from", hint="FROM smollm2:135m")
        texts = {keyword: value for keyword, (_, value) in self.once.items()}
        return ModelSpec(
            base=texts["FROM"],
            template=texts.get("TEMPLATE", ""),
            parameters=self.parameters,
            system=texts.get("SYSTEM", ""),
            stop=tuple(dict.fromkeys(self.stop)),
            messages=tuple(self.messages),
            adapters=tuple(self.adapters),
            licence="\n\n".join(self.licences),
            requires=texts.get("REQUIRES", ""),
        )

    def short(self, line: int, keyword: str, value: str) -> None:
        text = check_length(value.strip(), MAX_SHORT_CHARACTERS, line=line, name=keyword.lower())
        if "\n" in text:
            raise fault(f"{keyword} is one line", line=line, name=keyword.lower())
        if keyword == "ADAPTER":
            if len(self.adapters) == MAX_ADAPTERS:
                raise fault(f"a model has at most {MAX_ADAPTERS} adapters", line=line, name="adapters")
            self.adapters.append(text)
        else:
            self._keep(
                line, keyword, check_requires(text, line=line, program="ollama") if keyword == "REQUIRES" else text
            )

    def long(self, line: int, keyword: str, value: str) -> None:
        text = check_length(value, MAX_LONG_CHARACTERS, line=line, name=keyword.lower())
        if keyword == "LICENSE":
            self.licences.append(text)
            check_length("\n\n".join(self.licences), MAX_LONG_CHARACTERS, line=line, name="licence")
        else:
            self._keep(line, keyword, text)

    def _keep(self, line: int, keyword: str, text: str) -> None:
        if keyword in self.once:
            first = self.once[keyword][0]
            extra = "; a vision projector beside the model is not taken" if keyword == "FROM" else ""
            raise fault(f"{keyword} stands there twice, first in line {first}{extra}", line=line, name=keyword.lower())
        self.once[keyword] = line, text

    def parameter(self, line: int, _keyword: str, value: str) -> None:
        name, _, text = value.partition(" ")
        if not text:
            raise fault(f"PARAMETER {shown(name)} says nothing", line=line, name=name[:60])
        try:
            known, checked = parse_parameter(name, text)
        except InvalidInput as error:
            raise fault(error.message, line=line, name=name[:60], hint=error.hint) from error
        if known == "stop":
            self.stop += checked
            if len(self.stop) > MAX_STOP_WORDS:
                raise fault(f"a model has at most {MAX_STOP_WORDS} stop words", line=line, name="stop")
        elif checked is None:
            self.parameters.pop(known, None)
        else:
            self.parameters[known] = checked  # as in Ollama, the last one counts

    def message(self, line: int, _keyword: str, value: str) -> None:
        role, _, text = value.partition(" ")
        if role not in ROLES:
            raise fault(f"the role of a MESSAGE is one of {', '.join(ROLES)}", line=line, name="message")
        if len(self.messages) == MAX_MESSAGES:
            raise fault(f"a model has at most {MAX_MESSAGES} messages", line=line, name="messages")
        content = check_length(text, MAX_LONG_CHARACTERS, line=line, name="message")
        self.messages.append({"role": role, "content": content})

    def refuse(self, line: int, keyword: str, _value: str) -> None:
        raise fault(f"{keyword} has no effect here: {_REFUSED[keyword]}", line=line, name=keyword.lower())


_TAKERS: dict[str, Callable[[_Reading, int, str, str], None]] = {
    "FROM": _Reading.short,
    "PARAMETER": _Reading.parameter,
    "TEMPLATE": _Reading.long,
    "SYSTEM": _Reading.long,
    "ADAPTER": _Reading.short,
    "LICENSE": _Reading.long,
    "MESSAGE": _Reading.message,
    "REQUIRES": _Reading.short,
    **dict.fromkeys(_REFUSED, _Reading.refuse),
}


def write_modelfile(spec: ModelSpec) -> str:
    """A Modelfile that reads as ``spec``, here and in Ollama. What a Modelfile cannot say stands there as a comment.

    A template is written as it is; the caller decides whether it is one that Ollama reads.

    Raises:
        InvalidModelSpec: a text cannot be written, because the format has no escapes.
    """
    told = {name: getattr(spec, name) for name in ("name", "revision", "quantization", "tool_call_parser")}
    told |= {"reasoning_parser": spec.reasoning_parser, **{f"metadata {k}": v for k, v in spec.metadata.items()}}
    program, _, version = spec.requires.partition(">=")
    if program != "ollama":
        told["requires"] = spec.requires
    lines = [f"# {name}: {' '.join(str(value).split())}" for name, value in told.items() if value]
    lines.append(f"FROM {spec.base}")
    lines += [f"ADAPTER {_quoted('ADAPTER', adapter)}" for adapter in spec.adapters]
    lines += [
        f"{word} {_quoted(word, text)}" for word, text in (("TEMPLATE", spec.template), ("SYSTEM", spec.system)) if text
    ]
    lines += [f"PARAMETER {_ollama_name(name)} {value}" for name, value in spec.parameters.items()]
    lines += [f"PARAMETER stop {_quoted('stop', word)}" for word in spec.stop]
    lines += [f"MESSAGE {m['role']} {_quoted('MESSAGE', m['content'])}" for m in spec.messages]
    lines += [f"LICENSE {_quoted('LICENSE', spec.licence)}"] if spec.licence else []
    lines += [f"REQUIRES {version}"] if program == "ollama" else []
    return "\n".join(lines) + "\n"


def _ollama_name(name: str) -> str:
    return "num_predict" if name == "max_tokens" else name


def _quoted(what: str, text: str) -> str:
    """The plainest way to write a value that reads as ``text``."""
    for quote in ("", _TRIPLE, '"') if "\n" in text else ("", '"', _TRIPLE):
        written = f"{quote}{text}{quote}"
        lines = written.split("\n")
        early = any(_unquoted(lines[:count]) is not None for count in range(1, len(lines)))
        if not early and _unquoted(lines) == text:
            return written
    raise fault(f"{what} cannot be written into a Modelfile: it has quotes at the end of a line", name=what.lower())
