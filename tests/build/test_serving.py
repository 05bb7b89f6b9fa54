"""What a model brings takes effect when it is served: the plan, the route, and the request at the worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import UnsupportedRequest
from homelab_llm.core.facts import ModelDefaults, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import RegistryState, register
from homelab_llm.core.routing import Opening, opening_of
from homelab_llm.gateway.dialects.openai import open_with, parse_chat, parse_completion, preset
from homelab_llm.inference.controller.router import target_of
from homelab_llm.inference.controller.snapshot import Snapshot
from homelab_llm.inference.engines.base import EngineOptions, ModelOptions
from homelab_llm.inference.fleet.planner import Planner
from homelab_llm.store.build.create import create
from homelab_llm.store.build.spec import ModelSpec
from homelab_llm.store.model_store import ModelStore
from homelab_llm.testing.adapters import write_gguf_adapter
from homelab_llm.testing.engines import FakeEngine

pytestmark = pytest.mark.requirement("R-M6")

TEMPLATE = "{{ messages[0].content }}"
HONOURS = frozenset({"chat_template", "gguf_adapters"})


def made(store: ModelStore, folder: Path, **said: Any) -> StoredModel:
    return create(store, ModelSpec(**{"base": "tiny:1", **said}), ModelRef.parse("new:1"), base_folder=folder)


def planner(
    folder: Path, engines: list[FakeEngine], chosen: ModelOptions | None = None, prefer: str = "auto"
) -> Planner:
    options = EngineOptions(context_tokens=512, parallel=2)
    return Planner(engines, options, prefer, folder / "derived", lambda _: chosen or ModelOptions())


# --- loading ------------------------------------------------------------------------------------------------------


def test_the_context_of_a_model_stands_between_the_registry_and_the_settings(store: ModelStore, folder: Path) -> None:
    model = made(store, folder, parameters={"num_ctx": 1024})
    engines = [FakeEngine()]
    assert planner(folder, engines)(store.resolve("tiny:1")).context_tokens == 512
    assert planner(folder, engines)(model).context_tokens == 1024
    assert planner(folder, engines, ModelOptions(context_tokens=2048))(model).context_tokens == 2048
    assert planner(folder, engines)(model, 256).context_tokens == 256


def test_the_template_of_a_model_is_a_file_when_it_starts_and_the_registry_goes_first(
    store: ModelStore, folder: Path
) -> None:
    model = made(store, folder, template=TEMPLATE)
    engines = [FakeEngine(honours=HONOURS)]
    planner(folder, engines)(model).launch(folder / "w.http")
    (written,) = (folder / "derived" / "templates").iterdir()
    assert written.read_text() == TEMPLATE
    planner(folder, engines, ModelOptions(chat_template=TEMPLATE + "!"))(model).launch(folder / "w.http")
    assert {path.read_text() for path in written.parent.iterdir()} == {TEMPLATE, TEMPLATE + "!"}


def test_the_template_of_a_model_is_never_taken_for_a_path(store: ModelStore, folder: Path) -> None:
    (folder / "secret").write_text("secret")
    text, tiny = str(folder / "secret"), store.resolve("tiny:1")
    facts = replace(tiny.facts, chat_template=text)
    model = replace(tiny, facts=facts, defaults=ModelDefaults(template=text))
    planner(folder, [FakeEngine(honours=HONOURS)])(model).launch(folder / "w.http")
    (written,) = (folder / "derived" / "templates").iterdir()
    assert written.read_text() == text


def test_an_engine_that_loads_the_adapter_is_chosen_before_one_that_does_not(store: ModelStore, folder: Path) -> None:
    lora = write_gguf_adapter(folder / "l.gguf", folder / "tiny.gguf", tensors=("token_embd.weight",))
    model = made(store, folder, adapters=("./l.gguf",))
    deaf, able = FakeEngine(name="deaf", honours=frozenset()), FakeEngine(name="able", honours=HONOURS)
    planned = planner(folder, [deaf, able])(model)
    assert planned.engine == "able"
    plain = planner(folder, [able])(store.resolve("tiny:1"))
    assert planned.demand.footprint_bytes == plain.demand.footprint_bytes + lora.stat().st_size
    with pytest.raises(UnsupportedRequest) as refused:
        planner(folder, [deaf, able], prefer="deaf")(model)
    assert refused.value.facts["engines"] == ["able"]
    assert refused.value.hint == "mlxctl registry set new:1 engine=able"


@pytest.mark.parametrize(
    ("defaults", "hint"),
    [
        (ModelDefaults(adapters=("adapters/0",)), "mlxctl fuse"),
        (ModelDefaults(tool_call_parser="hermes"), "--spec"),
        (ModelDefaults(adapters=("adapters/9/x.gguf",)), "--files"),
    ],
)
def test_what_no_engine_here_does_is_refused_with_the_way_out(
    store: ModelStore, folder: Path, defaults: ModelDefaults, hint: str
) -> None:
    tiny = store.resolve("tiny:1")
    files = {**tiny.files, "adapters/0/adapter_model.safetensors": folder / "tiny.gguf"}
    with pytest.raises(UnsupportedRequest) as refused:
        planner(folder, [FakeEngine(honours=HONOURS)])(replace(tiny, files=files, defaults=defaults))
    assert hint in refused.value.hint


# --- requests -----------------------------------------------------------------------------------------------------


def test_a_request_goes_before_the_registry_and_the_registry_before_the_model(store: ModelStore, folder: Path) -> None:
    model = made(store, folder, parameters={"temperature": 0.1, "top_k": 1, "seed": 1, "num_ctx": 64}, stop=("S",))
    entry = Entry("new", "new:1", request_params={"temperature": 0.2, "top_k": 2, "stop": "R"})
    target = target_of(model, Snapshot.of(register(RegistryState(), entry)))
    body = parse_chat({"model": "new:1", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.3}).body
    preset(body, target.params, target.max_output_tokens, chat=True)
    assert target.opening is not None
    open_with(body, target.opening, chat=True)
    assert {name: body[name] for name in ("temperature", "top_k", "seed", "stop")} == {
        "temperature": 0.3,
        "top_k": 2,
        "seed": 1,
        "stop": ["R", "S"],
    }
    assert "num_ctx" not in body


def test_a_model_without_defaults_has_nothing_to_apply(store: ModelStore) -> None:
    target = target_of(store.resolve("tiny:1"), Snapshot())
    assert (target.opening, dict(target.params)) == (None, {})


SYSTEM = {"role": "system", "content": "mine"}
EXAMPLE = {"role": "assistant", "content": "example"}
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("given_messages", "opening", "sent"),
    [
        ([USER], Opening("own"), [{"role": "system", "content": "own"}, USER]),
        ([SYSTEM, USER], Opening("own"), [SYSTEM, USER]),
        ([USER, SYSTEM, USER], Opening("own"), [USER, SYSTEM, USER]),
        ([USER], Opening(messages=(EXAMPLE,)), [EXAMPLE, USER]),
        ([SYSTEM, USER], Opening("own", (EXAMPLE,)), [SYSTEM, EXAMPLE, USER]),
        ([SYSTEM], Opening("own", (EXAMPLE,)), [SYSTEM, EXAMPLE]),
        ([USER], Opening(stop=("x",)), [USER]),
    ],
)
def test_what_a_model_puts_before_a_conversation(
    given_messages: list[dict[str, str]], opening: Opening, sent: list[dict[str, str]]
) -> None:
    before = [dict(message) for message in given_messages]
    body = parse_chat({"model": "m", "messages": given_messages}).body
    open_with(body, opening, chat=True)
    assert body["messages"] == sent
    assert given_messages == before, "the request's own list stays as it is"


@given(
    st.none() | st.text(min_size=1, max_size=4) | st.lists(st.text(min_size=1, max_size=4), max_size=4),
    st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4).map(tuple),
)
def test_the_stop_words_of_a_model_are_added_to_those_of_any_request(asked: Any, own: tuple[str, ...]) -> None:
    request = {"model": "m", "prompt": "p"} | ({"stop": asked} if asked is not None else {})
    body = parse_completion(request).body
    open_with(body, Opening("system", (EXAMPLE,), own), chat=False)
    wanted = [asked] if isinstance(asked, str) else asked or []
    assert set(body["stop"]) == {*wanted, *own}
    assert len(body["stop"]) == len(set(body["stop"]))
    assert body["prompt"] == "p"


def test_what_another_runtime_left_in_a_pulled_model_does_not_break_it(store: ModelStore, folder: Path) -> None:
    left = {"num_gpu": 99, "temperature": "hot", "num_predict": 7, "stop": "x", "num_ctx": 0}
    strange = ({"content": "no role"}, {"role": "tool", "content": "x"})
    model = replace(store.resolve("tiny:1"), defaults=ModelDefaults(parameters=left, messages=strange))
    assert dict(target_of(model, Snapshot()).params) == {"max_tokens": 7}
    assert opening_of(model) == Opening(stop=("x",))
    assert planner(folder, [FakeEngine()])(model).context_tokens == 512
