"""OpenAI's own Python client, unchanged, against the front door and fake engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

if TYPE_CHECKING:
    from tests.gateway.conftest import Door

FAKE = "fake:latest"


def say(text: str) -> list[Any]:
    return [ChatCompletionUserMessageParam(role="user", content=text)]


@pytest.fixture
async def client(door: Door) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.mark.requirement("R-G1", "R-G2", "R-I3")
async def test_a_chat_answers_with_text_finish_reason_and_usage(client: openai.AsyncOpenAI, door: Door) -> None:
    reply = await client.chat.completions.create(model=FAKE, messages=say("fake: tokens=3"))
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.content == "tok0 tok1 tok2"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3
    assert [(row.status, row.completion_tokens, row.model) for row in door.rows.rows] == [(200, 3, FAKE)]


@pytest.mark.requirement("R-G2", "R-I3")
async def test_a_stream_has_no_event_that_the_client_did_not_ask_for(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=FAKE, messages=say("fake: tokens=40"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).split()[-1] == "tok39"
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert all("prompt_progress" not in (chunk.model_extra or {}) for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.requirement("R-G2", "R-I3")
async def test_a_stream_ends_with_usage_when_asked_for(client: openai.AsyncOpenAI, door: Door) -> None:
    stream = await client.chat.completions.create(
        model=FAKE, messages=say("fake: tokens=5"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert door.rows.rows[0].completion_tokens == 5
    assert door.rows.rows[0].first_token_ms > 0


@pytest.mark.requirement("R-I3", "R-G2")
@pytest.mark.parametrize("stream", [False, True])
async def test_several_answers_come_from_one_lease_each_with_its_index(
    client: openai.AsyncOpenAI, door: Door, stream: bool
) -> None:
    given: dict[str, Any] = {"model": FAKE, "messages": say("fake: tokens=4"), "n": 3, "seed": 7}
    if stream:
        chunks = [chunk async for chunk in await client.chat.completions.create(**given, stream=True)]
        texts = ["", "", ""]
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert len({chunk.id for chunk in chunks}) == 1
    else:
        reply = await client.chat.completions.create(**given)
        texts = [choice.message.content or "" for choice in reply.choices]
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage is not None
        assert (reply.usage.completion_tokens, reply.usage.prompt_tokens) == (12, 2)
    assert texts == ["tok0 tok1 tok2 tok3"] * 3
    assert len(door.fleet.granted) == 1
    assert door.fleet.worker.stats()["overcommitted"] == 0


@pytest.mark.requirement("R-G2", "R-I3")
async def test_a_text_completion_takes_several_prompts(client: openai.AsyncOpenAI) -> None:
    reply = await client.completions.create(model=FAKE, prompt=["fake: tokens=1", "fake: tokens=2"])
    assert [choice.text for choice in reply.choices] == ["tok0", "tok0 tok1"]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 4
    assert reply.object == "text_completion"


@pytest.mark.requirement("R-G2")
async def test_a_text_completion_streams(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model=FAKE, prompt="fake: tokens=3", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "tok0 tok1 tok2"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.requirement("R-G2")
async def test_embeddings_come_back_one_for_each_text(client: openai.AsyncOpenAI, door: Door) -> None:
    reply = await client.embeddings.create(model="embedder:latest", input=["one", "two words"])
    assert [len(item.embedding) for item in reply.data] == [8, 8]
    plain = await client.embeddings.create(model="embedder:latest", input="one", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(reply.data[0].embedding, abs=1e-6)
    assert door.rows.rows[0].prompt_tokens == 3


@pytest.mark.requirement("R-G1", "R-G2")
async def test_models_are_listed_and_found_by_id(client: openai.AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == [FAKE, "embedder:latest"]
    assert (await client.models.retrieve(FAKE)).id == FAKE


@pytest.mark.requirement("R-G3", "R-G2")
async def test_errors_become_the_clients_own_classes(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="fake:late", messages=say("hi"))
    assert missing.value.code == "model_not_found"
    assert "fake:latest" in str(missing.value.body)
    with pytest.raises(openai.BadRequestError) as long:
        await client.chat.completions.create(model=FAKE, messages=say("word " * 5000))
    assert long.value.code == "context_overflow"
    assert isinstance(long.value.body, dict)
    assert long.value.body["facts"] == {"prompt_tokens": 5000, "context_tokens": 4096}


@pytest.mark.requirement("R-G3", "R-G2")
async def test_an_error_in_mid_stream_is_an_exception_of_the_client_never_text(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=FAKE, messages=say("fake: tokens=9 error_at=4 coalesce=1"), stream=True
    )
    text = ""
    with pytest.raises(openai.APIError) as caught:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "tok0 tok1 tok2 tok3"
    assert caught.value.code == "engine_error"
