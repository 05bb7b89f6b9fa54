"""The front door against the same worker direct, LiteLLM beside it in the same run."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

from bench.clients import Address, connect, exchange, post
from bench.figures import Figure, percentile, spread
from bench.rig import LITELLM, LITELLM_KEY, MODEL, Rig, awake_cores, chat, fake_rig, fake_upstream, litellm, wrk

ONE_TOKEN = chat("fake: tokens=1", max_tokens=1)
ROUNDS = 5


def measure() -> Iterator[Figure]:
    """Every figure of this file, as it is measured.

    Medians are taken with the cores kept awake, for all sides alike; what they are when the cores sleep between
    requests is reported beside them. Tails are taken with nothing else running.
    """
    with awake_cores():
        rival = _litellm_added_ms()
    with fake_rig("pooled") as rig:
        yield from _overhead(rig, "own", 0.20, rival, fresh_connections=False)
        yield from _throughput(rig)
        yield from _paced(rig)
    with fake_rig("llama") as rig:
        yield from _overhead(rig, "llama.cpp", 0.30, rival, fresh_connections=True)


def _timer(address: Address, request: bytes, *, fresh: bool) -> Callable[[], float]:
    """A function that sends the request once and returns its milliseconds; ``fresh`` connects each time."""
    kept = None if fresh else connect(address)

    def once() -> float:
        started = time.perf_counter()
        connection = kept or connect(address)
        reply = exchange(connection, request)
        took = (time.perf_counter() - started) * 1000
        if kept is None:
            connection.close()
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}: {reply.body[:300]!r}")
        return took

    return once


def _interleaved(
    first: Callable[[], float], second: Callable[[], float], count: int
) -> tuple[list[float], list[float]]:
    for _ in range(100):
        first(), second()
    pairs = [(first(), second()) for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _overhead(rig: Rig, name: str, goal_ms: float, rival: float, *, fresh_connections: bool) -> Iterator[Figure]:
    """Added latency, one request at a time; direct speaks to the worker as the front door must (new connections)."""
    body = {**ONE_TOKEN, "model": MODEL}
    direct = _timer(rig.worker, post("/v1/chat/completions", body, close=fresh_connections), fresh=fresh_connections)
    door = _timer(rig.door, post("/v1/chat/completions", body), fresh=False)
    with awake_cores():
        awake = [_interleaved(direct, door, 1000) for _ in range(ROUNDS)]
    asleep = [_interleaved(direct, door, 1000) for _ in range(ROUNDS)]
    fast, slow = (
        [statistics.median(through) - statistics.median(alone) for alone, through in rounds]
        for rounds in (awake, asleep)
    )
    p99s = [percentile(through, 99) - percentile(alone, 99) for alone, through in asleep]
    against = f"direct p50 {statistics.median(statistics.median(alone) for alone, _ in awake):.3f} ms"
    added = statistics.median(fast)
    yield Figure(f"door.added_p50.{name}", added, "ms", f"<= {goal_ms}", against, spread(fast, 3))
    yield Figure(f"door.share_of_litellm.{name}", added / rival, "ratio", "<= 0.04", f"LiteLLM adds {rival:.2f} ms")
    yield Figure(f"door.added_p50.{name}.sleeping_cores", statistics.median(slow), "ms", "", "", spread(slow, 3))
    yield Figure(f"door.added_p99.{name}", statistics.median(p99s), "ms", "<= 1.0", "", spread(p99s, 3))


def _litellm_added_ms() -> float:
    """What LiteLLM adds at the median over the same kind of worker direct."""
    if not LITELLM.exists():
        raise RuntimeError("LiteLLM is not installed: make bench installs it (environment 'bench')")
    with fake_upstream() as port, litellm(port) as proxy:
        request = post("/v1/chat/completions", ONE_TOKEN, key=LITELLM_KEY)
        direct, through = _interleaved(
            _timer(("127.0.0.1", port), request, fresh=False), _timer(proxy, request, fresh=False), 200
        )
    return statistics.median(through) - statistics.median(direct)


def _throughput(rig: Rig) -> Iterator[Figure]:
    url = f"http://127.0.0.1:{rig.door[1]}/v1/chat/completions"
    rates = [wrk(url, ONE_TOKEN, connections=32, seconds=4)[0] for _ in range(ROUNDS)]
    yield Figure("door.requests_per_s.c32", statistics.median(rates), "req/s", ">= 6000", "", spread(rates, 0))
    tokens = 256
    body = chat(f"fake: tokens={tokens} coalesce=1", stream=True, max_tokens=tokens)
    chunks = [wrk(url, body, connections=16, seconds=4)[0] * tokens for _ in range(ROUNDS)]
    yield Figure("door.chunks_per_s.c16", statistics.median(chunks), "chunk/s", ">= 80000", "", spread(chunks, 0))


def _paced(rig: Rig) -> Iterator[Figure]:
    """16 streams of 100 tokens a second; each token carries when it was written, so its whole way is measured."""
    rounds = [(asyncio.run(_delays(rig.worker)), asyncio.run(_delays(rig.door))) for _ in range(ROUNDS)]
    added = [percentile(door, 99) - percentile(direct, 99) for direct, door in rounds]
    direct, door = (statistics.median(percentile(side, 99) for side in sides) for sides in zip(*rounds, strict=True))
    against = f"direct p99 {direct:.2f} ms, through p99 {door:.2f} ms"
    yield Figure("door.paced_chunk_added_p99", statistics.median(added), "ms", "<= 1.0", against, spread(added))


async def _delays(address: Address, *, streams: int = 16, tokens: int = 400) -> list[float]:
    body = chat(f"fake: tokens={tokens} rate=100 stamp=1", stream=True, max_tokens=tokens)
    request = post("/v1/chat/completions", body, close=True)

    async def one() -> list[float]:
        opened = (
            asyncio.open_unix_connection(address)
            if not isinstance(address, tuple)
            else asyncio.open_connection(*address)
        )
        reader, writer = await opened
        writer.write(request)
        found: list[float] = []
        while (line := await reader.readline()) and not line.startswith(b"data: [DONE]"):
            if b'"content":"' in line:
                arrived = time.monotonic_ns()
                stamp = line.split(b'"content":"', 1)[1].split(b'"', 1)[0].strip()
                if stamp.isdigit():
                    found.append((arrived - int(stamp)) / 1e6)
        with contextlib.suppress(OSError):
            writer.close()
        if len(found) < tokens * 0.9:
            raise RuntimeError(f"{len(found)} of {tokens} stamped tokens arrived")
        return found

    return [delay for result in await asyncio.gather(*(one() for _ in range(streams))) for delay in result]
