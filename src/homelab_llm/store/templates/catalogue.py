"""Chat templates of our own for models whose files have none: one file each in ``catalogue/``, and when it fits.

A model is recognised by the tokens its vocabulary has for turns, and by the one that ends its answers: base models
often share the vocabulary of their chat models, but end with another token. What cannot be told is not guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from homelab_llm.core.errors import SourceNotFound
from homelab_llm.core.facts import ModelFacts

_HEADER = re.compile(r"\{#-\s*(.*?)\s*-#\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One template: ``tokens`` must all be in the vocabulary, one of ``ends`` must end an answer.

    No tokens: plain text, which no vocabulary shows; such a template is taken by name only. No ends: its chat models
    end as the base models do. ``architectures`` (empty: any) are the names of GGUF and of transformers.
    """

    name: str
    tokens: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()
    architectures: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The template, read once."""
        return _text(self.name)

    @property
    def about(self) -> str:
        """Which models it is for: what its first comment says before it names tokens."""
        return self._header.partition(" Tokens: ")[0].partition(" Text: ")[0]

    @property
    def speaks(self) -> tuple[str, ...]:
        """What it renders, in the words of its first comment: system, turns, tools, …"""
        return tuple(word.strip() for word in self._header.partition(" Speaks: ")[2].rstrip(".").split(",") if word)

    @property
    def _header(self) -> str:
        found = _HEADER.match(self.text)
        return " ".join(found[1].split()) if found else ""

    def fits(self, architecture: str, tokens: frozenset[str], ends: frozenset[str]) -> bool:
        """Whether a model with these is one of its."""
        if not self.tokens or not self.tokens <= tokens:
            return False
        if self.ends and not self.ends & ends:
            return False
        return not self.architectures or architecture in self.architectures


def _entry(name: str, tokens: str = "", ends: str = "", architectures: str = "") -> Entry:
    return Entry(name, frozenset(tokens.split()), frozenset(ends.split()), frozenset(architectures.split()))


_IM = "<|im_start|> <|im_end|>"
_LLAMA = "<|start_header_id|> <|end_header_id|> <|eot_id|>"
_MISTRAL = "[INST] [/INST] [AVAILABLE_TOOLS]"
_PHI = "<|system|> <|user|> <|assistant|> <|end|>"
_DEEPSEEK = "<｜User｜> <｜Assistant｜>"

# The first that fits is taken: those that ask for more stand first.
ENTRIES: tuple[Entry, ...] = (
    _entry("gpt-oss", "<|start|> <|message|> <|channel|> <|call|> <|return|>", "<|return|>"),
    _entry("phi4", f"{_IM} <|im_sep|>", "<|im_end|>"),
    _entry("qwen3", f"{_IM} <tool_call> <think>", "<|im_end|>", "qwen3 qwen3moe qwen3_moe qwen3next qwen3_next"),
    _entry("deepseek-r1", f"{_DEEPSEEK} <think>"),
    _entry("deepseek", _DEEPSEEK),
    _entry("qwen2.5", f"{_IM} <tool_call>", "<|im_end|>", "qwen2 qwen2moe qwen2_moe"),
    _entry("llama3.1", f"{_LLAMA} <|eom_id|> <|python_tag|>", "<|eot_id|> <|eom_id|>"),
    _entry("llama3", _LLAMA, "<|eot_id|>"),
    _entry("gemma", "<start_of_turn> <end_of_turn>", "<end_of_turn>"),
    _entry("mistral-v7", f"{_MISTRAL} [SYSTEM_PROMPT] [TOOL_CONTENT]"),
    _entry("mistral-v3", _MISTRAL),
    _entry("command-r", "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    _entry("granite", "<|start_of_role|> <|end_of_role|> <|tool_call|>"),
    _entry("phi4-mini", f"{_PHI} <|tool|> <|/tool|>"),
    _entry("phi3", _PHI),
    _entry("chatml", _IM, "<|im_end|>"),
    _entry("alpaca"),
    _entry("llama2"),
    _entry("mistral-v1"),
    _entry("vicuna"),
    _entry("zephyr"),
)
TOKENS: frozenset[str] = frozenset().union(*(entry.tokens | entry.ends for entry in ENTRIES))
"""The tokens that tell one family from another; inspection looks for these in a vocabulary."""


def choose(facts: ModelFacts) -> Entry | None:
    """The entry for a model whose files have no template; None for a base model, and for one that has its own."""
    tokens, ends = frozenset(facts.chat_tokens), frozenset(facts.end_tokens)
    if not tokens:
        return None
    return next((entry for entry in ENTRIES if entry.fits(facts.architecture, tokens, ends)), None)


def named(name: str) -> Entry | None:
    """The entry of that name."""
    return next((entry for entry in ENTRIES if entry.name == name), None)


@lru_cache(maxsize=len(ENTRIES))
def _text(name: str) -> str:
    try:
        found = resources.files("homelab_llm.store.templates").joinpath("catalogue", f"{name}.jinja")
        return found.read_text("utf-8")
    except OSError as error:
        raise SourceNotFound(f"the template {name} is missing from this installation") from error
