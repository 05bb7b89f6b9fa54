"""The MLX worker as a process, on the real SmolLM2 and on a tiny model with random weights and the same tokenizer."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import pytest

from homelab_llm.core.locks import locked
from homelab_llm.inference.engines.mlx import CONVERTER_VERSION

LLAMA_SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = [sys.argv[2]]
params.n_ctx, params.n_parallel, params.warmup = 1024, 1, False
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
threading.Event().wait()
"""


@pytest.fixture(scope="session")
def smollm2_mlx(smollm2_gguf: Path) -> Path:
    """The real SmolLM2, converted; kept in the checkout's cache until the converter changes."""
    target = smollm2_gguf.parent.parent / f"smollm2-mlx{CONVERTER_VERSION}"
    with locked(target.with_name(f"{target.name}-test.lock"), wait_s=600):
        program = [sys.executable, "-P", "-m", "homelab_llm.inference.conversion.gguf_to_mlx"]
        subprocess.run([*program, "--file", f"model.gguf={smollm2_gguf}", "--target", str(target)], check=True)
    return target


@pytest.fixture(scope="session")
def tiny_mlx(smollm2_mlx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two small layers with random weights, and SmolLM2's tokenizer: quick, and its words mean nothing."""
    import mlx.core as mx

    folder = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_mlx / name, folder / name)
    config = json.loads((smollm2_mlx / "config.json").read_text())
    del config["quantization"], config["quantization_config"], config["head_dim"]
    config |= {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (config["vocab_size"], 64), "model.norm": (64,)}
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64),
            "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (128, 64),
            "mlp.up_proj": (128, 64),
            "mlp.down_proj": (64, 128),
            "input_layernorm": (64,),
            "post_attention_layernorm": (64,),
        }.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    mx.random.seed(7)
    weights = {f"{name}.weight": mx.random.normal(shape) * 0.5 for name, shape in shapes.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


@pytest.fixture(scope="session")
def tiny_socket(tiny_mlx: Path) -> Iterator[Path]:
    """A running worker on the tiny model: 4 at once, 256 tokens each."""
    with running_worker(tiny_mlx, "--name", "tiny", "--parallel", "4", "--context", "256") as path:
        yield path


@pytest.fixture(scope="session")
def smollm2_socket(smollm2_mlx: Path) -> Iterator[Path]:
    """A running worker on the real model: 4 at once, 256 tokens each."""
    with running_worker(smollm2_mlx, "--name", "smollm2:135m", "--parallel", "4", "--context", "256") as path:
        yield path


@pytest.fixture
async def tiny(tiny_socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the worker on the tiny model."""
    async with aiohttp.ClientSession("http://worker", connector=aiohttp.UnixConnector(str(tiny_socket))) as session:
        yield session


@pytest.fixture
async def smollm2(smollm2_socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the worker on the real model."""
    async with aiohttp.ClientSession("http://worker", connector=aiohttp.UnixConnector(str(smollm2_socket))) as session:
        yield session


@pytest.fixture(scope="session")
def llama_cpp_socket(smollm2_gguf: Path) -> Iterator[Path]:
    """llama.cpp's own server on the same GGUF file."""
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as folder:
        path = Path(folder) / "l.sock"
        with running([sys.executable, "-c", LLAMA_SERVER, str(smollm2_gguf), str(path)], path):
            yield path


@pytest.fixture
async def llama_cpp(llama_cpp_socket: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of llama.cpp's server; one connection per request, as it breaks those that are used again."""
    connector = aiohttp.UnixConnector(str(llama_cpp_socket), force_close=True)
    async with aiohttp.ClientSession("http://llama", connector=connector) as session:
        yield session


@contextlib.contextmanager
def running_worker(folder: Path, *options: str) -> Iterator[Path]:
    """The worker program serving ``folder``; yields its socket."""
    with TemporaryDirectory(prefix="hl-", dir="/tmp") as place:
        path = Path(place) / "w.sock"
        program = [sys.executable, "-P", "-m", "homelab_llm.inference.workers.mlx.server"]
        with running([*program, "--socket", str(path), "--model", str(folder), *options], path):
            yield path


@contextlib.contextmanager
def running(command: list[str], path: Path) -> Iterator[None]:
    """A server process, from its readiness on ``path`` to its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            if _healthy(path):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"the server ended with {process.wait(0.05)}")
        else:
            pytest.fail("the server did not become ready")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(path: Path) -> bool:
    connection = http.client.HTTPConnection("worker", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
