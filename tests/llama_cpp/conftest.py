"""Things for the llama.cpp tests: a worker program to start, a plain HTTP client, and an f32 reference of MiniLM."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy
import psutil
import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.accelerators import Machine
from homelab_llm.inference.engines.base import EngineOptions, LaunchPlan
from homelab_llm.inference.engines.llama_cpp import LlamaCppEngine
from homelab_llm.store.inspect.model import inspect_model

READY_WITHIN_S = 120.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=120)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@dataclass
class Worker:
    """A running worker program and its socket."""

    socket: Path
    process: subprocess.Popen[bytes]
    log: Path
    connection_type: ClassVar[type[UnixConnection]] = UnixConnection

    def memory_bytes(self) -> int:
        """What the process holds in memory now (RSS)."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """One request on a connection of its own; the reply as JSON."""
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        status, answer = self.call("POST", path, body)
        assert status == 200, answer
        return answer

    def stream(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All events of a streamed chat."""
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}), headers)
            text = connection.getresponse().read().decode()
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]", text[-500:]
        return [json.loads(line) for line in lines[:-1]]

    def until_ready(self) -> None:
        """Ask /health until it says 200."""
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.call("GET", "/health")[0] == 200:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def busy_slots(self) -> int:
        """How many slots work on a request now."""
        status, slots = self.call("GET", "/slots")
        assert status == 200
        return sum(slot["is_processing"] for slot in slots)

    def until_idle(self) -> None:
        """Wait until no slot works."""
        deadline = time.monotonic() + READY_WITHIN_S
        while self.busy_slots():
            assert time.monotonic() < deadline, "a slot is still busy"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def launch(argv: Sequence[str], socket_path: Path, log: Path, env: Mapping[str, str]) -> Worker:
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, cwd="/", env={**os.environ, **env})
    return Worker(socket_path, process, log)


Launch = Callable[..., Worker]


@contextlib.contextmanager
def planned(plan: LaunchPlan, socket_path: Path, log: Path) -> Iterator[Worker]:
    """The worker of a plan, prepared and ready; ended at the end."""
    if plan.prepare:
        subprocess.run(plan.prepare, check=True, stdout=subprocess.DEVNULL, cwd="/")
    worker = launch(plan.argv, socket_path, log, plan.env)
    try:
        worker.until_ready()
        yield worker
    finally:
        worker.end()


def stored(name: str, files: Mapping[str, Path]) -> StoredModel:
    """A model as the store would hand it out."""
    return StoredModel(name, Digest.of(name.encode()), inspect_model(files), files)


@pytest.fixture
def launch_worker(home: Home) -> Iterator[Launch]:
    """Start a worker program with these arguments; ended at the end of the test."""
    home.runtime.mkdir(exist_ok=True)
    started: list[Worker] = []

    def start(*arguments: str | Path, name: str = "abcde") -> Worker:
        path = home.runtime / f"{name}.http"
        argv = [sys.executable, "-P", "-m", "homelab_llm.inference.workers.llama_cpp.server"]
        argv += ["--socket", str(path), *map(str, arguments)]
        started.append(launch(argv, path, home.logs / f"{name}.log", {"GOMP_SPINCOUNT": "1000"}))
        return started[-1]

    yield start
    for worker in started:
        worker.end()


