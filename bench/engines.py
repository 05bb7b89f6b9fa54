"""Real models through the whole stack against their worker direct, in pairs, one after the other."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.clients import Address, connect, exchange, post
from bench.figures import Figure, spread
from bench.rig import load, temporary_home
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.testing.daemon import Daemon

PAIRS = 21
TOKENS = 256
SMOLLM2 = "smollm2:135m"
MINILM = "all-minilm:l6-v2"


def measure() -> Iterator[Figure]:
    """SmolLM2's tokens and MiniLM's chunks per second, through and direct."""
    with temporary_home() as home:
        for name in (SMOLLM2, MINILM):
            pull(ModelStore(home.store), name, name=None, settings=PullSettings())
        with Daemon(home) as daemon:
            door = ("127.0.0.1", daemon.port)
            yield from _compare("smollm2.tokens_per_s", "tok/s", (load(daemon, SMOLLM2), door), _tokens_per_s, 0.98)
            daemon.call("POST", "/admin/models/unload", {"model": SMOLLM2})
            yield from _compare("minilm.chunks_per_s", "chunk/s", (load(daemon, MINILM), door), _chunks_per_s, 0.95)


def _compare(
    name: str, unit: str, addresses: tuple[Path, Address], rate: Callable[[Address, int], float], goal: float
) -> Iterator[Figure]:
    worker, door = addresses
    rate(worker, 0), rate(door, 0)
    pairs = [_pair(rate, worker, door, number) for number in range(1, PAIRS + 1)]
    ratios = [through / direct for direct, through in pairs]
    direct = statistics.median(d for d, _ in pairs)
    through = statistics.median(t for _, t in pairs)
    against = f"direct {direct:.1f} {unit}"
    yield Figure(f"{name}.ratio", statistics.median(ratios), "ratio", f">= {goal}", against, spread(ratios, 3))
    yield Figure(name, through, unit, "", against, spread([t for _, t in pairs], 1))


def _pair(rate: Callable[[Address, int], float], worker: Address, door: Address, number: int) -> tuple[float, float]:
    """Direct and through, each going first every other time, so that drift of the machine falls on both."""
    if number % 2:
        direct = rate(worker, number)
        return direct, rate(door, number + PAIRS)
    through = rate(door, number + PAIRS)
    return rate(worker, number), through


def _exchange(address: Address, path: str, body: dict[str, Any]) -> tuple[bytes, float]:
    started = time.perf_counter()
    connection = connect(address)
    reply = exchange(connection, post(path, body, close=True))
    connection.close()
    if reply.status != 200:
        raise RuntimeError(f"{path}: {reply.status} {reply.body[:300]!r}")
    return reply.body, time.perf_counter() - started


def _tokens_per_s(address: Address, number: int) -> float:
    """A whole stream, counted by its usage; every prompt is new, so that no run finds another's in the cache."""
    body: dict[str, Any] = {"model": SMOLLM2, "prompt": f"{number} dragons lived in a cave.", "max_tokens": TOKENS}
    body |= {"temperature": 0, "logit_bias": {"0": -100, "2": -100}}  # never the tokens that end a text
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    content, took = _exchange(address, "/v1/completions", body)
    last = next(line for line in reversed(content.splitlines()) if line.startswith(b"data: {"))
    usage = json.loads(last[6:])["usage"]
    tokens = int(usage["completion_tokens"])
    if tokens != TOKENS:
        raise RuntimeError(f"only {tokens} tokens came")
    return tokens / took


def _chunks_per_s(address: Address, number: int) -> float:
    """32 chunks of about 126 tokens in one request."""
    chunk = " ".join(f"word{(i + number) % 40}" for i in range(40))
    content, took = _exchange(address, "/v1/embeddings", {"model": MINILM, "input": [chunk] * 32})
    if len(json.loads(content)["data"]) != 32:
        raise RuntimeError("an embedding is missing")
    return 32 / took
