"""The llama.cpp worker program with the real SmolLM2: answers, streams, errors, bad files, its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.facts import StoredModel
from homelab_llm.inference.engines.accelerators import Machine
from homelab_llm.inference.engines.base import EngineOptions
from homelab_llm.inference.engines.llama_cpp import LlamaCppEngine

QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    "temperature": 0,
    "max_tokens": 32,
}


@pytest.mark.requirement("R-I1")
@pytest.mark.requirement("B-16")
def test_the_real_model_answers_paris_under_its_own_name(chat_worker: Any) -> None:
    reply = chat_worker.post("/v1/chat/completions", QUESTION)
    assert "Paris" in reply["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["model"] == "smollm2:135m"
    assert reply["usage"]["completion_tokens"] > 3


@pytest.mark.requirement("R-I3")
def test_a_stream_tells_its_progress_its_text_and_its_usage(chat_worker: Any) -> None:
    asked = {**QUESTION, "return_progress": True, "stream_options": {"include_usage": True}, "cache_prompt": False}
    events = chat_worker.stream(asked)
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert progress[-1]["processed"] == progress[-1]["total"] > 0
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert "Paris" in "".join(delta.get("content") or "" for delta in deltas)
    assert events[-1]["usage"]["prompt_tokens"] == progress[-1]["total"]


@pytest.mark.requirement("R-I3")
def test_the_same_seed_gives_the_same_answer_and_stop_ends_it(chat_worker: Any) -> None:
    asked = {**QUESTION, "temperature": 1, "seed": 7, "cache_prompt": False}
    first, second = (chat_worker.post("/v1/chat/completions", asked)["choices"][0]["message"] for _ in range(2))
    assert first["content"] == second["content"]
    stopped = chat_worker.post("/v1/chat/completions", {**QUESTION, "stop": ["Paris"]})
    assert "Paris" not in stopped["choices"][0]["message"]["content"]


@pytest.mark.requirement("R-I3")
def test_a_prompt_beyond_the_context_is_refused_with_both_counts(chat_worker: Any) -> None:
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": "word " * 3000}], "stream": stream}
        status, answer = chat_worker.call("POST", "/v1/chat/completions", body)
        assert status == 400
        assert answer["error"]["type"] == "exceed_context_size_error"
        assert answer["error"]["n_prompt_tokens"] > answer["error"]["n_ctx"] == 2048


def leave_after_first_bytes(worker: Any, body: dict[str, Any]) -> None:
    """Ask for a stream with progress, read its beginning, go away, and wait until no slot is busy."""
    content = json.dumps({**body, "stream": True, "return_progress": True}).encode()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(60)
        client.connect(str(worker.socket))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert worker.busy_slots() == 1
    worker.until_idle()


@pytest.mark.requirement("R-I3")
def test_a_client_that_leaves_in_prefill_stops_it(chat_worker: Any) -> None:
    messages = [{"role": "user", "content": "Seventeen hundred: " + "word " * 1700}]
    leave_after_first_bytes(chat_worker, {"messages": messages, "max_tokens": 9})
    usage = chat_worker.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"] - 1, "the rest was never computed"


@pytest.mark.requirement("R-I3")
def test_a_client_that_leaves_while_it_decodes_stops_it(chat_worker: Any) -> None:
    before = chat_worker.log.read_text().count("cancel task")
    body = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 1900, "ignore_eos": True}
    leave_after_first_bytes(chat_worker, body)
    assert chat_worker.log.read_text().count("cancel task") == before + 1


def test_every_second_request_on_a_kept_connection_fails_after_a_stream(chat_worker: Any) -> None:
    """Why the engine's traits say that connections are not pooled: when this fails, they may be."""
    connection = chat_worker.connection_type(chat_worker.socket)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**QUESTION, "stream": True}), headers)
    reply = connection.getresponse()
    assert b"[DONE]" in reply.read()
    assert reply.getheader("Keep-Alive")
    with (
        contextlib.closing(connection),
        pytest.raises((http.client.RemoteDisconnected, BrokenPipeError, ConnectionError)),
    ):
        connection.request("GET", "/health")
        connection.getresponse()


