"""The MLX engine's plan, carried out by the supervisor: conversion, load, answer, end."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.facts import ModelFacts, StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.inference.engines.base import EngineOptions
from homelab_llm.inference.engines.mlx import MlxEngine
from homelab_llm.inference.fleet.supervisor import Supervisor
from homelab_llm.inference.fleet.vocabulary import Event, Loaded, LoadFailed, LoadProgress, WorkerExit
from homelab_llm.testing.events import Recorded
from homelab_llm.testing.models import write_fake_model


def stored(path: Path) -> StoredModel:
    facts = ModelFacts(
        format="gguf",
        architecture="llama",
        size_bytes=path.stat().st_size,
        quantization="Q4_1",
        context_tokens=8192,
        capabilities=("chat", "completion"),
    )
    return StoredModel("m:1", Digest.of_file(path), facts, files={"model.gguf": path})


@pytest.mark.requirement("R-I1")
@pytest.mark.requirement("B-16")
async def test_a_gguf_model_is_converted_loaded_asked_and_ended(home: Home, smollm2_gguf: Path) -> None:
    events: Recorded[Event] = Recorded()
    supervisor = Supervisor(home, events, load_timeout_s=120, drain_s=10)
    socket = supervisor.sockets("aaaaa")
    supervisor.start("aaaaa", MlxEngine().plan(stored(smollm2_gguf), EngineOptions(128, 2), socket, home.derived))
    try:
        await events.until(lambda event: isinstance(event, Loaded | LoadFailed), 120)
        stages = [event.stage for event in events if isinstance(event, LoadProgress)]
        assert stages == sorted(stages)
        assert set(stages) >= {"convert", "load"}
        async with aiohttp.ClientSession("http://w", connector=aiohttp.UnixConnector(str(socket))) as client:
            body = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
            async with client.post("/v1/completions", json=body) as response:
                assert (await response.json())["choices"][0]["text"] == " Paris"
    finally:
        await supervisor.close()
    (ended,) = [event for event in events if isinstance(event, WorkerExit)]
    assert ended.error is None
    assert not socket.exists()


async def test_a_conversion_that_is_refused_fails_the_load_with_its_reason(home: Home, tmp_path: Path) -> None:
    events: Recorded[Event] = Recorded()
    supervisor = Supervisor(home, events, load_timeout_s=120, drain_s=10)
    model = stored(write_fake_model(tmp_path / "fake.gguf"))
    socket = supervisor.sockets("aaaaa")
    supervisor.start("aaaaa", MlxEngine().plan(model, EngineOptions(), socket, home.derived))
    try:
        failed = await events.until(lambda event: isinstance(event, Loaded | LoadFailed), 60)
    finally:
        await supervisor.close()
    assert isinstance(failed, LoadFailed)
    assert "architecture 'fake'" in failed.error.message
    assert [path.name for path in home.derived.iterdir() if path.is_dir()] == []
