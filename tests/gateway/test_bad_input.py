"""Bad input over HTTP: each a clear error with a code, and the server still serves."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from homelab_llm.testing.events import eventually

if TYPE_CHECKING:
    from tests.gateway.conftest import Door, OpenDoor, Worker

CHAT = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "fake:latest", "messages": [{"role": "user", "content": "fake: tokens=1"}], **fields}


def deep(levels: int) -> bytes:
    return b'{"model":"fake:latest","messages":' + b"[" * levels + b"]" * levels + b"}"


BODIES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "invalid_input"),
    ("truncated", b'{"model": "fake:latest", "mess', 400, "invalid_input"),
    ("garbage after", json.dumps(chat()).encode() + b"x", 400, "invalid_input"),
    ("list", b"[]", 400, "invalid_input"),
    ("number", b"7", 400, "invalid_input"),
    ("null", b"null", 400, "invalid_input"),
    ("NaN", b'{"model":"fake:latest","messages":[],"temperature":NaN}', 400, "invalid_input"),
    ("Infinity", b'{"model":"fake:latest","messages":[],"temperature":-Infinity}', 400, "invalid_input"),
    ("1e999", json.dumps(chat(temperature=1)).encode().replace(b'"temperature": 1', b'"temperature": 1e999'), 400,
     "invalid_input"),
    ("huge number", json.dumps(chat(max_tokens=10**30)).encode(), 400, "invalid_input"),
    ("surrogate", b'{"model":"\\ud800","messages":[]}', 400, "invalid_input"),
    ("byte order mark", b"\xef\xbb\xbf" + json.dumps(chat()).encode(), 400, "invalid_input"),
    ("not UTF-8", b'{"model":"\xff\xfe"}', 400, "invalid_input"),
    ("UTF-16", json.dumps(chat()).encode("utf-16"), 400, "invalid_input"),
    ("65 levels", deep(65), 400, "body_too_large"),
    ("100,000 levels", deep(100_000), 400, "body_too_large"),
    ("million empty lists", b'{"a":[' + b"[]," * 1_000_000 + b"[]]}", 400, "body_too_large"),
    ("million keys", b"{" + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}", 400, "unknown_field"),
    ("10 MB key", b'{"' + b"k" * 10_000_000 + b'":1}', 400, "unknown_field"),
    ("40 MB", b'{"model":"' + b"m" * 40_000_000 + b'"}', 413, "body_too_large"),
    ("no model", b'{"messages":[{"role":"user","content":"x"}]}', 400, "invalid_input"),
    ("unknown field", json.dumps(chat(temperature_=1)).encode(), 400, "unknown_field"),
    ("image", json.dumps(chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}])).encode(), 400,
     "unsupported_request"),
]  # fmt: skip


@pytest.mark.requirement("R-G3", "R-S1")
@pytest.mark.parametrize(("name", "body", "status", "code"), BODIES, ids=[name for name, *_ in BODIES])
async def test_a_bad_body_is_a_clear_error(one_door: Door, name: str, body: bytes, status: int, code: str) -> None:
    reply = await one_door.post(CHAT, body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), error
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300
    assert one_door.fleet.granted == []
    await one_door.still_serves()


MODELS = [
    ("", 400, "invalid_input"),
    (".", 400, "invalid_name"),
    ("..", 400, "invalid_name"),
    ("../../etc/passwd", 400, "invalid_name"),
    ("a/../b", 400, "invalid_name"),
    ("/abs", 400, "invalid_name"),
    ("-rf", 400, "invalid_name"),
    ("a\x00b", 400, "invalid_name"),
    ("a\r\nx-evil: 1", 400, "invalid_name"),
    ("fаke", 400, "invalid_name"),  # a Cyrillic letter
    ("fake\u202e", 400, "invalid_name"),
    ("a:b:c", 400, "invalid_name"),
    ("$(x)", 400, "invalid_name"),
    ("fake ", 400, "invalid_name"),
    ("x" * 200, 400, "invalid_name"),
    ("x" * 10_000, 400, "body_too_large"),
    ("fake@sha256:" + "A" * 64, 400, "invalid_digest"),
    ("fake:late", 404, "model_not_found"),
    ("nothing", 404, "model_not_found"),
]  # fmt: skip


@pytest.mark.requirement("R-S1", "R-G3")
@pytest.mark.parametrize(("model", "status", "code"), MODELS)
async def test_a_name_outside_the_grammar_goes_nowhere(one_door: Door, model: str, status: int, code: str) -> None:
    reply = await one_door.post(CHAT, chat(model=model))
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert "x-evil" not in reply.headers
    await one_door.still_serves()


@pytest.mark.requirement("R-G3")
async def test_an_unknown_model_names_the_closest_and_the_next_step(one_door: Door) -> None:
    error = (await one_door.post(CHAT, chat(model="fake:late"))).json()["error"]
    assert error["facts"]["closest"] == ["fake:latest"]
    assert "mlxctl" in error["hint"]


@pytest.mark.requirement("B-1")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_does_not_fit_is_refused_with_both_counts(door: Door, stream: bool) -> None:
    reply = await door.post(CHAT, chat(messages=[{"role": "user", "content": "word " * 5000}], stream=stream))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_overflow")
    assert error["facts"] == {"prompt_tokens": 5000, "context_tokens": 4096}
    assert "maximum context length" in error["message"]
    await door.still_serves()


HEADERS = [
    ({"content-type": "text/plain"}, 415),
    ({"content-type": ""}, 415),
    ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ({"content-type": "application/json; charset=utf-16"}, 415),
    ({"content-type": "application/jsonx"}, 415),
    ({"content-encoding": "gzip"}, 415),
    ({"content-encoding": "br"}, 415),
    ({"content-type": "application/json; charset=UTF-8"}, 200),
    ({"content-encoding": "identity"}, 200),
]


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(("headers", "status"), HEADERS)
async def test_only_plain_json_is_read(one_door: Door, headers: dict[str, str], status: int) -> None:
    reply = await one_door.post(CHAT, chat(), **headers)
    assert reply.status_code == status
    if status == 415:
        assert reply.json()["error"]["code"] == "unsupported_encoding"


async def test_a_request_without_content_type_is_refused(one_door: Door) -> None:
    reply = await one_door.raw(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    )
    assert reply.startswith(b"HTTP/1.1 415")


PATHS = [
    ("GET", "/v1", 404),
    ("GET", "/v1/models/", 404),
    ("GET", "//v1/models", 404),
    ("GET", "/v1/models/..%2f..%2fetc", 400),
    ("GET", "/admin%2fstatus", 401),
    ("GET", "/ADMIN/status", 404),
    ("GET", "/admin/status/", 404),
    ("GET", "/%61dmin/status", 401),
    ("GET", "/%2561dmin/status", 404),
    ("GET", "/" + "x" * 20_000, 404),
    ("DELETE", "/v1/models", 405),
    ("GET", "/v1/chat/completions", 405),
    ("BREW", "/", 400),
    ("OPTIONS", "*", 404),
    ("TRACE", "/", 405),
]


@pytest.mark.requirement("R-S1", "R-G3")
@pytest.mark.parametrize(("method", "path", "status"), PATHS, ids=[f"{m} {p[:30]}" for m, p, _ in PATHS])
async def test_a_path_is_taken_as_it_is(one_door: Door, method: str, path: str, status: int) -> None:
    reply = await one_door.raw(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert reply.startswith(f"HTTP/1.1 {status}".encode()), reply[:200]
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]
    if status == 405:
        assert b"\r\nallow: " in reply.lower()
    await one_door.still_serves()


SMUGGLED = [
    b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"Content-Length: -1\r\n\r\n",
    b"Content-Length: 0x2\r\n\r\n{}",
    b"Content-Length: 99999999999999999999\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"X-A: b\r\n c: folded\r\n\r\n",
    b"X-A: b\nX-B: c\r\n\r\n",
    b"X\x00A: b\r\n\r\n",
    b"X-A: b\x00\r\n\r\n",
    b"X-A: b\rc\r\n\r\n",
]


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("rest", SMUGGLED, ids=range(len(SMUGGLED)))
async def test_a_request_that_could_be_read_in_two_ways_is_refused_and_the_connection_closed(
    one_door: Door, rest: bytes
) -> None:
    reply = await one_door.raw(HEAD + rest)
    assert reply.startswith(b"HTTP/1.1 400"), reply
    assert reply.count(b"\r\n\r\n") == 1
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert one_door.fleet.granted == []
    await one_door.still_serves()


async def test_what_is_not_http_is_refused(one_door: Door) -> None:
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        assert (await one_door.raw(noise)).startswith(b"HTTP/1.1 400")
    await one_door.still_serves()


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "headers",
    [b"X-Big: " + b"x" * 70_000, b"X-Big: " + b"x" * 3_000_000, b"\r\n".join(b"X-%d: y" % i for i in range(101))],
    ids=["70 kB", "3 MB", "101 headers"],
)
async def test_headers_beyond_their_bound_are_refused(one_door: Door, headers: bytes) -> None:
    content = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers
    reader, writer = await asyncio.open_connection("127.0.0.1", one_door.port)
    try:
        writer.write(content + b"\r\n\r\n")
        reply = await asyncio.wait_for(reader.read(4096), 30)
        assert reply.startswith(b"HTTP/1.1 431"), reply[:100]
        assert b'"body_too_large"' in reply
    except ConnectionError:
        pass  # closed while we were still sending: also an answer
    finally:
        writer.close()
    await one_door.still_serves()


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_before_it_has_arrived(
    workers: dict[str, Worker], open_door: OpenDoor, chunked: bool
) -> None:
    async with open_door(workers["own"], max_body_bytes=100_000) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        length = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: 100000000\r\n\r\n"
        writer.write(HEAD + length)
        if chunked:
            for _ in range(3):
                writer.write(b"c350\r\n" + b" " * 50_000 + b"\r\n")
        reply = await asyncio.wait_for(reader.read(4096), 30)
        writer.close()
        assert reply.startswith(b"HTTP/1.1 413")
        await door.still_serves()


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n", HEAD + b"Content-Length: 10\r\n\r\n{",
     HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"],
    ids=["nothing", "half a line", "half the headers", "half a body", "half the chunks"],
)  # fmt: skip
async def test_a_request_that_does_not_arrive_is_ended_however_it_trickles(
    workers: dict[str, Worker], open_door: OpenDoor, sent: bytes
) -> None:
    async with open_door(workers["own"], receive_deadline_s=0.4) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(sent)

        async def trickle() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b" " if b"\r\n\r\n" not in sent else b"")

        drip = asyncio.get_running_loop().create_task(trickle())
        reply = await asyncio.wait_for(reader.read(), 30)
        drip.cancel()
        writer.close()
        assert reply.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400")), reply
        await door.still_serves()


async def test_a_second_request_on_a_connection_has_its_own_deadline(
    workers: dict[str, Worker], open_door: OpenDoor
) -> None:
    async with open_door(workers["own"], receive_deadline_s=0.4) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b'"ok"}')).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.8)  # idle between requests is no offence
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_running_reply_is_no_late_request(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    async with open_door(workers["own"], receive_deadline_s=0.3) as door:
        reply = await door.post(CHAT, chat(messages=[{"role": "user", "content": "fake: tokens=12 rate=12"}]))
        assert reply.status_code == 200


@pytest.mark.requirement("B-6", "R-S1")
async def test_connections_beyond_the_limit_are_told_so(workers: dict[str, Worker], open_door: OpenDoor) -> None:
    async with open_door(workers["own"], max_connections=8) as door:
        idle = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(8)]

        async def refused() -> bytes:
            found = await door.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return found if found.startswith(b"HTTP/1.1 503") else b""

        async def served() -> bool:
            return not await refused()

        reply = await eventually(refused, what="refusal")
        assert b"retry-after:" in reply
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["facts"] == {"limit": 8}
        for _, writer in idle:
            writer.close()
        await eventually(served, what="room")
        await door.still_serves()


async def test_embeddings_and_chat_are_asked_of_models_that_make_them(one_door: Door) -> None:
    for path, body in (
        ("/v1/embeddings", {"model": "fake:latest", "input": "x"}),
        (CHAT, chat(model="embedder:latest")),
        ("/v1/embeddings", {"model": "embedder:latest", "input": "x", "dimensions": 4}),
    ):
        reply = await one_door.post(path, body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_request")
    assert one_door.fleet.granted == []
    same = await one_door.post("/v1/embeddings", {"model": "embedder:latest", "input": "x", "dimensions": 8})
    assert same.status_code == 200
