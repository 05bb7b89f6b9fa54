"""Task: one file that is being fetched. Its spans, what is known of the server, and when to try again."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import SourceUnavailable
from homelab_llm.core.http import MAX_RETRY_AFTER_S
from homelab_llm.store.sources.base import Opened, RemoteFile
from homelab_llm.store.transfer.spans import Span, Spans
from homelab_llm.store.writer import BlobWriter

_FRUITLESS_ATTEMPTS = 5  # in a row that brought no byte
_LONGEST_PAUSE_S = 20.0
_BUSY = frozenset({429, 503})


@dataclass(slots=True, eq=False)
class Task:
    """One file. All methods are called under the lock of the download that owns it.

    ``in_parts``: whether several connections may fetch parts of it; None until the first reply tells. ``validator`` is
    that of the bytes which are here. ``width`` is how many connections its server bears: halved when it is too busy,
    one more for each reply. ``news`` wakes who hashes.
    """

    file: RemoteFile
    key: str
    parallel: bool
    writer: BlobWriter | None = None
    spans: Spans = field(default_factory=lambda: Spans([]))
    size_bytes: int | None = None
    in_parts: bool | None = None
    validator: str = ""
    digest: Digest | None = None
    width: int = 1 << 30
    fruitless: int = 0
    retry_at_s: float = 0.0
    most_bytes: int = -1
    news: threading.Event = field(default_factory=threading.Event)

    def begin(self, writer: BlobWriter) -> None:
        """The blob is open for writing."""
        self.writer, self.size_bytes = writer, self.file.size_bytes
        self.validator = self.file.validator
        self.in_parts = None if self.parallel and self.size_bytes is not None else False
        self.forget_spans()
        self.news.set()

    @property
    def there_bytes(self) -> int:
        """Bytes of it that are here."""
        if self.digest is not None:
            return self.size_bytes or 0
        return self.writer.part.there_bytes if self.writer is not None else 0

    @property
    def fetched(self) -> bool:
        """Whether every byte is here."""
        return self.size_bytes is not None and self.there_bytes >= self.size_bytes

    def claim(self, now_s: float, *, connections: int, speed: float) -> Span | None:
        """The next span to fetch, if there is one for another connection now."""
        if self.writer is None or self.digest is not None or self.fetched or now_s < self.retry_at_s:
            return None
        part = self.writer.part
        if self.in_parts is False:
            return None if self.spans.active else self.spans.claim_all(part.frontier, now_s)
        if len(self.spans.active) >= (self.width if self.in_parts else 1):
            return None
        hashed = self.writer.hashed_bytes
        return self.spans.claim(now_s, connections=connections, speed=speed, frontier=part.frontier, hashed=hashed)

    def accept(self, span: Span, opened: Opened, now_s: float) -> Span | None:
        """Judge a reply that ``span`` asked for; the span that its bytes go into, None when they are of no use.

        What is here is thrown away when the content changed, or when the server begins at the start whatever it is
        asked for.
        """
        assert self.writer is not None  # noqa: S101 — somebody claimed from it
        changed = not self.promised and bool(self.validator) and opened.validator != self.validator
        if opened.start != span.at or changed:
            self.in_parts = False if opened.start != span.at else self.in_parts
            self.validator = opened.validator
            self.writer.restart(None if self.promised else opened.validator)
            self.forget_spans()
            if opened.start != 0:
                return None
            return None if opened.ranged else self.spans.claim_all(0, now_s)
        self.validator = opened.validator
        self.width += 1
        if self.in_parts is None:
            self.in_parts = opened.ranged and bool(self.promised or opened.validator)
            if not self.in_parts and span.stop != self.size_bytes:
                self.spans.give_back(span)
                return self.spans.claim_all(span.at, now_s)
        return span

    def forget_spans(self) -> None:
        """Begin with what is missing now; who still fetches finds his bytes refused."""
        assert self.writer is not None  # noqa: S101
        self.spans = Spans([] if self.size_bytes is None else self.writer.part.gaps(self.size_bytes))

    def ended(self, span: Span, brought: bool) -> None:
        """A reply ended as it said it would, before its span did. What is still missing is asked for next.

        Raises:
            SourceUnavailable: it is short of what was promised, and brought nothing new: asking on would never end.
        """
        if self.size_bytes is None:
            self.size_bytes = span.at
            return
        there, before = self.there_bytes, self.most_bytes
        if there < self.size_bytes and (not brought or (self.in_parts is False and there <= before)):
            raise SourceUnavailable(
                f"{self.file.path} ends after {there} of the {self.size_bytes} bytes that were promised",
                hint="run the same command again; if it stays, what is said of the model there is wrong",
                received_bytes=there,
            )
        self.most_bytes = max(there, before)

    def cut(self, error: SourceUnavailable, now_s: float, backoff_s: float) -> None:
        """A connection failed. Goes on as long as bytes keep coming, from any of them.

        Raises:
            SourceUnavailable: too often nothing came, and nobody else is at it.
        """
        if now_s >= self.retry_at_s:  # else others failed at the same moment
            if error.facts.get("status") in _BUSY:
                self.width = max(1, min(self.width, len(self.spans.active) + 1) // 2)
            self.fruitless = 0 if self.there_bytes > self.most_bytes else self.fruitless + 1
            self.most_bytes = max(self.most_bytes, self.there_bytes)
            pause_s = backoff_s * 2**self.fruitless * random.uniform(0.5, 1.5)  # noqa: S311
            self.retry_at_s = now_s + min(_LONGEST_PAUSE_S, pause_s)
        asked = error.facts.get("retry_after_s")
        patient = not isinstance(asked, int | float) or asked <= MAX_RETRY_AFTER_S
        if not self.spans.active and (self.fruitless >= _FRUITLESS_ATTEMPTS or not patient):
            raise error

    @property
    def promised(self) -> bool:
        """Whether the end will show that all bytes belong together."""
        return self.file.digest is not None or bool(self.file.git_sha1)
