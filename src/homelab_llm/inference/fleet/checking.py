"""Checking: a model whose files are not known to be good is hashed before a worker is started for it.

In a thread, for hashing lets go of the interpreter; once for all requests that wait. Nothing is evicted for a model
that turns out to be damaged, and it is refused without counting as a failure: once repaired it loads at once.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator

from homelab_llm.core.errors import Cancelled, HomelabError, WorkerOutOfMemory
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.waits import Wait
from homelab_llm.inference.fleet.seams import Trust

_BUS_ERROR = int(signal.SIGBUS)
_FROM_OUTSIDE = frozenset({int(signal.SIGKILL), int(signal.SIGTERM), int(signal.SIGINT)})
_READ_ERROR = "input/output error"


class _Check:
    """One model being hashed. ``done`` is written by the thread; the rest belongs to the event loop."""

    def __init__(self) -> None:
        self.done = 0.0
        self.waiters = 0
        self.changed = asyncio.Event()
        self.stopping = threading.Event()
        self.ended_by: HomelabError | None = None
        self.task: asyncio.Task[None] | None = None


class Checking:
    """The checks of one fleet; all methods run in its event loop.

    Args:
        trust: what knows and hashes; None trusts every model.
    """

    def __init__(self, trust: Trust | None) -> None:
        self._trust = trust
        self._checks: dict[str, _Check] = {}
        self._standing: dict[str, Wait] = {}
        self._doubted: set[str] = set()
        self._doubting: dict[str, asyncio.Task[None]] = {}

    def needed(self, model: StoredModel) -> bool:
        """Whether the model has to be hashed first; a few looks at its files.

        Raises:
            ModelDamaged: that is not necessary, it is known to be damaged.
        """
        if self._trust is None:
            return False
        return str(model.digest) in self._doubting or not self._trust.known(model)

    def standing(self, request_id: str) -> Wait | None:
        """Where a request stands whose model is hashed."""
        return self._standing.get(request_id)

    async def until_known(self, model: StoredModel, request_id: str) -> AsyncIterator[Wait]:
        """Wait until the model is known to be good, and tell how far it is. Leaving early ends the hashing.

        Raises:
            ModelDamaged: it is not. Cancelled: the operator unloaded it meanwhile.
        """
        check = self._checks.get(model.digest.hex) or self._begin(model)
        assert check.task is not None  # noqa: S101 — ``_begin`` made it
        check.waiters += 1
        try:
            while not check.task.done():
                wait = self._standing[request_id] = Wait("verify", check.done)
                yield wait
                check.changed.clear()
                changed = asyncio.create_task(check.changed.wait())
                await asyncio.wait({check.task, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await check.task
            if check.ended_by is not None:
                raise check.ended_by
        finally:
            self._standing.pop(request_id, None)
            check.waiters -= 1
            if not check.waiters:
                self._end(model.digest.hex, check)

    def call_off(self, digest: str) -> bool:
        """The operator wants the model gone: who waits for its check is refused; False when it was not checked."""
        hex_ = digest.removeprefix("sha256:")
        check = self._checks.get(hex_)
        if check is None:
            return False
        check.ended_by = Cancelled("the model was unloaded before it was loaded")
        self._end(hex_, check)
        return True

    def close(self) -> None:
        """End all hashing; who waits goes on, and is refused by the fleet."""
        for hex_, check in list(self._checks.items()):
            self._end(hex_, check)

    def failed(self, digest: str, error: HomelabError | None, *, loading: bool) -> None:
        """A worker ended by itself: its model's files may be the reason, then they are hashed before the next load.

        A load that fails again after that was not the fault of the files, so they are not hashed for ever.
        """
        if self._trust is None or error is None or not _blames_files(error, loading=loading):
            return
        unreadable = error.facts.get("signal") == _BUS_ERROR or _READ_ERROR in error.message.lower()
        if unreadable or digest not in self._doubted:
            self._doubted.add(digest)
            self._doubting[digest] = task = asyncio.create_task(asyncio.to_thread(self._trust.doubt, digest))
            task.add_done_callback(lambda _: self._doubting.pop(digest, None))
            task.add_done_callback(_take_result)

    @property
    def doubting(self) -> bool:
        """Whether a doubt is being written down; a check waits for it."""
        return bool(self._doubting)

    def loaded(self, digest: str) -> None:
        """A worker of the model answers: what was doubted is no more."""
        self._doubted.discard(digest)

    def _begin(self, model: StoredModel) -> _Check:
        check, loop = _Check(), asyncio.get_running_loop()

        def told(done: float) -> None:
            if check.stopping.is_set():
                raise Cancelled("nobody waits for it any more")
            check.done = done
            loop.call_soon_threadsafe(check.changed.set)

        async def run() -> None:
            assert self._trust is not None  # noqa: S101 — ``needed`` said so
            if doubting := self._doubting.get(str(model.digest)):
                await asyncio.wait({doubting})
            try:
                await asyncio.to_thread(self._trust.check, model, told)
            except Cancelled:
                if not check.stopping.is_set():
                    raise
            finally:
                self._end(model.digest.hex, check)

        check.task = asyncio.create_task(run(), name=f"check {model.name}")
        check.task.add_done_callback(_take_result)
        self._checks[model.digest.hex] = check
        return check

    def _end(self, hex_: str, check: _Check) -> None:
        check.stopping.set()
        if self._checks.get(hex_) is check:
            del self._checks[hex_]


def _take_result(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()


def _blames_files(error: HomelabError, *, loading: bool) -> bool:
    """Whether damaged files may have ended a worker: while loading any end by itself, later only a failed read."""
    ended_by = error.facts.get("signal")
    if ended_by == _BUS_ERROR or _READ_ERROR in error.message.lower():
        return True
    if not loading or isinstance(error, WorkerOutOfMemory) or ended_by in _FROM_OUTSIDE:
        return False
    return ended_by is not None or error.facts.get("exit_code") is not None
