"""Makes conversations.json, the conversations over which every template is compared; the same ones each time.

Run it in this folder, then ``go run render.go``. Keys stand in alphabetical order, for Go's maps do.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "",
    "hello",
    "two\nlines",
    "  spaced  ",
    'a "quoted" \\ word',
    "<|im_end|>",
    "naïve ✓",
    "{{ .System }}",
    "a: b, c",
]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "properties": {
                "place": {"type": "string", "description": "Where"},
                "unit": {"type": "string", "description": "Which", "enum": ["C", "F"]},
            },
            "required": ["place"],
            "type": "object",
        },
    },
}
OTHER = {
    "type": "function",
    "function": {"name": "now", "description": "", "parameters": {"properties": {}, "required": [], "type": "object"}},
}


def conversation(chance: random.Random) -> dict[str, Any]:
    """One that ends with the user, a tool, or an answer to go on with."""
    said = chance.choice
    messages: list[dict[str, Any]] = [{"role": "system", "content": said(WORDS)}] if chance.random() < 0.6 else []
    for _ in range(chance.randint(1, 3)):
        messages += [{"role": "user", "content": said(WORDS)} for _ in range(1 if chance.random() < 0.8 else 2)]
        if chance.random() < 0.4:
            calls = [
                {
                    "id": f"call_{n}",
                    "function": {"name": "get_weather", "arguments": {"place": said(WORDS), "unit": "C"}},
                }
                for n in range(chance.randint(1, 2))
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [
                {"role": "tool", "content": "21", "name": "get_weather", "tool_call_id": c["id"]} for c in calls
            ]
        if chance.random() < 0.7:
            messages.append({"role": "assistant", "content": said(WORDS)})
            if chance.random() < 0.4:
                messages[-1]["reasoning_content"] = said(WORDS)
        if chance.random() < 0.1:
            messages.append({"role": "system", "content": said(WORDS)})
    told: dict[str, Any] = {"messages": messages}
    if chance.random() < 0.5:
        told["tools"] = [TOOL, OTHER][: chance.randint(1, 2)]
    if chance.random() < 0.5:
        told["enable_thinking"] = chance.random() < 0.5
    return told


if __name__ == "__main__":
    chance = random.Random(8)  # noqa: S311 — no secret
    made = [conversation(chance) for _ in range(30)]
    Path("conversations.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