@pytest.mark.requirement("R-I2")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[: len(content) // 2], "data is not within the file bounds"),
        (lambda content: content[:3000], "failed to read key-value pairs"),
        (lambda content: bytes(len(content)), "invalid magic"),
        (lambda _: b"", "failed to read magic"),
        (lambda content: content[:200] + bytes(4000) + content[4200:], "failed to read key-value pairs"),
    ],
    ids=["halved", "header only", "zeroed", "empty", "header zeroed"],
)
def test_a_damaged_file_ends_the_worker_with_the_reason(
    damage: Callable[[bytes], bytes], said: str, smollm2_gguf: Path, tmp_path: Path, launch_worker: Any
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(damage(smollm2_gguf.read_bytes()))
    worker = launch_worker("--model", file)
    assert worker.process.wait(60) == 1
    # llama.cpp writes from a thread of its own, so that a line of it may come after ours.
    begin = "error: llama.cpp cannot load the model: "
    (reason,) = [line for line in worker.log.read_text().splitlines() if line.startswith(begin)]
    assert said in reason
    assert str(tmp_path) not in reason
    assert not worker.socket.exists()


@pytest.mark.requirement("R-I2")
def test_a_fifo_or_a_missing_file_never_hangs_the_worker(tmp_path: Path, launch_worker: Any) -> None:
    fifo = tmp_path / "model.gguf"
    os.mkfifo(fifo)
    for file, said in ((fifo, "not a regular file"), (tmp_path / "none.gguf", "not there")):
        worker = launch_worker("--model", file)
        assert worker.process.wait(60) == 1
        assert said in worker.log.read_text()


def test_wrong_arguments_end_the_worker_at_once(launch_worker: Any, smollm2_gguf: Path) -> None:
    assert launch_worker("--model", smollm2_gguf, "--parallel", "0").process.wait(60) == 2


@pytest.mark.requirement("R-I2")
def test_sigterm_ends_a_busy_worker_in_order_and_leaves_no_socket(smollm2_gguf: Path, launch_worker: Any) -> None:
    worker = launch_worker("--model", smollm2_gguf, "--context", "2048", "--threads", "2")
    worker.until_ready()
    with contextlib.closing(worker.connection_type(worker.socket)) as connection:
        body = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 1900, "ignore_eos": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        while not worker.busy_slots():
            pass
        worker.process.terminate()
        assert worker.process.wait(20) == 0
    assert list(worker.socket.parent.iterdir()) == []


@pytest.mark.requirement("R-I2")
def test_a_socket_left_by_a_dead_worker_is_replaced(smollm2_gguf: Path, launch_worker: Any) -> None:
    first = launch_worker("--model", smollm2_gguf, "--context", "512")
    first.until_ready()
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()
    second = launch_worker("--model", smollm2_gguf, "--context", "512")
    second.until_ready()
    assert second.end() == 0


@pytest.mark.requirement("R-I9")
def test_a_template_of_ones_own_shapes_the_prompt(smollm2_gguf: Path, tmp_path: Path, launch_worker: Any) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}<only>{{ m.content }}</only>{% endfor %}")
    worker = launch_worker("--model", smollm2_gguf, "--context", "256", "--chat-template", template)
    worker.until_ready()
    told = worker.post("/apply-template", {"messages": [{"role": "user", "content": "Hello"}]})
    assert told["prompt"] == "<only>Hello</only>"


@pytest.mark.requirement("R-I9")
def test_a_template_that_is_missing_is_said(smollm2_gguf: Path, tmp_path: Path, launch_worker: Any) -> None:
    worker = launch_worker("--model", smollm2_gguf, "--chat-template", tmp_path / "none.jinja")
    assert worker.process.wait(60) == 1
    assert "the chat template is not there" in worker.log.read_text()


def within_a_quarter(estimated: int, measured: int) -> bool:
    return 0.75 * measured <= estimated <= 1.25 * measured


def test_the_estimate_is_close_to_what_the_real_models_take(
    smollm2: StoredModel, minilm: StoredModel, chat_worker: Any, embedding_worker: Any
) -> None:
    engine = LlamaCppEngine(Machine(search=""))
    long = {"messages": [{"role": "user", "content": "word " * 1900}], "max_tokens": 2}
    chat_worker.post("/v1/chat/completions", long)
    chat = engine.estimate(smollm2.facts, EngineOptions(context_tokens=2048, parallel=2)).total_bytes
    assert within_a_quarter(chat, chat_worker.memory_bytes())
    embedding_worker.post("/v1/embeddings", {"input": ["word " * 500] * 4})
    embedding = engine.estimate(minilm.facts, EngineOptions()).total_bytes
    assert within_a_quarter(embedding, embedding_worker.memory_bytes())


def test_the_worker_starts_without_heavy_imports() -> None:
    """Only what it needs: the worker is the engine, and everything else is weight."""
    code = (
        "import sys; import homelab_llm.inference.workers.llama_cpp.server as s;"
        "s.parse(['--socket','a','--model','b']);"
        "print([m for m in ('pydantic','asyncio','numpy','xllamacpp','homelab_llm.core.settings') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
