"""The engine's own Jinja reads our templates, and those translated from Ollama's, as ours does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.chat_template import ChatTemplate
from homelab_llm.core.errors import InvalidInput
from homelab_llm.store.templates.catalogue import ENTRIES
from homelab_llm.store.templates.go_template import translate

OLLAMA = Path(__file__).parents[1] / "templates" / "ollama"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where"}},
                "required": ["place"],
            },
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello\nyou"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "How are you?"},
]
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Yes", "tool_call_id": "call00001", "name": "weather"},
]
SAME = "<|im_start|>", "<|im_end|>"  # the tokens of SmolLM2, which the engine gives every template
AT_CI_SIZE = ("qwen3", "mistral-v3", "chatml-turns", "definitions")


def templates() -> list[tuple[str, str]]:
    """Ours and the translated ones, by name; a few of them at CI size."""
    named = [(entry.name, entry.text) for entry in ENTRIES]
    named += [(path.stem, translate(path.read_text("utf-8"))) for path in sorted(OLLAMA.glob("*.gotmpl"))]
    everything = os.environ.get("HOMELAB_SIZE") == "full"
    return [(name, text) for name, text in named if everything or name in AT_CI_SIZE]


@pytest.mark.requirement("R-M8")
@pytest.mark.parametrize(("name", "text"), templates(), ids=lambda value: value if len(value) < 30 else "")
def test_the_engine_reads_a_template_as_the_sandbox_does(
    name: str, text: str, smollm2_gguf: Path, tmp_path: Path, launch_worker: Any
) -> None:
    (tmp_path / "t.jinja").write_text(text, "utf-8")
    worker = launch_worker("--model", smollm2_gguf, "--context", "256", "--chat-template", tmp_path / "t.jinja")
    worker.until_ready()
    template = ChatTemplate(text)
    for messages, tools in ((TURNS, None), (CALLED, TOOLS)):
        for thinking in (False, True):  # the engine always says which
            values = {"tools": tools, "enable_thinking": thinking, "bos_token": SAME[0], "eos_token": SAME[1]}
            body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": thinking}}
            status, told = worker.call("POST", "/apply-template", body | ({"tools": tools} if tools else {}))
            try:
                assert told.get("prompt") == template.render(messages, values), name
            except InvalidInput:
                assert status != 200
