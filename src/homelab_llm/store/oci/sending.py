"""Sending: one blob into one repository, hashed on the way, in chunks that can be continued.

The registry is told the digest last, and only when the bytes that were read here had it: a damaged blob is never put.
After each chunk it is written down where the upload goes on.
"""

from __future__ import annotations

import errno
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    Cancelled,
    HomelabError,
    ModelDamaged,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
)
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.oci import uploads
from homelab_llm.store.oci.client import RegistryClient
from homelab_llm.store.upload_records import UploadRecord, UploadState

CHUNK_BYTES = 8 << 20
"""What at most is sent again after an accident; the reference registry keeps an upload only between chunks."""

_SMALLEST_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 18
_FRUITLESS_ATTEMPTS = 5
_LONGEST_PAUSE_S = 20.0
_NO_CHUNKS = frozenset({405, 411, 415, 501})


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of the store; ``names`` are the files of the model that it is."""

    digest: Digest
    size_bytes: int
    path: Path
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Watch:
    """Who watches a transfer: ``sent`` gets the bytes of the blob that are there, and bytes sent by now.

    ``stopping`` is asked between chunks and while small blobs are sent.
    """

    sent: Callable[[int, int], None] = lambda _done, _sent: None
    waiting: Callable[[], None] = lambda: None
    retrying: Callable[[], None] = lambda: None
    stopping: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class Sender:
    """Sends one blob; use it once."""

    client: RegistryClient
    repository: str
    blob: Blob
    watch: Watch = field(default_factory=Watch)
    chunk_bytes: int = CHUNK_BYTES
    _sent_bytes: int = 0
    _hashed: _Hashed = field(init=False)

    def __post_init__(self) -> None:
        self._hashed = _Hashed()

    @property
    def sent_bytes(self) -> int:
        """Bytes of content that went out, those sent twice counted twice."""
        return self._sent_bytes

    def send_at_once(self) -> None:
        """Send a small blob in one request.

        Raises:
            ModelDamaged: the bytes here are not those of the digest; the registry did not get the blob.
            Cancelled, SourceUnavailable, SourceDenied.
        """
        with self.blob.path.open("rb") as file:
            self._persist(lambda: self._send_whole(file))

    def send_in_chunks(self, record: UploadRecord) -> None:
        """Send a blob, going on where the record says; hold the record.

        Raises:
            Cancelled: ``watch.stopping``, after the chunk that was under way; the upload can be continued.
            ModelDamaged, SourceUnavailable, SourceDenied.
        """
        with self.blob.path.open("rb") as file:
            self._persist(lambda: self._go_on(file, record))

    def _persist(self, attempt: Callable[[], None]) -> None:
        """Try again after cuts, as long as bytes get through."""
        fruitless = 0
        while True:
            before = self._hashed.offset
            try:
                return attempt()
            except SourceNotFound as gone:  # the registry gave the upload up
                error: HomelabError = gone
            except SourceUnavailable as cut:
                error = cut
            fruitless = 0 if self._hashed.offset > before else fruitless + 1
            if fruitless >= _FRUITLESS_ATTEMPTS:
                raise error
            if self.watch.stopping():
                raise Cancelled("the upload was called off") from error
            self.watch.retrying()
            self._pause(fruitless, error)

    def _pause(self, fruitless: int, error: HomelabError) -> None:
        asked = error.facts.get("retry_after_s")
        doubled: float = self.client.http.limits.backoff_s * 2**fruitless
        pause_s = float(asked) if isinstance(asked, int | float) else doubled * random.uniform(0.5, 1.5)  # noqa: S311
        if pause_s > 60.0:
            raise error
        self.client.http.sleep(min(_LONGEST_PAUSE_S, pause_s))

    # --- in one request -----------------------------------------------------------------------------------

    def _send_whole(self, file: BinaryIO) -> None:
        upload = uploads.start(self.client, self.repository)
        size = self.blob.size_bytes
        uploads.send_whole(self.client, upload, self.blob.digest, lambda: self._whole(file), size)
        self.watch.sent(size, self._sent_bytes)

    def _whole(self, file: BinaryIO) -> Iterator[bytes]:
        """All bytes; the last of them only when all have the digest."""
        hashed, done = hashlib.sha256(), 0
        for block in self._blocks(file, 0, self.blob.size_bytes):
            hashed.update(block)
            done += len(block)
            if done == self.blob.size_bytes:
                self._check(hashed.hexdigest())
            if self.watch.stopping():
                raise Cancelled("the upload was called off")
            yield block
            self._sent_bytes += len(block)
            self.watch.sent(done, self._sent_bytes)

    # --- in chunks ----------------------------------------------------------------------------------------

    def _go_on(self, file: BinaryIO, record: UploadRecord) -> None:
        upload = self._continued(record)
        if upload is None:
            upload = uploads.start(self.client, self.repository)
            failpoint("push.upload.started")
            _note(record, upload)
            failpoint("push.upload.recorded")
        self._hash_up_to(file, upload.offset)
        self.watch.sent(upload.offset, self._sent_bytes)
        while upload.offset < self.blob.size_bytes:
            try:
                upload = self._send_chunk(file, upload)
            except SourceDenied as refused:
                if self._smaller_chunks(refused):
                    continue
                if upload.offset or refused.facts.get("status") not in _NO_CHUNKS:
                    raise
                record.forget()
                return self._send_whole(file)
            except SourceNotFound:
                record.forget()
                raise
            failpoint("push.chunk.sent")
            _note(record, upload)
            failpoint("push.chunk.recorded")
            if self.watch.stopping():
                raise Cancelled("the upload was called off")
        self._finish(upload, record)
        return None

    def _continued(self, record: UploadRecord) -> uploads.Upload | None:
        """The upload of the record as the registry has it now; None when there is nothing to go on with."""
        state = record.read()
        if state is None:
            return None
        known = uploads.Upload(self.repository, self.client.own_url(state.location), state.offset)
        found = uploads.status(self.client, known)
        if found is None or found.offset > self.blob.size_bytes:
            record.forget()
            return None
        return found

    def _send_chunk(self, file: BinaryIO, upload: uploads.Upload) -> uploads.Upload:
        size = min(max(self.chunk_bytes, upload.min_chunk_bytes), self.blob.size_bytes - upload.offset)
        hashed = self._hashed

        def content() -> Iterator[bytes]:
            nonlocal hashed
            hashed = self._hashed.copy()
            for block in self._blocks(file, upload.offset, size):
                hashed.update(block)
                yield block
                self._sent_bytes += len(block)
                self.watch.sent(hashed.offset, self._sent_bytes)

        following = uploads.send_chunk(self.client, upload, content, size)
        self._hashed = hashed
        return replace(following, min_chunk_bytes=following.min_chunk_bytes or upload.min_chunk_bytes)

    def _smaller_chunks(self, refused: SourceDenied) -> bool:
        """Whether chunks were too large and can be smaller."""
        if refused.facts.get("status") != 413 or self.chunk_bytes <= _SMALLEST_CHUNK_BYTES:
            return False
        self.chunk_bytes = max(_SMALLEST_CHUNK_BYTES, self.chunk_bytes // 4)
        return True

    def _finish(self, upload: uploads.Upload, record: UploadRecord) -> None:
        try:
            self._check(self._hashed.hexdigest())
        except ModelDamaged:
            uploads.cancel(self.client, upload)
            record.forget()
            raise
        try:
            uploads.finish(self.client, upload, self.blob.digest)
        except (SourceDenied, SourceNotFound):
            record.forget()  # what the registry has is not this blob, whatever it says
            raise
        failpoint("push.upload.finished")
        record.forget()

    def _hash_up_to(self, file: BinaryIO, offset: int) -> None:
        """Have hashed exactly the first ``offset`` bytes."""
        if self._hashed.offset > offset:
            self._hashed = _Hashed()
        for block in self._blocks(file, self._hashed.offset, offset - self._hashed.offset):
            self._hashed.update(block)

    # --- reading ------------------------------------------------------------------------------------------

    def _blocks(self, file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
        file.seek(start)
        while size:
            block = file.read(min(_BLOCK_BYTES, size))
            if not block:
                raise self._damaged()
            size -= len(block)
            yield block

    def _check(self, found: str) -> None:
        if found != self.blob.digest.hex:
            raise self._damaged()

    def _damaged(self) -> ModelDamaged:
        names = ", ".join(self.blob.names) or self.blob.digest.short
        return ModelDamaged(
            f"{names[:200]} is not what its digest says; it was not pushed", files=list(self.blob.names)
        )


def _note(record: UploadRecord, upload: uploads.Upload) -> None:
    """Write down where the upload goes on; on a full disk it goes on all the same, and cannot be continued."""
    try:
        record.write(UploadState(upload.location, upload.offset))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


class _Hashed:
    """A SHA-256 that knows how many bytes it has seen."""

    def __init__(self) -> None:
        self._hash, self.offset = hashlib.sha256(), 0

    def update(self, block: bytes) -> None:
        self._hash.update(block)
        self.offset += len(block)

    def copy(self) -> _Hashed:
        other = _Hashed()
        other._hash, other.offset = self._hash.copy(), self.offset
        return other

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
