"""Checking a chat template: rendered over sample conversations, and asked whether what went in comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from homelab_llm.core.errors import InvalidTemplate
from homelab_llm.store.templates.rendering import LIMIT_S, Conversation, Rendered, render

Status = Literal["yes", "no", "lost"]
"""It does; it refuses, saying so; it swallows something without a word."""

_SYSTEM = {"role": "system", "content": "Be brief-7."}
_ASKED = {"role": "user", "content": "Question-1?"}
_ANSWERED = {"role": "assistant", "content": "Answer-2."}
_AGAIN = {"role": "user", "content": "Question-3?"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather_4",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Where"}},
            "required": ["place"],
        },
    },
}
_CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "weather_4", "arguments": {"place": "Oslo-5"}}}
    ],
}
_RESULT = {"role": "tool", "content": "Rain-6", "tool_call_id": "call00001", "name": "weather_4"}
_TOOLS: Mapping[str, Any] = {"tools": [_TOOL]}


@dataclass(frozen=True, slots=True)
class _Sample:
    """A conversation and the words of it that must stand in the prompt."""

    name: str
    conversation: Conversation
    words: tuple[str, ...]


_SAMPLES = (
    _Sample("a question", Conversation([_ASKED]), ("Question-1?",)),
    _Sample("a system message", Conversation([_SYSTEM, _ASKED]), ("Be brief-7.", "Question-1?")),
    _Sample("several turns", Conversation([_ASKED, _ANSWERED, _AGAIN]), ("Question-1?", "Answer-2.", "Question-3?")),
    _Sample("tools", Conversation([_ASKED], _TOOLS), ("weather_4", "Question-1?")),
    _Sample(
        "results of tools",
        Conversation([_ASKED, _CALL, _RESULT], _TOOLS),
        ("Question-1?", "Oslo-5", "Rain-6"),
    ),
)
_THINKING = (
    Conversation([_ASKED], {"enable_thinking": True}),
    Conversation([_ASKED], {"enable_thinking": False}),
    Conversation([_ASKED], {"reasoning_effort": "low"}),
    Conversation([_ASKED], {"reasoning_effort": "high"}),
)
_CLOSED = Conversation([_ASKED], add_generation_prompt=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one sample; ``reason`` says what the template said, or what it swallowed."""

    name: str
    status: Status
    reason: str = ""
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a template supports."""

    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether a single question can be asked with it: all that is needed of any template."""
        return self.findings[0].status == "yes"

    def supports(self, name: str) -> bool:
        """Whether the finding of that name is a yes."""
        return any(finding.name == name and finding.status == "yes" for finding in self.findings)


def check(source: str, *, limit_s: float = LIMIT_S) -> Report:
    """Render the samples in a process of its own.

    Raises:
        InvalidTemplate: it does not parse, reaches for what it may not, or runs out of its bounds.
    """
    asked = [*(sample.conversation for sample in _SAMPLES), *_THINKING, _CLOSED]
    rendered = render(source, asked, limit_s=limit_s)
    findings = [_finding(sample, one) for sample, one in zip(_SAMPLES, rendered, strict=False)]
    *thinking, closed = rendered[len(_SAMPLES) :]
    findings.append(_thinking(thinking))
    findings.append(_prompting(rendered[0], closed))
    return Report(tuple(findings))


def check_usable(source: str) -> None:
    """As ``check``, for whoever only needs to know that a template can be kept.

    Raises:
        InvalidTemplate: it cannot be used for a single question.
    """
    report = check(source)
    if not report.usable:
        raise InvalidTemplate(
            f"the chat template cannot render a single question: {report.findings[0].reason}",
            hint="mlxctl template check FILE",
        )


def _finding(sample: _Sample, one: Rendered) -> Finding:
    if one.code:
        return Finding(sample.name, "no", one.reason)
    if lost := [word for word in sample.words if word not in one.prompt]:
        return Finding(sample.name, "lost", f"its prompt lacks {', '.join(map(repr, lost))}", one.prompt)
    return Finding(sample.name, "yes", prompt=one.prompt)


def _thinking(rendered: list[Rendered]) -> Finding:
    on, off, low, high = (one.prompt for one in rendered)
    told = [name for name, differs in (("enable_thinking", on != off), ("reasoning_effort", low != high)) if differs]
    if told:
        return Finding("thinking", "yes", f"follows {' and '.join(told)}")
    if "<think>" in on:
        return Finding("thinking", "yes", "always")
    return Finding("thinking", "no", "follows neither enable_thinking nor reasoning_effort")


def _prompting(open_: Rendered, closed: Rendered) -> Finding:
    if open_.prompt != closed.prompt:
        return Finding("generation prompt", "yes")
    return Finding("generation prompt", "no", "ends the same way whether an answer is wanted or not")
