"""Models made from specs: the same blobs, what was said as defaults, where it came from; or nothing at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from homelab_llm import __version__
from homelab_llm.core.errors import Cancelled, HomelabError
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.build import create as create_module
from homelab_llm.store.build.create import FAILPOINTS, create, spec_of
from homelab_llm.store.build.modelspec import parse_modelspec, write_modelspec
from homelab_llm.store.build.spec import ModelSpec
from homelab_llm.store.layout import FAILPOINTS as STORE_FAILPOINTS
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.push import push
from homelab_llm.store.scan import scan
from homelab_llm.testing.adapters import write_gguf_adapter
from homelab_llm.testing.registries import Registry

pytestmark = pytest.mark.requirement("R-M6")

NEW = ModelRef.parse("new:1")
JINJA = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
GO = "{{ if .System }}<s>{{ .System }}</s>{{ end }}{{ .Prompt }}"


def blobs(store: ModelStore) -> set[str]:
    return {path.name for path in (store.root / "blobs" / "sha256").iterdir()}


def make(store: ModelStore, folder: Path, **said: Any) -> StoredModel:
    return create(store, ModelSpec(**{"base": "tiny:1", **said}), NEW, base_folder=folder)


def tiny_adapter(folder: Path, name: str = "lora.gguf", **said: Any) -> Path:
    return write_gguf_adapter(folder / name, folder / "tiny.gguf", tensors=("token_embd.weight",), **said)


def test_a_model_shares_every_blob_of_its_base_and_keeps_what_was_said(store: ModelStore, folder: Path) -> None:
    base, before = store.resolve("tiny:1"), blobs(store)
    model = make(
        store,
        folder,
        system="Be brief.",
        parameters={"temperature": 0.5, "num_ctx": 512},
        stop=("END",),
        messages=({"role": "user", "content": "hi"},),
        metadata={"author": "me"},
        requires=f"homelab-llm>={__version__}",
    )
    assert dict(model.files) == dict(base.files)
    assert len(blobs(store) - before) == 1, "only a manifest; the configuration is the same"
    assert model.facts == base.facts
    assert model.defaults.parameters == {"temperature": 0.5, "num_ctx": 512, "stop": ["END"]}
    assert (model.defaults.system, model.defaults.metadata) == ("Be brief.", {"author": "me"})
    made = model.provenance
    assert (made.base, made.base_digest, made.action) == ("tiny:1", str(base.digest), "create")
    assert made.tool == f"homelab-llm {__version__}"
    assert made.created_unix_s == pytest.approx(model.created_unix_s, abs=60)
    store.remove(ModelRef.parse("tiny:1"))
    assert store.prune().blobs == 0
    assert store.resolve("new:1") == model


def test_a_model_made_of_a_made_one_inherits_what_it_does_not_say_anew(store: ModelStore, folder: Path) -> None:
    make(store, folder, system="A", parameters={"top_k": 1, "seed": 2}, stop=("x",), template=GO)
    again = create(store, ModelSpec("new:1", system="B", parameters={"top_k": 3}), ModelRef.parse("newer"))
    assert again.defaults.parameters == {"top_k": 3, "seed": 2, "stop": ["x"]}
    assert (again.defaults.system, again.defaults.go_template) == ("B", GO)
    own = create(store, ModelSpec("newer", template=JINJA), ModelRef.parse("newest"))
    assert (own.defaults.template, own.defaults.go_template) == (JINJA, "")


def test_a_base_may_be_a_file_beside_the_spec(store: ModelStore, folder: Path) -> None:
    store.remove(ModelRef.parse("tiny:1"))
    seen: list[JobProgress] = []
    model = create(store, ModelSpec("./tiny.gguf"), NEW, progress=seen.append, base_folder=folder)
    assert model.provenance.base == "file:tiny.gguf"
    assert [store_model.name for store_model in store.models()] == ["new:1"]
    assert {"hashing", "storing", "done"} <= {step.stage for step in seen}


def test_a_template_replaces_the_files_own_and_the_facts_follow_it(store: ModelStore, folder: Path) -> None:
    (folder / "own.jinja").write_text(JINJA + "{% if tools %}{{ tools }}{% endif %}")
    model = make(store, folder, template="./own.jinja")
    assert model.facts.template_knows_tools
    assert "tools" in model.facts.capabilities
    assert model.facts.chat_template == (folder / "own.jinja").read_text()
    named = make(store, folder, template="chatml")
    assert "<|im_start|>" in named.facts.chat_template
    go = make(store, folder, template=GO)
    assert go.defaults.go_template == GO
    assert "messages" in go.facts.chat_template


def test_a_licence_is_a_word_a_text_or_a_file(store: ModelStore, folder: Path) -> None:
    assert make(store, folder, licence="mit").facts.licence == "mit"
    text = make(store, folder, licence="My Own Licence\n\nDo what you like.")
    assert text.facts.licence == "My Own Licence"
    assert text.files["LICENSE"].read_text().endswith("like.")
    (folder / "L.txt").write_text("Other Licence\n")
    again = create(store, ModelSpec("new:1", licence="./L.txt"), NEW, base_folder=folder)
    assert (again.facts.licence, again.files["LICENSE"].read_text()) == ("Other Licence", "Other Licence\n")


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_gguf_adapter_becomes_a_file_of_the_model_once(store: ModelStore, folder: Path, as_folder: bool) -> None:
    path = tiny_adapter(folder)
    if as_folder:
        (folder / "lora").mkdir()
        path = path.rename(folder / "lora" / "x.gguf").parent
    model = make(store, folder, adapters=(f"./{path.name}",))
    assert model.defaults.adapters == ("adapters/0/adapter.gguf",)
    assert list(model.adapter_files("adapters/0/adapter.gguf")) == ["adapter.gguf"]
    assert "adapters/0/adapter.gguf" not in model.own_files
    assert scan(model).ok
    again = create(store, ModelSpec("new:1", adapters=("new:1",)), ModelRef.parse("again"))
    assert again.defaults.adapters == model.defaults.adapters, "the same adapter is not applied twice"
    other = tiny_adapter(folder, "other.gguf", seed=2)
    both = create(store, ModelSpec("new:1", adapters=(str(other),)), ModelRef.parse("both"))
    assert both.defaults.adapters == ("adapters/0/adapter.gguf", "adapters/1/adapter.gguf")


def peft(folder: Path, *, target: str = "layers.0.q", rank: int = 2, **config: Any) -> Path:
    adapter = folder / "peft"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4} | config))
    name = f"base_model.model.{target}.lora_"
    numbers = {f"{name}A.weight": numpy.ones((rank, 8), "f4"), f"{name}B.weight": numpy.ones((16, rank), "f4")}
    save_file(numbers, adapter / "adapter_model.safetensors")
    return adapter


@pytest.fixture
def hf_base(store: ModelStore, folder: Path) -> str:
    model = folder / "hf"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    weights = {"layers.0.q.weight": numpy.ones((16, 8), "f4"), "lm_head.weight": numpy.ones((4, 8), "f4")}
    save_file(weights, model / "model.safetensors")
    store.import_path(model, ModelRef.parse("hf:1".replace("hf", "base")))
    return "base:1"


def test_a_peft_adapter_becomes_a_folder_of_the_model(store: ModelStore, folder: Path, hf_base: str) -> None:
    peft(folder)
    model = make(store, folder, base=hf_base, adapters=("./peft",))
    assert model.defaults.adapters == ("adapters/0",)
    assert set(model.adapter_files("adapters/0")) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target": "layers.1.q"}, "another model"),
        ({"target": "lm_head"}, "does not fit"),
        ({"r": 0}, "no rank"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"bias": "all"}, "biases"),
        ({"auto_mapping": {"x": "y"}, "auto_map": {"AutoModel": "code.py"}}, ""),
    ],
)
def test_a_peft_adapter_that_does_not_belong_to_the_base_is_refused(
    store: ModelStore, folder: Path, hf_base: str, config: dict[str, Any], said: str
) -> None:
    peft(folder, **config)
    with pytest.raises(HomelabError) as refused:
        make(store, folder, base=hf_base, adapters=("./peft",))
    assert refused.value.code in ("bad_model_file", "unsafe_model")
    assert said in refused.value.message


BAD: list[tuple[dict[str, Any], str]] = [
    ({"base": "nowhere:1"}, "model_not_found"),
    ({"base": "hf:"}, "invalid_input"),
    ({"base": "./nothing.gguf"}, "bad_model_file"),
    ({"base": "../../etc/passwd"}, "bad_model_file"),
    ({"base": "tiny:1", "revision": "main"}, "invalid_model_spec"),
    ({"quantization": "Q8_0"}, "unsupported_request"),
    ({"requires": "homelab-llm>=99"}, "invalid_model_spec"),
    ({"template": "chatm"}, "invalid_template"),
    ({"template": "says no\nmessage"}, "invalid_template"),
    ({"template": "{{ messages "}, "invalid_template"),
    ({"template": "{{ ''.__class__ }}"}, "invalid_template"),
    ({"template": "{{ .System "}, "invalid_template"),
    ({"template": "./no.jinja"}, "not_regular_file"),
    ({"template": "/etc/passwd"}, "invalid_model_spec"),
    ({"licence": "../secret"}, "invalid_model_spec"),
    ({"licence": "./fifo"}, "not_regular_file"),
    ({"adapters": ("./nothing.gguf",)}, "bad_model_file"),
    ({"adapters": ("./tiny.gguf",)}, "bad_model_file"),
    ({"adapters": ("tiny:1",)}, "bad_model_file"),
    ({"adapters": ("./pickle",)}, "unsafe_model"),
    ({"adapters": ("./other.gguf",)}, "bad_model_file"),
    ({"adapters": ("./misfit.gguf",)}, "bad_model_file"),
    ({"adapters": ("./cut.gguf",)}, "bad_model_file"),
    ({"adapters": ("./peft",)}, "bad_model_file"),
]


@pytest.mark.parametrize(("said", "code"), BAD, ids=[str(case) for case, _ in BAD])
def test_what_cannot_be_made_is_an_error_each_and_nothing_is_written(
    store: ModelStore, folder: Path, said: dict[str, Any], code: str
) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "pickle").mkdir()
    (folder / "pickle" / "adapter_model.bin").write_bytes(b"x")
    tiny_adapter(folder, "other.gguf", architecture="qwen2")
    write_gguf_adapter(folder / "misfit.gguf", folder / "other.gguf", tensors=("lora_a", "lora_b"), architecture="fake")
    (folder / "cut.gguf").write_bytes(tiny_adapter(folder, "whole.gguf").read_bytes()[:-64])
    peft(folder)
    before = blobs(store)
    with pytest.raises(HomelabError) as refused:
        make(store, folder, **said)
    assert refused.value.code == code, refused.value.message
    assert [model.name for model in store.models()] == ["tiny:1"]
    store.prune()
    assert blobs(store) == before


def test_another_quantization_is_asked_for_with_the_command_to_run_first(store: ModelStore, folder: Path) -> None:
    assert make(store, folder, quantization="f32").name == "new:1", "it has that already"
    with pytest.raises(HomelabError) as refused:
        make(store, folder, quantization="Q4_0")
    assert "mlxctl quantize tiny:1 NEW-NAME q4_0" in refused.value.hint


def test_a_spec_that_is_shown_makes_the_same_model_again(store: ModelStore, folder: Path) -> None:
    adapter = tiny_adapter(folder)
    model = make(
        store,
        folder,
        system="A\n  B\n",
        template=GO,
        stop=("x",),
        parameters={"min_p": 0.1},
        messages=({"role": "assistant", "content": "hi"},),
        adapters=(str(adapter),),
        licence="L\nM",
        metadata={"a": "b"},
    )
    spec = spec_of(model)
    again = create(store, parse_modelspec(write_modelspec(spec).encode()), ModelRef.parse("again"))
    assert replace(again.defaults, go_template=GO) == model.defaults
    assert (again.files, again.facts) == (model.files, model.facts)
    assert spec_of(store.resolve("tiny:1")) == ModelSpec("tiny:1", licence="apache-2.0")


@pytest.mark.requirement("R-M7")
def test_a_made_model_is_the_same_one_after_a_push_and_a_pull(store: ModelStore, folder: Path) -> None:
    adapter = tiny_adapter(folder)
    said: dict[str, Any] = {"system": "A", "template": GO, "stop": ("x",), "parameters": {"num_ctx": 64}}
    model = make(store, folder, adapters=(str(adapter),), licence="L\nM", metadata={"a": "b"}, **said)
    settings = PullSettings(free_floor_bytes=0, environ={"HOME": str(folder)})
    with Registry() as registry:
        target = f"oci://{registry.host}/made/new:1"
        push(store, "new:1", target, settings=settings)
        pulled = pull(ModelStore(folder / "other"), target, settings=settings)
    assert (pulled.digest, pulled.defaults, pulled.provenance) == (model.digest, model.defaults, model.provenance)
    assert pulled.facts == model.facts


def test_whoever_watches_can_call_it_off(store: ModelStore, folder: Path) -> None:
    def stop(progress: JobProgress) -> None:
        if progress.stage == "storing":
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        create(store, ModelSpec("./tiny.gguf", licence="L\nM"), NEW, progress=stop, base_folder=folder)
    assert [model.name for model in store.models()] == ["tiny:1"]
    assert store.prune().blobs == 1, "the licence"


SCENARIO = """
import sys
from pathlib import Path
from homelab_llm.core.names import ModelRef
from homelab_llm.store.build.create import create
from homelab_llm.store.build.spec import ModelSpec
from homelab_llm.store.model_store import ModelStore
folder = Path(sys.argv[1])
spec = ModelSpec("tiny:1", system="A", licence="L\\nM", adapters=("./lora.gguf",))
create(ModelStore(folder / "store"), spec, ModelRef.parse("new:1"), base_folder=folder)
"""


@pytest.mark.parametrize(
    "point", [*FAILPOINTS, *(name for name in STORE_FAILPOINTS if ".add." in name or ".blob." in name)]
)
def test_killed_anywhere_there_is_the_whole_model_or_none(store: ModelStore, folder: Path, point: str) -> None:
    tiny_adapter(folder)
    whole = blobs(store)
    argv = [sys.executable, "-c", SCENARIO, str(folder)]
    killed = subprocess.run(argv, env={**os.environ, "HOMELAB_FAILPOINTS": f"{point}=kill"}, timeout=60, check=False)
    assert killed.returncode == -9 or (point not in FAILPOINTS and killed.returncode == 0), "small files pass fewer"
    names = [model.name for model in ModelStore(store.root).models()]
    assert names in (["tiny:1"], ["new:1", "tiny:1"])
    if names == ["tiny:1"]:
        ModelStore(store.root).prune(keep_partials_s=0)
        assert blobs(store) == whole
    subprocess.run(argv, timeout=60, check=True)
    model = ModelStore(store.root).resolve("new:1")
    assert (model.defaults.system, model.files["LICENSE"].read_text()) == ("A", "L\nM")
    assert model.defaults.adapters == ("adapters/0/adapter.gguf",)


def test_every_failpoint_is_in_the_list() -> None:
    source = Path(create_module.__file__).read_text()
    assert all(f'failpoint("{name}")' in source for name in FAILPOINTS)
    assert source.count('failpoint("') == len(FAILPOINTS)
