"""Our llama.cpp worker as a process, asked for the probabilities of what comes next."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_READY_WITHIN_S = 60.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("worker", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


class LlamaWorker:
    """A running worker."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """One request; the reply as JSON."""
        with closing(_Connection(self._path)) as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = reply.read()
            if reply.status != 200:
                raise RuntimeError(content.decode()[:500])
            return json.loads(content)

    def is_ready(self) -> bool:
        """Whether the model is loaded."""
        try:
            with closing(_Connection(self._path)) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
        except OSError:
            return False

    def tokens(self, text: str) -> list[int]:
        """The text as llama.cpp tokenizes it, with what it puts around."""
        return list(self.post("/tokenize", {"content": text, "add_special": True})["tokens"])

    def log_probabilities(self, ids: Sequence[int], shown: int, *, count: int) -> dict[int, float]:
        """By id, of the token after ``ids``; ``shown`` is a token of plain text, which is made to come."""
        wish = {"n_predict": 1, "n_probs": count, "temperature": 0, "cache_prompt": False}
        reply = self.post("/completion", {"prompt": list(ids), **wish, "logit_bias": [[shown, 1000.0]]})
        return {each["id"]: each["logprob"] for each in reply["completion_probabilities"][0]["top_logprobs"]}

    def answer(self, question: str) -> str:
        """A chat's answer, the likeliest words."""
        messages = [{"role": "user", "content": question}]
        reply = self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 16})
        return str(reply["choices"][0]["message"]["content"])


@contextmanager
def llama_worker(model: Path, *, embedding: bool = False) -> Iterator[LlamaWorker]:
    """A worker that has loaded ``model``; it ends with the block.

    Raises:
        RuntimeError: it cannot load the model.
    """
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        path = Path(folder) / "worker"
        argv = [sys.executable, "-P", "-m", "homelab_llm.inference.workers.llama_cpp.server", "--socket", str(path)]
        argv += ["--model", str(model), "--context", "512", *(["--embedding"] if embedding else [])]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            worker = LlamaWorker(path)
            deadline_s = time.monotonic() + _READY_WITHIN_S
            while not worker.is_ready():
                if process.poll() is not None or time.monotonic() > deadline_s:
                    process.kill()
                    raise RuntimeError(process.communicate()[1].decode()[-500:])
                time.sleep(0.02)
            yield worker
        finally:
            process.kill()
            process.communicate()
