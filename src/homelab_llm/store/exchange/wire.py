"""Wire: what two stores say to each other. Lines of JSON, and after some of them raw bytes of an announced length.

    giver → taker   {"hello": 1, "name", "manifest": base64}
    taker → giver   {"need": digest, "offset", "total_bytes": of all that is missing}
    giver → taker   {"blob": digest, "offset", "size_bytes"} and size_bytes bytes; and again for the next one
    taker → giver   {"done": digest of the model}
    either side     {"error": {…}}, after which it says nothing more

Every length is bounded before it is believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from homelab_llm.core.digests import CHUNK_BYTES
from homelab_llm.core.errors import HomelabError, SourceUnavailable, VersionMismatch, error_of

PROTOCOL = 1
_MAX_LINE_BYTES = 8 << 20  # a manifest of 4 MiB in base64


class Wire:
    """One end. The streams are blocking and stay the caller's to close."""

    def __init__(self, reader: IO[bytes], writer: IO[bytes]) -> None:
        self._reader, self._writer = reader, writer

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one line."""
        try:
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            self._writer.flush()
        except (BrokenPipeError, ValueError) as error:  # ValueError: closed
            raise self._lost() from error

    def hear(self, *keys: str) -> dict[str, Any]:
        """The next line, which must have one of ``keys``.

        Raises:
            HomelabError: what the other side could not do, as it said it.
            SourceUnavailable: it went away, or speaks something else.
        """
        line = self._reader.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise SourceUnavailable(
                "the other store went away", hint="run the same command again; it goes on from what arrived"
            )
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _foreign() from error
        if not isinstance(found, dict):
            raise _foreign()
        if isinstance(found.get("error"), dict):
            raise error_of(found["error"])
        if found.get("hello", PROTOCOL) != PROTOCOL:
            raise VersionMismatch(
                "the other store speaks another version of the exchange", hint="install the same version on both"
            )
        if not any(key in found for key in keys):
            raise _foreign()
        return found

    def pour(self, chunk: bytes | memoryview) -> None:
        """Send raw bytes that were announced.

        Raises:
            HomelabError: the reason the other side gave before it stopped reading.
        """
        try:
            self._writer.write(chunk)
        except BrokenPipeError as error:
            raise self._lost() from error

    def flush(self) -> None:
        """Send what ``pour`` still holds."""
        try:
            self._writer.flush()
        except BrokenPipeError as error:
            raise self._lost() from error

    def catch(self, size_bytes: int) -> Iterator[memoryview]:
        """The raw bytes that were announced, in chunks; each is valid until the next one is asked for."""
        block = bytearray(min(CHUNK_BYTES, max(size_bytes, 1)))
        readinto = getattr(self._reader, "readinto1", None) or self._reader.readinto  # type: ignore[attr-defined]
        while size_bytes:
            count = readinto(memoryview(block)[: min(len(block), size_bytes)])
            if not count:
                raise SourceUnavailable(
                    "the other store went away in the middle of a file",
                    hint="run the same command again; it goes on from what arrived",
                )
            size_bytes -= count
            yield memoryview(block)[:count]

    def refuse(self, error: HomelabError) -> None:
        """Tell the other side why this one stops; one that is gone already needs no telling."""
        try:
            self.tell({"error": error.as_dict()})
        except SourceUnavailable:
            return

    def _lost(self) -> HomelabError:
        """Why nothing can be sent any more: what the other side said last, else that it is gone."""
        try:
            self.hear("error")
        except HomelabError as error:
            return error
        return SourceUnavailable("the other store went away")


def _foreign() -> SourceUnavailable:
    return SourceUnavailable(
        "what answers there is not a store of this product", hint="install the same version on both machines"
    )
