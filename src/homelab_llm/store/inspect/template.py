"""Chat templates: what their text tells without running it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from homelab_llm.core.facts import Capability, ModelFacts
from homelab_llm.store.inspect.documents import read_bounded, read_object

MAX_TEMPLATE_BYTES = 4 << 20

_TOOLS = re.compile(r"\btools\b")
_THINKING = re.compile(r"enable_thinking|<think>|\breasoning_content\b|\bthinking\b|reasoning_effort")


def knows_tools(template: str) -> bool:
    """Whether the template reads the ``tools`` variable."""
    return bool(_TOOLS.search(template))


def chat_capabilities(template: str, tools: bool) -> tuple[Capability, ...]:
    """What a generating model with this template can do; an empty template means plain completion only."""
    if not template:
        return ("completion",)
    found: list[Capability] = ["chat", "completion"]
    if tools:
        found.append("tools")
    if _THINKING.search(template):
        found.append("thinking")
    return tuple(found)


def with_template(facts: ModelFacts, template: str) -> ModelFacts:
    """The facts of a model whose own template is replaced; as they are when ``template`` is empty or it embeds."""
    if not template or "embedding" in facts.capabilities:
        return facts
    tools = knows_tools(template)
    kept: tuple[Capability, ...] = ("vision",) if "vision" in facts.capabilities else ()
    capabilities = (*chat_capabilities(template, tools), *kept)
    return replace(facts, chat_template=template, template_knows_tools=tools, capabilities=capabilities)


def folder_template(files: Mapping[str, Path]) -> tuple[str, bool]:
    """The chat template of a folder in Hugging Face's format, or empty, and whether it knows tools.

    Newer repositories carry ``chat_template.jinja``; older ones keep it in JSON, as one text or as a list of
    named ones: ``default`` is the template, and one named ``tool_use`` is what the tokenizer takes for tools.

    Raises:
        BadModelFile: one of the files is not what its name says.
    """
    if path := files.get("chat_template.jinja"):
        text = read_bounded(path, MAX_TEMPLATE_BYTES, "chat_template.jinja").decode("utf-8", "replace")
        return text, knows_tools(text)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (path := files.get(name)) and (found := _named(read_object(path, name).get("chat_template"))):
            text = found.get("default") or found.get("tool_use", "")
            return text, any(knows_tools(found.get(kind, "")) for kind in ("default", "tool_use"))
    return "", False


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list):
        return {}
    return {
        item["name"]: item["template"]
        for item in value
        if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
    }
