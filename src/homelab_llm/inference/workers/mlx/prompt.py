"""Prompts: what a request says as token ids, and ids as text; the tokenizer and the template of one model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.chat_template import ChatTemplate
from homelab_llm.core.errors import BadModelFile, ContextOverflow, InvalidInput, UnsupportedRequest
from homelab_llm.inference.workers.mlx.request import Ask
from homelab_llm.inference.workers.mlx.template import read_object, read_template

_RESERVED = frozenset({"messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"})


class Prompter:
    """The tokenizer and chat template of a folder; safe on any thread.

    Args:
        template: a file with a template in place of the folder's own.

    Raises:
        BadModelFile: the folder has no tokenizer.json, or it cannot be used.
        InvalidTemplate: the template cannot.
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadModelFile("the model has no tokenizer.json", hint="use a copy of the model that has one")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise BadModelFile(f"tokenizer.json cannot be used: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = read_object(folder / "tokenizer_config.json")
        self._special = {name: _token_text(settings.get(name)) for name in ("bos_token", "eos_token")}
        try:
            source = read_template(folder) if template is None else template.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise BadModelFile("the chat template cannot be read") from error
        self._template = ChatTemplate(source) if source else None

    def encode(self, ask: Ask, *, context_tokens: int) -> list[int]:
        """The prompt's token ids, at least one and fewer than ``context_tokens``.

        Raises:
            ContextOverflow: longer than that; with both counts.
            InvalidInput, UnsupportedRequest: nothing to encode, or no (fitting) chat template.
        """
        if ask.kind == "chat":
            ids = self._encode(self._render(ask), special=False)
        else:
            ids = list(ask.ids) or self._encode(ask.text, special=True)
        if not ids:
            raise InvalidInput("the prompt is empty", field="prompt" if ask.kind == "completion" else "messages")
        if len(ids) >= context_tokens:
            raise ContextOverflow(
                f"the request is {len(ids)} tokens long; the context holds {context_tokens}, answer included",
                hint="shorten the prompt, or load the model with a larger context",
                prompt_tokens=len(ids),
                context_tokens=context_tokens,
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens give none."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def describe(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as OpenAI's logprobs show it; bytes are given where they are known."""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return {"id": token, "token": text, "bytes": list(text.encode()), "logprob": max(logprob, -9999.0)}

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def _render(self, ask: Ask) -> str:
        if self._template is None:
            raise UnsupportedRequest("this model has no chat template", hint="use /v1/completions", field="messages")
        values = dict(ask.template_values)
        if taken := sorted(_RESERVED & values.keys()):
            raise InvalidInput(f"'chat_template_kwargs' must not set {taken[0]!r}", field="chat_template_kwargs")
        return self._template.render(ask.messages, {**values, **self._special})


def _token_text(value: Any) -> str:
    """A special token in tokenizer_config.json is a string or an object with ``content``."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""
