"""Xet: the hub's storage of deduplicated chunks. Its own library reassembles a file; here that is one more way to
open a part of it, so what arrives is hashed, recorded and continued like any other bytes.

The library is optional (extra ``hub``). It gets a short-lived read token of one repository and never the user's own.
Whatever fails here, the same file comes over plain HTTPS.
Source: hf-xet 1.8; huggingface_hub 2.4 (``utils/_xet.py``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from homelab_llm.core.errors import HomelabError, SourceUnavailable
from homelab_llm.core.urls import Origin, origin_of

log = logging.getLogger(__name__)

LEAST_BYTES = 64 << 20
"""Smaller files are there before the library has found their chunks."""

_OFF = {"1", "true", "yes", "on"}


class Asking(Protocol):
    """What is needed of the hub's own client."""

    def read_token(self, repo: str, commit: str) -> Any:
        """The hub's answer to a wish for a read token."""
        ...

    def admits(self, origin: Origin) -> bool:
        """Whether the policy lets this process speak to that machine."""
        ...


@dataclass(frozen=True, slots=True)
class XetFile:
    """Where a file lies in that storage."""

    repo: str
    commit: str
    hash: str
    size_bytes: int


@dataclass(slots=True)
class XetStreams:
    """Opens files of one pull; streams may be read by several threads.

    Args:
        schemes: of the storage's address; ``https`` unless a test has a storage of its own.
    """

    hub: Asking
    schemes: tuple[str, ...] = ("https",)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _groups: dict[tuple[str, str], Any] = field(default_factory=dict, init=False, repr=False)

    def chunks(self, file: XetFile, start: int, stop: int | None) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``stop``.

        Raises:
            SourceUnavailable: the storage, its address or its token is of no use; use plain HTTPS then.
        """
        import hf_xet

        group = self._group(file)
        with _as_unavailable():
            stream = group.download_stream(
                hf_xet.XetFileInfo(file.hash, file.size_bytes), start=start or None, end=stop
            )
        try:
            with _as_unavailable():
                yield from stream
        finally:
            stream.cancel()

    def forget(self, file: XetFile) -> None:
        """The token of this repository may have run out: ask for another one next time."""
        with self._lock:
            self._groups.pop((file.repo, file.commit), None)

    def _group(self, file: XetFile) -> Any:
        import hf_xet

        key = (file.repo, file.commit)
        with self._lock:
            if key not in self._groups:
                address, token, expires_unix_s = self._connection(self.hub.read_token(*key))
                with _as_unavailable():
                    self._groups[key] = hf_xet.XetSession().new_download_stream_group(
                        endpoint=address, token=token, token_expiry_unix_secs=expires_unix_s
                    )
            return self._groups[key]

    def _connection(self, told: Any) -> tuple[str, str, int]:
        if not isinstance(told, Mapping):
            raise SourceUnavailable("the hub gives no token for its Xet storage")
        address, token, expires = told.get("casUrl"), told.get("accessToken"), told.get("exp")
        if not isinstance(address, str) or not isinstance(token, str) or type(expires) is not int:
            raise SourceUnavailable("the hub gives no token for its Xet storage")
        scheme = address.partition("://")[0]
        if scheme not in self.schemes or (scheme == "https" and not self.hub.admits(origin_of(address))):
            raise SourceUnavailable("the hub's Xet storage is at an address that is not asked")
        return address, token, expires


def xet_available(environ: Mapping[str, str]) -> bool:
    """Whether the library is installed and not switched off, as the hub's own tools understand it."""
    import importlib.util

    if environ.get("HF_HUB_DISABLE_XET", "").lower() in _OFF:
        return False
    return importlib.util.find_spec("hf_xet") is not None


@contextlib.contextmanager
def _as_unavailable() -> Iterator[None]:
    """The library raises errors of many kinds, without a common base of its own."""
    try:
        yield
    except (HomelabError, GeneratorExit):
        raise
    except Exception as error:
        raise SourceUnavailable(
            f"the hub's Xet storage failed: {type(error).__name__}: {str(error)[:120]}",
            hint="the same command goes on over plain HTTPS",
        ) from error
