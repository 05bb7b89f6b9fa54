"""Text from token ids, one by one: each call returns the text that became certain, never half a character.

Works with every tokenizer because it only decodes: the new text is what the last few ids give beyond what they
gave without the newest. Nothing is built per request (a table over the vocabulary would cost 50 ms each time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Four bytes make the longest character; a model that sends more broken bytes than that gets them replaced.
_LONGEST_WAIT = 8
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one reply. ``decode`` turns ids into text and leaves special tokens out."""

    __slots__ = ("_decode", "_ids", "_sent", "_told")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []  # the last certain ids, for context, and those that wait
        self._sent = 0  # how many of them are certain
        self._told = ""  # the text of the certain ones

    def feed(self, token: int) -> str:
        """The text that ``token`` makes certain; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._sent < _LONGEST_WAIT:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What still waits, with broken characters replaced; the end of the reply."""
        return self._advance(self._decode(self._ids)) if len(self._ids) > self._sent else ""

    def _advance(self, text: str) -> str:
        new = text[len(self._told) :]
        if not new:  # a special token: nothing to show, and no context for what follows
            del self._ids[self._sent :]
            return ""
        del self._ids[: self._sent]
        self._told = self._decode(self._ids)
        self._sent = len(self._ids)
        return new
