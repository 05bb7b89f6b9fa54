"""The client of the daemon's socket: reads HTTP however it is cut, bounded, with typed errors."""

from __future__ import annotations

import io
import itertools
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import DaemonUnavailable, HomelabError, InternalError, ModelNotFound
from homelab_llm.core.paths import Home
from homelab_llm.interface.daemon_client import DaemonClient, error_from, read_body, read_head

if TYPE_CHECKING:
    from tests.interface.conftest import ScriptedDaemon


class Trickle(io.RawIOBase):
    """Gives its content in pieces cut at the given places, as a network does."""

    def __init__(self, content: bytes, cuts: list[int]) -> None:
        edges = [0, *sorted({cut % (len(content) + 1) for cut in cuts}), len(content)]
        self._pieces = [content[a:b] for a, b in itertools.pairwise(edges) if b > a]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        if rest := piece[len(buffer) :]:
            self._pieces.insert(0, rest)
        count = len(piece) - len(rest)
        buffer[:count] = piece[:count]
        return count


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 10_000), max_size=30))
def test_a_chunked_body_is_the_same_wherever_it_is_cut(pieces: list[bytes], cuts: list[int]) -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(pieces)
    stream = io.BufferedReader(Trickle(raw, cuts))
    status, headers = read_head(stream)
    assert status == 200
    assert b"".join(read_body(stream, headers)) == b"".join(pieces)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_whatever_answers_on_the_socket_is_an_answer_or_a_typed_error(noise: bytes, length: int) -> None:
    stream = io.BufferedReader(Trickle(noise, [7]))
    try:
        status, headers = read_head(stream)
        list(read_body(stream, {**headers, "content-length": str(length)}))
    except DaemonUnavailable:
        return
    assert status >= 0


@pytest.mark.parametrize(
    "body",
    [b"5\r\nab", b"zz\r\n", b"-1\r\n", b"3\r\nabcXX", b""],
)
def test_a_chunked_body_that_breaks_off_or_lies_is_the_daemon_gone(body: bytes) -> None:
    with pytest.raises(DaemonUnavailable):
        list(read_body(io.BufferedReader(io.BytesIO(body)), {"transfer-encoding": "chunked"}))


def test_no_socket_means_no_daemon_and_the_hint_starts_one(home: Home) -> None:
    with pytest.raises(DaemonUnavailable) as caught:
        DaemonClient(home.daemon_sock).get("/admin/status")
    assert caught.value.hint == "mlxctl daemon start"


def test_a_socket_file_that_nobody_serves_means_no_daemon(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(home.daemon_sock))
    assert DaemonClient(home.daemon_sock).answers() is False


def test_a_socket_path_beyond_the_systems_limit_is_refused_with_words() -> None:
    with pytest.raises(DaemonUnavailable, match="too long"):
        DaemonClient(Path("/tmp") / ("x" * 120)).get("/")


def test_json_goes_there_and_comes_back(daemon: ScriptedDaemon) -> None:
    daemon.says("/admin/models/unload", 200, {"unloaded": True})
    client = DaemonClient(daemon.path)
    assert client.answers()
    assert client.post("/admin/models/unload", {"model": "ä:b"}) == {"unloaded": True}
    assert daemon.asked[-1] == ("/admin/models/unload", {"model": "ä:b"})


def test_an_error_body_becomes_the_class_its_code_names(daemon: ScriptedDaemon) -> None:
    body = {
        "error": {"code": "model_not_found", "message": "no m", "hint": "mlxctl pull m", "facts": {"closest": ["n"]}}
    }
    daemon.says("/v1/chat/completions", 404, body)
    with pytest.raises(ModelNotFound) as caught:
        DaemonClient(daemon.path).stream("/v1/chat/completions", {})
    assert caught.value.hint == "mlxctl pull m"
    assert caught.value.facts == {"closest": ["n"]}


def test_an_error_without_a_known_shape_still_has_the_status() -> None:
    assert error_from(502, b"<html>").facts == {"status": 502}
    assert isinstance(error_from(500, b"[]"), InternalError)
    assert type(error_from(400, b'{"error": {"code": "from_the_future", "message": "x"}}')) is HomelabError


def test_a_line_is_given_before_the_next_one_is_there(home: Home) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.daemon_sock))
        listener.listen()
        seen, hung_up = threading.Event(), threading.Event()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
                seen.wait(10)
                while link.recv(65536):
                    pass
                hung_up.set()

        thread = threading.Thread(target=serve)
        thread.start()
        with DaemonClient(home.daemon_sock).stream("/x", {}) as reply:
            assert next(reply.lines()) == "one"
            seen.set()
        assert hung_up.wait(10), "closing the reply must close the connection"
        thread.join(10)


def test_a_daemon_that_stays_silent_is_unavailable_after_the_limit(daemon: ScriptedDaemon) -> None:
    daemon.replies["/slow"] = b"..."[:0]
    with pytest.raises(DaemonUnavailable):
        DaemonClient(daemon.path).get("/slow", timeout_s=0.2)
