"""Pulls from OCI registries: what we pushed comes back bit by bit, what others pushed becomes models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import (
    BadManifest,
    DigestMismatch,
    InvalidInput,
    SourceDenied,
    SourceNotFound,
    SourceUnavailable,
    UnsafeModel,
)
from homelab_llm.core.facts import ModelDefaults, Provenance, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.manifests import FACTS
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.progress import JobProgress
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.push import push
from homelab_llm.testing.artifacts import (
    DOCKER,
    DOCKER_MANIFEST,
    EMPTY,
    FILE_PATH,
    KIT,
    MODELPACK,
    OLLAMA,
    TITLE,
    LayerOf,
    index_of,
    manifest_of,
    ollama_layers,
    put,
    put_manifest,
    tar_of,
)
from homelab_llm.testing.registries import Registry
from homelab_llm.testing.registry_front import FaultyRegistry

Settings = Callable[..., PullSettings]
APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
JINJA = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PACK_CONFIG = LayerOf(f"{MODELPACK}config.v1+json", b'{"config":{"paramSize":"1b"}}')


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


@pytest.fixture
def other(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "other")


@pytest.fixture
def model(store: ModelStore, tmp_path: Path, folder_files: dict[str, bytes]) -> StoredModel:
    """A model of a folder, made here, with everything a manifest can say."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("LICENSE", "config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(folder_files[name])
    imported = store.import_path(folder, ModelRef.parse("org/folder:v1"))
    return store.add(
        ModelRef.parse("org/mine:v1"),
        {name: Digest(path.name) for name, path in imported.files.items()},
        imported.facts,
        source=imported.source,
        defaults=ModelDefaults(system="Be brief.", parameters={"temperature": 0.5}),
        provenance=Provenance(base="org/folder:v1", action="create", tool="homelab-llm 0", created_unix_s=1.5),
    )


def contents(model: StoredModel) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in model.files.items()}


def forget(registry: Registry, *contents: bytes) -> None:
    """Take blobs out of the registry's storage: whoever asks for one gets nothing."""
    for content in contents:
        hexadecimal = Digest.of(content).hex
        path = registry.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
        path.unlink()


@pytest.mark.requirement("R-M2", "R-M4", "R-M6")
def test_what_was_pushed_comes_back_bit_by_bit_and_only_once(
    registry: Registry, store: ModelStore, other: ModelStore, model: StoredModel, settings: Settings
) -> None:
    target = f"oci://{registry.host}/org/mine:v1"
    push(store, "org/mine:v1", target, settings=settings())
    pulled = pull(other, target, settings=settings())
    assert (pulled.name, pulled.digest) == ("org/mine:v1", model.digest)
    assert (pulled.defaults, pulled.provenance, pulled.source) == (model.defaults, model.provenance, model.source)
    assert pulled.pulled_from == f"oci://{registry.host}/org/mine@{model.digest}"
    assert contents(pulled) == contents(model)
    forget(registry, *contents(model).values())
    again = pull(other, pulled.pulled_from, name="again", settings=settings())
    assert again.digest == model.digest


@pytest.mark.requirement("R-S1")
def test_a_manifest_of_ours_that_lies_about_its_files_is_refused(
    registry: Registry, store: ModelStore, other: ModelStore, model: StoredModel, settings: Settings
) -> None:
    files = {name: Digest(path.name) for name, path in model.files.items()}
    lying = replace(model.facts, context_tokens=1_000_000, capabilities=("embedding",))
    store.add(ModelRef.parse("lying"), files, lying, source="file:x")
    push(store, "lying", f"oci://{registry.host}/lying:1", settings=settings())
    with pytest.raises(BadManifest) as caught:
        pull(other, f"oci://{registry.host}/lying:1", settings=settings())
    assert caught.value.facts["fields"] == ["context_tokens", "capabilities"]
    assert other.models() == []


def test_a_manifest_of_another_version_of_ours_is_taken_with_what_it_says(
    registry: Registry, store: ModelStore, other: ModelStore, model: StoredModel, settings: Settings
) -> None:
    push(store, "org/mine:v1", f"oci://{registry.host}/newer:1", settings=settings())
    document = json.loads(store.blobs.path(model.digest).read_bytes())
    facts = json.loads(document["annotations"][FACTS])
    document["annotations"][FACTS] = json.dumps({**facts, "new_fact": 1})
    put_manifest(registry, "newer", "2", json.dumps(document).encode())
    pulled = pull(other, f"oci://{registry.host}/newer:2", settings=settings())
    assert pulled.digest == model.digest, "what is new is not understood, so it is the same model"


