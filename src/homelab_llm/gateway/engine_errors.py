"""Engine errors: what a worker's own error body means in our tree. Pure.

Shapes: llama.cpp ``{"error": {"code": 400, "message": …, "type": "exceed_context_size_error",
"n_prompt_tokens": …, "n_ctx": …}}``; its embedding errors carry the counts in the text; our own workers write
``HomelabError.as_dict()`` under ``error``.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from homelab_llm.core import errors
from homelab_llm.core.errors import HomelabError

_TOO_LONG = re.compile(r"too large to process|too many tokens|exceeds? the (?:available |maximum )?context", re.I)
_COUNT = re.compile(r"\d+")
_PATH = re.compile(r"(?:/[\w.@+-]+){2,}/?")
_MAX_TEXT = 400


def error_of(status: int, content: bytes, context_tokens: int) -> HomelabError:
    """The error a worker answered with instead of a reply; ``context_tokens`` is that of one request."""
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError:
        told = None
    found = told.get("error") if isinstance(told, dict) else None
    if isinstance(found, str):
        found = {"message": found}
    if not isinstance(found, dict):
        return errors.EngineReplyInvalid(f"the engine answered with status {status} and no reason", status=status)
    return error_from(found, context_tokens, status)


def error_from(found: dict[str, Any], context_tokens: int, status: int = 0) -> HomelabError:
    """The same for an error object, as it also comes in mid-stream."""
    if isinstance(found.get("facts"), dict) and (own := _own(found)):
        return own
    text = _text(found.get("message"))
    code = status if status >= 400 else found.get("code")
    if found.get("type") == "exceed_context_size_error" or _TOO_LONG.search(text):
        return _overflow(found, text, context_tokens)
    if code == 501 or found.get("type") == "not_supported_error":
        return errors.UnsupportedRequest(text)
    if code in (400, 404, 413, 422):
        return errors.InvalidInput(text)
    return errors.EngineError(text, status=code if isinstance(code, int) else None)


def overflow(prompt_tokens: int, context_tokens: int) -> errors.ContextOverflow:
    """The error of a prompt that does not fit; the wording is what client libraries look for."""
    return errors.ContextOverflow(
        f"the prompt has {prompt_tokens} tokens; this model's maximum context length is {context_tokens} tokens",
        hint="shorten the prompt, or raise engine.context_tokens",
        prompt_tokens=prompt_tokens,
        context_tokens=context_tokens,
    )


def _overflow(found: dict[str, Any], text: str, context_tokens: int) -> errors.ContextOverflow:
    counts = [int(count) for count in _COUNT.findall(text)]
    prompt = found.get("n_prompt_tokens") or max(counts, default=0)
    limit = found.get("n_ctx") or (min(counts) if len(counts) > 1 else context_tokens)
    return overflow(int(prompt), int(limit))


def _own(found: dict[str, Any]) -> HomelabError | None:
    by_code = {cls.code: cls for cls in errors.error_classes()}
    cls = by_code.get(str(found.get("code")))
    if cls is None:
        return None
    error = cls(_text(found.get("message")), hint=str(found.get("hint") or ""))
    error.facts.update(found["facts"])
    return error


def _text(message: object) -> str:
    """The engine's words, bounded, without the paths of this machine."""
    text = _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], str(message or "the engine failed"))
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
