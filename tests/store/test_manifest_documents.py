from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import InvalidName, StoreDamaged
from homelab_llm.core.facts import ModelFacts
from homelab_llm.store.file_names import check_file_names
from homelab_llm.store.manifests import Layer, encode_config, encode_manifest, parse_manifest, references

FILE = Path("manifest")
FACTS = ModelFacts(
    format="gguf",
    architecture="llama",
    size_bytes=98_362_432,
    parameters=134_515_008,
    quantization="Q4_1",
    licence="apache-2.0",
    chat_template="{{ messages }}",
    capabilities=("chat", "tools"),
)
LAYERS = (
    Layer("LICENSE", Digest.of(b"l"), 1),
    Layer("config.json", Digest.of(b"c"), 1),
    Layer("model.gguf", Digest.of(b"m"), 5),
)


def encoded(facts: ModelFacts = FACTS) -> bytes:
    return encode_manifest(LAYERS, encode_config(LAYERS, facts), facts, "hf:org/x@1")


@pytest.mark.requirement("R-M1")
def test_the_manifest_is_an_oci_image_manifest_with_modelpack_types() -> None:
    config = encode_config(LAYERS, FACTS)
    document = json.loads(encode_manifest(LAYERS, config, FACTS, "hf:org/x@1"))
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert document["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert document["config"] == {
        "mediaType": "application/vnd.cncf.model.config.v1+json",
        "digest": str(Digest.of(config)),
        "size": len(config),
    }
    assert [(layer["mediaType"].split(".v1.")[0].removeprefix("application/vnd.cncf.model."), layer["annotations"])
            for layer in document["layers"]] == [
        ("doc", {"org.cncf.model.filepath": "LICENSE"}),
        ("weight.config", {"org.cncf.model.filepath": "config.json"}),
        ("weight", {"org.cncf.model.filepath": "model.gguf"}),
    ]  # fmt: skip
    assert all(isinstance(value, str) for value in document["annotations"].values())


@pytest.mark.requirement("R-M1")
def test_the_configuration_has_the_keys_of_modelpack_and_no_other() -> None:
    document = json.loads(encode_config(LAYERS, FACTS))
    assert document == {
        "descriptor": {"family": "llama", "licenses": ["apache-2.0"]},
        "config": {
            "architecture": "transformer",
            "format": "gguf",
            "paramSize": "135m",
            "quantization": "Q4_1",
            "capabilities": {
                "inputTypes": ["text"],
                "outputTypes": ["text"],
                "reasoning": False,
                "toolUsage": True,
            },
        },
        "modelfs": {"type": "layers", "diffIds": [str(layer.digest) for layer in LAYERS]},
    }


@pytest.mark.parametrize(
    ("parameters", "written"),
    [(0, None), (999, "999"), (135_000_000, "135m"), (6_738_415_616, "6.74b"), (10**12, "1t")],
)
def test_the_size_is_written_as_modelpack_writes_it(parameters: int, written: str | None) -> None:
    facts = ModelFacts(format="mlx", architecture="x", size_bytes=1, parameters=parameters)
    document = json.loads(encode_config(LAYERS, facts))
    assert document["config"].get("paramSize") == written
    assert document["config"]["format"] == "safetensors"


words = st.text(max_size=30)
counts = st.integers(0, 2**60)


@given(
    st.builds(
        ModelFacts,
        format=st.sampled_from(["gguf", "safetensors", "mlx"]),
        architecture=words,
        size_bytes=counts,
        parameters=counts,
        quantization=words,
        licence=words,
        chat_template=st.text(),
        template_knows_tools=st.booleans(),
        capabilities=st.lists(st.sampled_from(["chat", "embedding", "vision"])).map(tuple),
    ),
    st.text(max_size=100),
)
def test_a_manifest_reads_back_as_it_was_written(facts: ModelFacts, source: str) -> None:
    config = encode_config(LAYERS, facts)
    content = encode_manifest(LAYERS, config, facts, source)
    manifest = parse_manifest(content, Digest.of(content), FILE)
    assert (manifest.layers, manifest.facts, manifest.source) == (LAYERS, facts, source)
    assert manifest.config == Digest.of(config)
    assert manifest.size_bytes == 7
    assert references(content, Digest.of(content), FILE).blobs == {
        manifest.config,
        *(layer.digest for layer in LAYERS),
    }


