"""The real SmolLM2 on MLX: right answers, and the same ones as llama.cpp where both are certain."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

QUESTION = "What is the capital of France? Answer in one sentence."
PROMPTS = ["The capital of France is", "Two plus two is", "Once upon a time", "The sun rises in the"]


async def post(client: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
    async with client.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def greedy(client: aiohttp.ClientSession, prompt: str, tokens: int) -> str:
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    reply = await post(client, "/v1/completions", body)
    return str(reply["choices"][0]["text"])


@pytest.mark.requirement("R-I1")
@pytest.mark.requirement("R-I3")
@pytest.mark.requirement("B-16")
async def test_the_real_model_says_paris_in_the_very_words_it_has_on_llama_cpp(
    smollm2: aiohttp.ClientSession, llama_cpp: aiohttp.ClientSession
) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 12}
    reply = await post(smollm2, "/v1/chat/completions", body)
    said = reply["choices"][0]["message"]["content"]
    other = await post(llama_cpp, "/v1/chat/completions", body)
    assert "Paris" in said
    assert said == other["choices"][0]["message"]["content"]
    assert reply["choices"][0]["finish_reason"] == other["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == other["usage"]
    assert reply["model"] == "smollm2:135m"


@pytest.mark.requirement("R-I4")
async def test_four_requests_in_one_batch_get_what_each_gets_alone(smollm2: aiohttp.ClientSession) -> None:
    alone = [await greedy(smollm2, prompt, 4) for prompt in PROMPTS]
    together = await asyncio.gather(*(greedy(smollm2, prompt, 4) for prompt in PROMPTS))
    assert list(together) == alone
    assert len(set(alone)) == len(PROMPTS)