@pytest.fixture
def worker_of() -> Callable[..., contextlib.AbstractContextManager[Worker]]:
    """``worker_of(plan, socket, log)``: that worker, ready, for a block."""
    return planned


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder for sockets that live as long as the tests: their paths must be short."""
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> StoredModel:
    """The real SmolLM2."""
    return stored("smollm2:135m", {"model.gguf": smollm2_gguf})


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> StoredModel:
    """The real all-MiniLM-L6-v2."""
    files = {str(path.relative_to(minilm_folder)): path for path in minilm_folder.rglob("*") if path.is_file()}
    return stored("all-minilm:l6-v2", files)


@pytest.fixture(scope="session")
def chat_worker(smollm2: StoredModel, short_folder: Path) -> Iterator[Worker]:
    """A ready worker for SmolLM2, two slots of 2,048 tokens, as the engine plans it."""
    options = EngineOptions(context_tokens=2048, parallel=2)
    path = short_folder / "chat0.http"
    plan = LlamaCppEngine(Machine(search="")).plan(smollm2, options, path, short_folder / "derived")
    with planned(plan, path, short_folder / "chat0.log") as worker:
        yield worker


@pytest.fixture(scope="session")
def embedding_worker(minilm: StoredModel, short_folder: Path) -> Iterator[Worker]:
    """A ready worker for MiniLM, converted and planned by the engine."""
    path = short_folder / "embed.http"
    plan = LlamaCppEngine(Machine(search="")).plan(minilm, EngineOptions(), path, short_folder / "derived")
    with planned(plan, path, short_folder / "embed.log") as worker:
        yield worker


class WordPiece:
    """BERT's own tokenization, uncased: clean, lower, strip accents, split, longest match first."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.ids = {token: number for number, token in enumerate(tokens)}

    def encode(self, text: str, limit: int = 512) -> list[int]:
        pieces = [piece for word in self._words(text) for piece in self._pieces(word)]
        return [self.ids["[CLS]"], *pieces[: limit - 2], self.ids["[SEP]"]]

    @staticmethod
    def _words(text: str) -> list[str]:
        kept: list[str] = []
        for character in text:
            kind = unicodedata.category(character)
            if character in "\t\n\r" or kind == "Zs":
                kept.append(" ")
            elif character not in "\0\ufffd" and kind not in ("Cc", "Cf", "Cs", "Co"):
                kept.append(f" {character} " if "\u4e00" <= character <= "\u9fff" else character)
        lowered = unicodedata.normalize("NFD", "".join(kept).lower())
        spaced: list[str] = []
        for character in lowered:
            if unicodedata.category(character) == "Mn":
                continue
            symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
            spaced.append(f" {character} " if symbol or unicodedata.category(character)[0] == "P" else character)
        return "".join(spaced).split()

    def _pieces(self, word: str) -> list[int]:
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in self.ids:
                    found.append(self.ids[piece])
                    start = end
                    break
            else:
                return [self.ids["[UNK]"]]
        return found


Array = Any


class Reference:
    """all-MiniLM-L6-v2 in numpy, float32, straight from its safetensors file and the paper (Devlin et al., 2018)."""

    def __init__(self, folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header.pop("__metadata__", None)
        self.weights: dict[str, Array] = {}
        for name, entry in header.items():
            if entry["dtype"] == "F32":
                start, end = entry["data_offsets"]
                values = numpy.frombuffer(raw, "<f4", (end - start) // 4, 8 + length + start)
                self.weights[name] = values.reshape(entry["shape"])
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = WordPiece((folder / "vocab.txt").read_text("utf-8").splitlines())

    def embed(self, text: str) -> Array:
        """The normalised mean of the last hidden states. (width,)"""
        ids = self.tokenizer.encode(text)
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")  # (T, width)
        for number in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            mixed = self._linear(self._attend(x, f"{layer}.attention.self"), f"{layer}.attention.output.dense")
            x = self._norm(x + mixed, f"{layer}.attention.output.LayerNorm")
            inner = self._linear(x, f"{layer}.intermediate.dense")
            inner = inner * 0.5 * (1 + numpy.vectorize(math.erf, otypes=["f4"])(inner / math.sqrt(2)))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        mean = x.mean(axis=0)
        return mean / numpy.linalg.norm(mean)

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x: Array, name: str) -> Array:
        spread = numpy.sqrt(x.var(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return (x - x.mean(axis=-1, keepdims=True)) / spread * self.weights[f"{name}.weight"] + self.weights[
            f"{name}.bias"
        ]

    def _attend(self, x: Array, name: str) -> Array:
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self._linear(x, f"{name}.{part}").reshape(len(x), heads, -1).transpose(1, 0, 2)  # (heads, T, d)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        scores = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
        return ((scores / scores.sum(axis=-1, keepdims=True)) @ v).transpose(1, 0, 2).reshape(len(x), -1)


@pytest.fixture(scope="session")
def minilm_reference(minilm_folder: Path) -> Reference:
    """What all-MiniLM-L6-v2 computes in 32 bits."""
    return Reference(minilm_folder)
