"""An answer while it grows: tokens in, pieces of text out that can be sent. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from homelab_llm.inference.workers.mlx.detokenizer import Detokenizer
from homelab_llm.inference.workers.mlx.events import Token
from homelab_llm.inference.workers.mlx.stops import StopScanner


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain, and the log probabilities of the tokens that begin in it (when asked for)."""

    text: str
    logprobs: tuple[dict[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.logprobs)


class Answer:
    """One answer.

    Args:
        decode: ids to text, without special tokens.
        stops: the texts it ends before.
        describe: a token with its log probability as JSON; None when nobody asked.

    ``finish`` is empty until the answer is over; then ``feed`` must not be called any more.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        describe: Callable[[int, float], dict[str, Any]] | None = None,
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopScanner(stops)
        self._describe = describe
        self._entries: list[tuple[int, dict[str, Any]]] = []  # where its text begins, the token
        self._made = 0  # characters that were decoded
        self._shown = 0  # characters that were given out
        self.tokens = 0
        self.finish = ""

    def over(self) -> bool:
        """Whether the last piece was given out."""
        return bool(self.finish)

    def feed(self, token: Token) -> Piece:
        """What ``token`` adds."""
        self.tokens += 1
        if token.finish == "stop":
            return self._end("stop", "")
        if self._describe is not None:
            self._entries.append((self._made, self._entry(token)))
        new = self._detokenizer.feed(token.id)
        if token.finish == "length":
            return self._end("length", new)
        self._made += len(new)
        text = self._stops.feed(new)
        if self._stops.matched:
            self.finish = "stop"
        return self._piece(text)

    def _end(self, reason: str, new: str) -> Piece:
        """The last piece: whatever waited in the two buffers."""
        text = self._stops.feed(new + self._detokenizer.flush())
        self.finish = "stop" if self._stops.matched else reason
        return self._piece(text + self._stops.flush(), rest=not self._stops.matched)

    def _piece(self, text: str, *, rest: bool = False) -> Piece:
        self._shown += len(text)
        ready = [entry for start, entry in self._entries if rest or start < self._shown]
        del self._entries[: len(ready)]
        return Piece(text, tuple(ready))

    def _entry(self, token: Token) -> dict[str, Any]:
        describe = self._describe
        if describe is None or token.logprob is None:
            return {}
        likeliest = [describe(other, logprob) for other, logprob in token.likeliest]
        return {**describe(token.id, token.logprob), "top_logprobs": likeliest}
