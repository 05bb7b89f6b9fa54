"""What an Ollama template sees, and where a Jinja chat template finds the same: kinds of values and their fields. Pure.

Each field of a kind is an expression in which ``@`` stands for the value, and the kind of what comes out. OpenAI's
messages may lack a content, and their tool calls may carry arguments as text; both are met here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "arguments",
    "call",
    "called",
    "calls",
    "flag",
    "message",
    "messages",
    "nothing",
    "number",
    "object",
    "parameters",
    "properties",
    "property",
    "root",
    "text",
    "texts",
    "tool",
    "tool_function",
    "tools",
    "value",
]


@dataclass(frozen=True, slots=True)
class Value:
    """An expression of Jinja that can stand anywhere, and what it gives."""

    code: str
    kind: Kind


FIELDS: dict[Kind, dict[str, tuple[str, Kind]]] = {
    "message": {
        "Role": ("@.role", "text"),
        "Content": ("(@.content or '')", "text"),
        "Thinking": ("(@.reasoning_content or @.thinking or '')", "text"),
        "ToolCalls": ("(@.tool_calls or [])", "calls"),
        "ToolName": ("(@.name or @.tool_name or '')", "text"),
        "ToolCallID": ("(@.tool_call_id or '')", "text"),
        "Images": ("[]", "texts"),  # the engine puts images where they belong
    },
    "call": {"ID": ("(@.id or '')", "text"), "Type": ("'function'", "text"), "Function": ("@.function", "called")},
    "called": {"Name": ("@.name", "text"), "Arguments": ("@.arguments", "arguments")},
    "tool": {"Type": ("@.type", "text"), "Function": ("@.function", "tool_function")},
    "tool_function": {
        "Name": ("@.name", "text"),
        "Description": ("(@.description or '')", "text"),
        "Parameters": ("(@.parameters or {})", "parameters"),
    },
    "parameters": {
        "Type": ("@.type", "value"),
        "Required": ("(@.required or [])", "texts"),
        "Properties": ("(@.properties or {})", "properties"),
    },
    "property": {
        "Type": ("@.type", "value"),
        "Description": ("(@.description or '')", "text"),
        "Enum": ("(@.enum or [])", "value"),
        "Items": ("@['items']", "value"),
    },
}
# With messages a template gets no prompt; Ollama gives it an empty response. ``System`` is set by the preamble.
ROOT: dict[str, tuple[str, Kind]] = {
    "Messages": ("messages", "messages"),
    "System": ("ollama.system", "text"),
    "Tools": ("(tools or [])", "tools"),
    "Prompt": ("''", "text"),
    "Response": ("''", "text"),
    "Suffix": ("''", "text"),
    "Think": ("(enable_thinking | default(reasoning_effort is defined))", "flag"),
    "ThinkLevel": ("(reasoning_effort | default(''))", "text"),
    "IsThinkSet": ("(enable_thinking is defined or reasoning_effort is defined)", "flag"),
}
# A template without messages is rendered for each turn, and sees that turn only.
TURN: dict[str, tuple[str, Kind]] = {
    **{name: ROOT[name] for name in ("Suffix", "Think", "ThinkLevel", "IsThinkSet")},
    "System": ("turn.system", "text"),
    "Prompt": ("turn.prompt", "text"),
    "Response": ("turn.response", "text"),
    "Tools": ("[]", "tools"),  # Ollama gives such a template none
}
ELEMENTS: dict[Kind, Kind] = {
    "messages": "message",
    "calls": "call",
    "tools": "tool",
    "texts": "text",
    "properties": "property",
    "arguments": "value",
    "object": "value",
    "value": "value",
}
MAPPINGS: frozenset[Kind] = frozenset({"properties", "arguments", "object"})
TEXTS: frozenset[Kind] = frozenset({"text", "number"})


def printed(value: Value) -> str:
    """How Go prints a value: text as it is, everything of some structure as JSON."""
    if value.kind in TEXTS:
        return value.code
    if value.kind == "flag":
        return f"('true' if {value.code} else 'false')"
    if value.kind == "nothing":
        return "''"
    if value.kind in ("arguments", "value", "object"):
        return f"({value.code} if {value.code} is string else {value.code} | tojson)"
    return f"({value.code} | tojson)"