def test_other_bytes_than_the_digest_says_are_refused() -> None:
    with pytest.raises(StoreDamaged) as caught:
        parse_manifest(encoded() + b" ", Digest.of(encoded()), FILE)
    assert "changed" in caught.value.message


def changed(path: list[str | int], value: Any) -> bytes:
    document = json.loads(encoded())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(document).encode()


FACTS_KEY = "homelab-llm.facts+json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"layers":' * 100_000,
        changed(["layers"], []),
        changed(["layers"], {}),
        changed(["layers", 0], 5),
        changed(["layers", 0, "size"], -1),
        changed(["layers", 0, "size"], "1"),
        changed(["layers", 0, "size"], True),
        changed(["layers", 0, "digest"], "sha256:../../x"),
        changed(["layers", 0, "annotations"], None),
        changed(["layers", 0, "annotations", "org.cncf.model.filepath"], "../../evil"),
        changed(["layers", 0, "annotations", "org.cncf.model.filepath"], 5),
        changed(["layers", 1, "annotations", "org.cncf.model.filepath"], "license"),
        changed(["config"], None),
        changed(["annotations"], []),
        changed(["annotations", FACTS_KEY], "{}"),
        changed(["annotations", FACTS_KEY], "[1"),
        changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"size_bytes": "1"})),
        changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"layers": -1})),
        changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"layers": True})),
        changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"architecture": None})),
        changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"capabilities": [1]})),
        changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"capabilities": 1})),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_document_that_is_no_manifest_of_a_model_is_a_typed_error(content: bytes) -> None:
    with pytest.raises(StoreDamaged):
        parse_manifest(content, Digest.of(content), FILE)


def test_facts_of_a_newer_version_are_read_without_what_this_one_does_not_know() -> None:
    content = changed(["annotations", FACTS_KEY], json.dumps(FACTS.as_dict() | {"new_in_version_9": [1]}))
    assert parse_manifest(content, Digest.of(content), FILE).facts == FACTS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["config", "layers", "manifests", "digest", "annotations", "size"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(json_values)
def test_no_json_brings_another_error_than_store_damaged(document: Any) -> None:
    content = json.dumps(document).encode()
    with pytest.raises(StoreDamaged):
        parse_manifest(content, Digest.of(content), FILE)
    try:
        found = references(content, Digest.of(content), FILE)
    except StoreDamaged:
        return
    assert found.blobs | found.documents == frozenset()


@given(st.text(max_size=40))
@pytest.mark.requirement("R-S1")
def test_a_file_name_that_is_accepted_stays_inside_its_folder(name: str) -> None:
    try:
        check_file_names([name])
    except InvalidName:
        return
    folder = Path("/nowhere/at/all")
    assert not name.startswith("/")
    assert ".." not in name.split("/")
    assert (folder / name).is_relative_to(folder)
    assert len((folder / name).parts) == len(folder.parts) + name.count("/") + 1


def annotated(name: str, value: Any) -> bytes:
    return changed(["annotations", f"homelab-llm.{name}+json"], json.dumps(value))


@pytest.mark.parametrize(
    "content",
    [
        annotated("provenance", {"action": "create", "created_unix_s": 1e300}),
        annotated("provenance", {"action": "create", "created_unix_s": float("nan")}),
        annotated("provenance", {"action": "create", "created_unix_s": -1e300}),
        annotated("provenance", {"action": "create", "measured": {"x": 10**400}}),
        annotated("facts", {**FACTS.as_dict(), "size_bytes": 10**400}),
        annotated("defaults", {"system": "\ud800"}),
        annotated("defaults", {"messages": [{"role": "user", "content": "\udc00"}]}),
    ],
)
@pytest.mark.requirement("R-S1")
def test_numbers_and_texts_that_no_program_can_show_are_refused(content: bytes) -> None:
    with pytest.raises(StoreDamaged):
        parse_manifest(content, Digest.of(content), FILE)
