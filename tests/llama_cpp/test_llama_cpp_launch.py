"""The launcher of an installed llama-server: it becomes the program, and our socket's name leads to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.accelerators import Machine
from homelab_llm.inference.engines.base import EngineOptions
from homelab_llm.inference.engines.llama_cpp import LlamaCppEngine

SERVER = """#!{python}
import http.server, os, socketserver, sys
FLAGS = "model alias host ctx-size parallel batch-size ubatch-size jinja no-context-shift embeddings list-devices"
ANSWERS = {{
    "--help": " ".join("--" + flag for flag in FLAGS.split()),
    "--version": "version: 1",
    "--list-devices": "Available devices:\\n  CUDA0: A card (1 MiB, 1 MiB free)",
}}
if sys.argv[1] in ANSWERS:
    print(ANSWERS[sys.argv[1]])
    sys.exit(0)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ('{{"pid": %d, "model": "%s"}}' % (os.getpid(), sys.argv[sys.argv.index("--model") + 1])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
    def address_string(self):
        return "client"
host = sys.argv[sys.argv.index("--host") + 1]
assert host.endswith(".sock")
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("client", 0)
Server(host, Handler).serve_forever()
"""


@pytest.mark.requirement("R-I1")
def test_an_installed_server_answers_on_our_socket_as_the_process_we_started(
    home: Home, tmp_path: Path, worker_of: Any
) -> None:
    program = tmp_path / "llama-server"
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)
    facts = ModelFacts("gguf", "llama", 1, capabilities=("chat",))
    model = StoredModel("m", Digest.of(b"x"), facts, {"model.gguf": Path("/blobs/1")})
    engine = LlamaCppEngine(Machine(search=str(tmp_path)))
    path = home.runtime / "abcde.http"
    for _ in range(2):  # the second finds what the first left
        plan = engine.plan(model, EngineOptions(threads=1), path, home.derived)
        with worker_of(plan, path, home.logs / "w.log") as worker:
            assert worker.call("GET", "/health") == (200, {"pid": worker.process.pid, "model": "/blobs/1"})


def test_a_program_that_cannot_be_started_is_said(home: Home) -> None:
    argv = [sys.executable, "-P", "-m", "homelab_llm.inference.workers.llama_cpp.launch"]
    argv += ["--socket", str(home.runtime / "abcde.http"), "--", "/none/llama-server", "--model", "x"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: /none/llama-server cannot be started: No such file or directory\n"
