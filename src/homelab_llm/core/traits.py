"""Worker traits: how a worker's HTTP server behaves, told by the engine, used by whoever speaks to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerTraits:
    """What a client of a worker must know. Every worker serves OpenAI's paths on a Unix socket.

    ``pooled``: connections may be kept and used again (our own workers; llama.cpp's fail every second time).
    ``notices_abort``: it sees a closed connection in prefill and for replies that are not streamed; where
    it does not (llama.cpp), every request is sent as a stream with progress and put together here.
    ``progress``: it sends ``prompt_progress`` events when asked with ``return_progress``.
    ``busy_path``: where the worker tells how many slots are busy (llama.cpp's ``/slots``, our ``/stats``), else empty.
    ``grammar``: it takes a ``grammar`` (GBNF) and enforces it while sampling.
    ``tools``: it finds the calls itself where the model's template knows tools.
    """

    pooled: bool
    notices_abort: bool
    progress: bool
    grammar: bool
    tools: bool
    busy_path: str = ""