@pytest.mark.requirement("R-M2")
def test_modelpack_files_are_named_by_their_annotation(
    registry: Registry, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    def layer(kind: str, path: str) -> LayerOf:
        return LayerOf(f"{MODELPACK}{kind}.v1.raw", folder_files[path], {FILE_PATH: path})

    layers = [
        layer("weight", "model.safetensors"),
        layer("weight.config", "config.json"),
        layer("weight.config", "tokenizer.json"),
        layer("doc", "LICENSE"),
        layer("code", "modeling.py"),
    ]
    digest = put(registry, "pack/folder", "v1", layers, PACK_CONFIG)
    notes: list[JobProgress] = []
    model = pull(store, f"{registry.host}/pack/folder:v1", settings=settings(), progress=notes.append)
    assert model.name == "pack/folder:v1"
    assert model.source == model.pulled_from == f"oci://{registry.host}/pack/folder@{digest}"
    assert contents(model) == {
        name: folder_files[name] for name in ("LICENSE", "config.json", "model.safetensors", "tokenizer.json")
    }
    assert [note.note for note in notes if note.note] == ["code was left out: modeling.py"]


@pytest.mark.requirement("R-M2")
def test_docker_models_of_both_versions(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    config = json.dumps({"config": {"format": "gguf", "context_size": 2048}, "descriptor": {}}).encode()
    first = [
        LayerOf(f"{DOCKER}gguf.v3", gguf_file),
        LayerOf(f"{DOCKER}license", APACHE.encode()),
        LayerOf(f"{DOCKER}mmproj", b"projector"),
        LayerOf(f"{DOCKER}chat.template.jinja", JINJA.encode()),
    ]
    put(registry, "ai/first", "1", first, LayerOf(f"{DOCKER}model.config.v0.1+json", config))
    model = pull(store, f"oci://{registry.host}/ai/first:1", settings=settings())
    assert contents(model) == {"LICENSE": APACHE.encode(), "model.gguf": gguf_file}
    assert (model.defaults.template, dict(model.defaults.parameters)) == (JINJA, {"num_ctx": 2048})
    assert model.facts.licence == "apache-2.0"
    second = [LayerOf(f"{DOCKER}gguf.v3", gguf_file, {FILE_PATH: "tiny-F32.gguf"})]
    put(registry, "ai/second", "1", second, LayerOf(f"{DOCKER}model.config.v0.2+json", b"{}"))
    assert contents(pull(store, f"oci://{registry.host}/ai/second:1", settings=settings())) == {"model.gguf": gguf_file}


@pytest.mark.requirement("R-M2")
@pytest.mark.parametrize("packed", [False, True])
def test_the_files_of_a_kits_tar_become_blobs_of_their_own(
    registry: Registry, store: ModelStore, settings: Settings, folder_files: dict[str, bytes], packed: bool
) -> None:
    form = "tar+gzip" if packed else "tar"
    names = ("config.json", "model.safetensors", "tokenizer.json", "modeling.py")
    weights = tar_of({f"./models/{name}": folder_files[name] for name in names}, packed=packed)
    papers = tar_of({"LICENSE": folder_files["LICENSE"]}, packed=packed)
    layers = [LayerOf(f"{KIT}model.v1.{form}", weights), LayerOf(f"{KIT}docs.v1.{form}", papers)]
    layers.append(LayerOf(f"{KIT}dataset.v1.{form}", tar_of({"rows.csv": b"1"}, packed=packed)))
    kitfile = LayerOf(f"{KIT}config.v1+json", json.dumps({"package": {"license": "mit"}}).encode())
    put(registry, f"kit/{form[-4:]}", "1", layers, kitfile)
    model = pull(store, f"oci://{registry.host}/kit/{form[-4:]}:1", settings=settings())
    wanted = ("LICENSE", "config.json", "model.safetensors", "tokenizer.json")
    assert contents(model) == {name: folder_files[name] for name in wanted}
    assert model.facts.licence == "mit"
    assert not store.blobs.has(Digest.of(weights)), "the tar itself is not kept"
    forget(registry, weights)
    again = pull(store, f"oci://{registry.host}/kit/{form[-4:]}:1", name="again", settings=settings())
    assert again.digest == model.digest, "nothing is fetched twice"
    assert store.prune(keep_partials_s=0).blobs == 0


class _Stop(Exception):
    pass


@pytest.mark.requirement("R-M2")
@pytest.mark.parametrize("stage", ["inspecting", "storing"])
def test_unpacking_ends_when_its_progress_says_so(
    registry: Registry, store: ModelStore, settings: Settings, folder_files: dict[str, bytes], stage: str
) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    layer = LayerOf(f"{KIT}model.v1.tar+gzip", tar_of({name: folder_files[name] for name in names}, packed=True))
    put(registry, "kit/stopped", "1", [layer], LayerOf(f"{KIT}config.v1+json", b"{}"))

    def stop(progress: JobProgress) -> None:
        if progress.stage == stage:
            raise _Stop

    with pytest.raises(_Stop):
        pull(store, f"oci://{registry.host}/kit/stopped:1", settings=settings(), progress=stop)
    assert store.models() == []
    store.prune(keep_partials_s=0)
    assert not list((store.root / "blobs" / "sha256").iterdir()), "nothing is held any more"


@pytest.mark.requirement("R-M2")
def test_weights_as_layers_and_the_rest_in_a_tar_make_one_model(
    registry: Registry, store: ModelStore, settings: Settings, folder_files: dict[str, bytes]
) -> None:
    rest = {name: folder_files[name] for name in ("config.json", "tokenizer.json", "modeling.py")}
    layers = [
        LayerOf(f"{DOCKER}safetensors", folder_files["model.safetensors"]),
        LayerOf(f"{DOCKER}vllm.config.tar", tar_of(rest)),
        LayerOf(f"{DOCKER}license", APACHE.encode()),
    ]
    put(registry, "ai/mixed", "1", layers, LayerOf(f"{DOCKER}model.config.v0.1+json", b"{}"))
    model = pull(store, f"oci://{registry.host}/ai/mixed:1", settings=settings())
    wanted = ("config.json", "model.safetensors", "tokenizer.json")
    assert contents(model) == {name: folder_files[name] for name in wanted}
    assert model.facts.licence == "apache-2.0"


@pytest.mark.requirement("R-M2")
def test_a_gguf_deep_in_a_tar_is_chosen_by_pattern(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    files = {"kit/a-Q4_0.gguf": gguf_file, "kit/a-Q8_0.gguf": b"GGUF", "LICENSE": b"Apache"}
    layer = LayerOf(f"{KIT}modelpart.v1.tar+gzip", tar_of(files, packed=True))
    put(registry, "kit/two", "1", [layer], LayerOf(f"{KIT}config.v1+json", b"{}"))
    with pytest.raises(InvalidInput):
        pull(store, f"oci://{registry.host}/kit/two:1", settings=settings())
    assert store.models() == []
    model = pull(store, f"oci://{registry.host}/kit/two:1", include=["*Q4_0*"], settings=settings())
    assert contents(model) == {"LICENSE": b"Apache", "model.gguf": gguf_file}


@pytest.mark.requirement("R-M2")
def test_plain_artifacts_have_titles(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    layers = [
        LayerOf("application/octet-stream", gguf_file, {TITLE: "tiny-Q4_0.gguf"}),
        LayerOf("application/vnd.oci.image.layer.v1.tar", b"# Card", {TITLE: "README.md"}),
        LayerOf("text/plain", gguf_file[:-4] + b"\1\2\3\4", {TITLE: "tiny-Q8_0.gguf"}),
    ]
    put(registry, "plain", "1", layers, LayerOf("application/vnd.unknown.config.v1+json", b"{}"))
    reference = f"oci://{registry.host}/plain:1"
    with pytest.raises(InvalidInput) as caught:
        pull(store, reference, settings=settings())
    assert caught.value.facts["choices"] == ["tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]
    assert "--include" in caught.value.hint
    model = pull(store, reference, include=["*Q4_0*"], settings=settings())
    assert contents(model) == {"README.md": b"# Card", "model.gguf": gguf_file}


def test_an_index_of_one_artifact_is_followed_once(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    layer, config = LayerOf("x/y", gguf_file, {TITLE: "m.gguf"}), LayerOf(EMPTY, b"{}")
    digest = put(registry, "indexed", "m", [layer], config)
    inner, index = manifest_of([layer], config), index_of(manifest_of([layer], config))
    put_manifest(registry, "indexed", "1", index, json.loads(index)["mediaType"])
    model = pull(store, f"oci://{registry.host}/indexed:1", settings=settings())
    assert model.pulled_from == f"oci://{registry.host}/indexed@{digest}"
    second = put(registry, "indexed", "n", [layer], config, annotations={"a": "b"})
    both = index_of(inner, manifest_of([layer], config, annotations={"a": "b"}))
    put_manifest(registry, "indexed", "2", both, json.loads(index)["mediaType"])
    with pytest.raises(BadManifest) as caught:
        pull(store, f"oci://{registry.host}/indexed:2", settings=settings())
    assert caught.value.facts["choices"] == [str(digest), str(second)]


GO = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"


@pytest.mark.requirement("R-M2", "R-M5")
def test_an_ollama_model_brings_its_defaults(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    layers = ollama_layers(
        gguf_file,
        template=GO,
        system="Be brief.",
        params=json.dumps({"temperature": 0.2, "stop": ["<|im_end|>"], "num_ctx": 1024}),
        messages=json.dumps([{"role": "user", "content": "hi"}]),
        license=APACHE,
        projector="pixels",
    )
    config = LayerOf("application/vnd.docker.container.image.v1+json", b'{"model_format":"gguf"}')
    digest = put(registry, "library/tiny", "1b", layers, config, media_type=DOCKER_MANIFEST)
    notes: list[JobProgress] = []
    model = pull(store, "ollama:tiny:1b", settings=settings(ollama_registry=registry.url), progress=notes.append)
    assert (model.name, model.source) == ("tiny:1b", f"ollama:tiny:1b@{digest}")
    assert contents(model) == {"LICENSE": APACHE.encode(), "model.gguf": gguf_file}
    assert model.defaults.system == "Be brief."
    assert dict(model.defaults.parameters) == {"temperature": 0.2, "stop": ["<|im_end|>"], "num_ctx": 1024}
    assert [dict(message) for message in model.defaults.messages] == [{"role": "user", "content": "hi"}]
    assert "<|im_start|>" in model.defaults.template
    assert (model.defaults.go_template, model.facts.licence) == (GO, "apache-2.0")
    assert any("projector" in note.note for note in notes)
    again = pull(store, model.pulled_from, name="again", settings=settings(ollama_registry=registry.url))
    assert again.digest == model.digest


def test_a_template_that_jinja_cannot_say_is_left_out_with_a_note(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    put(
        registry,
        "me/odd",
        "latest",
        ollama_layers(gguf_file, template="{{ call .Nothing }}"),
        media_type=DOCKER_MANIFEST,
    )
    notes: list[JobProgress] = []
    model = pull(store, f"ollama:{registry.host}/me/odd", settings=settings(), progress=notes.append)
    assert (model.name, model.defaults.template) == ("me/odd:latest", "")
    assert any("Jinja" in note.note for note in notes)


@pytest.mark.parametrize("kind", ["tensor", "json", "draft"])
def test_an_ollama_model_in_tensors_is_refused_with_the_reason(
    registry: Registry, store: ModelStore, settings: Settings, kind: str
) -> None:
    put(registry, "library/mlx", kind, [LayerOf(f"{OLLAMA}{kind}", b"x")], media_type=DOCKER_MANIFEST)
    with pytest.raises(BadManifest) as caught:
        pull(store, f"ollama:mlx:{kind}", settings=settings(ollama_registry=registry.url))
    assert "tensors" in caught.value.message
    assert caught.value.hint


def test_what_is_not_there_is_said(registry: Registry, store: ModelStore, settings: Settings) -> None:
    with pytest.raises(SourceNotFound):
        pull(store, f"oci://{registry.host}/nothing:1", settings=settings())
    with pytest.raises(SourceDenied):
        pull(store, "oci://10.11.12.13:5000/private:1", settings=settings())


BAD_TARS = {
    "../up.gguf": {"../up.gguf": b"x"},
    "absolute": {"/etc/m.gguf": b"x"},
    "case": {"M.gguf": b"x", "m.gguf": b"y"},
    "normal form": {"\u00e9.gguf": b"x", "e\u0301.gguf": b"y"},
    "backslash": {"a\\b.gguf": b"x"},
    "many": {f"{number}.txt": b"" for number in range(10_001)},
}


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("name", BAD_TARS)
def test_a_tar_with_names_that_lead_elsewhere_leaves_nothing(
    registry: Registry, store: ModelStore, settings: Settings, name: str
) -> None:
    layer = LayerOf(f"{KIT}model.v1.tar", tar_of(BAD_TARS[name]))
    put(registry, "bad/tar", "1", [layer], LayerOf(f"{KIT}config.v1+json", b"{}"))
    refused(store, f"oci://{registry.host}/bad/tar:1", settings(), BadManifest)


@pytest.mark.requirement("R-S1")
def test_pickles_and_code_never_come_out_of_a_tar(registry: Registry, store: ModelStore, settings: Settings) -> None:
    layer = LayerOf(f"{KIT}model.v1.tar", tar_of({"pytorch_model.bin": b"\x80", "config.json": b"{}", "m.py": b"x"}))
    put(registry, "bad/pickle", "1", [layer], LayerOf(f"{KIT}config.v1+json", b"{}"))
    refused(store, f"oci://{registry.host}/bad/pickle:1", settings(), UnsafeModel)


@pytest.mark.requirement("R-S1")
def test_a_decompression_bomb_is_stopped(registry: Registry, store: ModelStore, settings: Settings) -> None:
    layer = LayerOf(f"{KIT}model.v1.tar+gzip", tar_of({"model.gguf": bytes(64 << 20)}, packed=True))
    put(registry, "bad/bomb", "1", [layer], LayerOf(f"{KIT}config.v1+json", b"{}"))
    error = refused(store, f"oci://{registry.host}/bad/bomb:1", settings(), BadManifest)
    assert "swells" in error.message


@pytest.mark.requirement("R-S1")
def test_bytes_other_than_promised_are_not_kept(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes
) -> None:
    layer = LayerOf("x/y", gguf_file, {TITLE: "m.gguf"})
    put(registry, "bad/bytes", "1", [layer])
    hexadecimal = Digest.of(gguf_file).hex
    path = registry.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"
    path.write_bytes(b"X" + gguf_file[1:])
    with pytest.raises(DigestMismatch):
        pull(store, f"oci://{registry.host}/bad/bytes:1", settings=settings())
    path.write_bytes(gguf_file)
    assert store.models() == []
    assert not store.blobs.has(Digest.of(gguf_file))


def refused(store: ModelStore, reference: str, settings: PullSettings, kind: type[InvalidInput]) -> InvalidInput:
    """What a pull says that must leave nothing behind."""
    with pytest.raises(kind) as caught:
        pull(store, reference, settings=settings)
    assert store.models() == []
    store.prune(keep_partials_s=0)
    blobs = store.root / "blobs" / "sha256"
    assert not blobs.is_dir() or not list(blobs.iterdir())
    return caught.value


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("ranges", [True, False])
def test_a_layer_that_is_shorter_than_its_manifest_says_is_given_up(
    registry: Registry, store: ModelStore, settings: Settings, gguf_file: bytes, ranges: bool
) -> None:
    layer = LayerOf("x/y", gguf_file, {TITLE: "m.gguf"})
    put(registry, "bad/short", "1", [layer])
    told = json.loads(manifest_of([layer], LayerOf(EMPTY, b"{}")))
    told["layers"][0]["size"] += 5
    with FaultyRegistry(registry) as front:
        kind = {"content-type": "application/vnd.oci.image.manifest.v1+json"}
        front.pages["/v2/bad/short/manifests/1"] = (200, kind, json.dumps(told).encode())
        if not ranges:
            front.pages[f"/v2/bad/short/blobs/{Digest.of(gguf_file)}"] = (200, {}, gguf_file)
        with pytest.raises(SourceUnavailable):
            pull(store, f"oci://{front.host}/bad/short:1", settings=settings())
        assert len(front.seen) < 60
    assert store.models() == []


@pytest.mark.requirement("R-S1")
def test_files_of_all_tars_together_are_counted(registry: Registry, store: ModelStore, settings: Settings) -> None:
    layers = [
        LayerOf(f"{KIT}model.v1.tar", tar_of({f"{first}{number}.txt": b"" for number in range(6_000)}))
        for first in ("a", "b")
    ]
    put(registry, "bad/many", "1", layers, LayerOf(f"{KIT}config.v1+json", b"{}"))
    error = refused(store, f"oci://{registry.host}/bad/many:1", settings(), BadManifest)
    assert "together" in error.message
