"""Manifests from outside: what is wrong with one is said, and nothing of it is believed before."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import BadManifest, HomelabError, InvalidTemplate
from homelab_llm.store.foreign.describe import describe
from homelab_llm.store.foreign.documents import MAX_BLOB_BYTES, MAX_LAYERS, chosen_of_index
from homelab_llm.store.foreign.outline import Contents, Outline
from homelab_llm.store.foreign.settle import licence_of, settle
from homelab_llm.store.foreign.tar_layers import MAX_ENTRIES, list_members, read_members
from homelab_llm.testing.artifacts import (
    DOCKER,
    EMPTY,
    FILE_PATH,
    INDEX,
    KIT,
    MODELPACK,
    OLLAMA,
    TITLE,
    LayerOf,
    index_of,
    manifest_of,
    ollama_layers,
    tar_of,
)

NOTHING = LayerOf(EMPTY, b"{}")
PACK = LayerOf(f"{MODELPACK}config.v1+json", b"{}")
WEIGHT = LayerOf(f"{MODELPACK}weight.v1.raw", b"w", {FILE_PATH: "m.gguf"})
GOOD: dict[str, Any] = json.loads(manifest_of([WEIGHT], PACK))


def changed(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def layer(**fields: Any) -> bytes:
    return changed(layers=[{**GOOD["layers"][0], **fields}])


def pack(*names: str, kind: str = "weight.v1.raw", key: str = FILE_PATH) -> bytes:
    return manifest_of([LayerOf(f"{MODELPACK}{kind}", name.encode(), {key: name}) for name in names], PACK)


BAD: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"\x1f\x8b garbage",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a key twice": b'{"layers": [], "layers": []}',
    "not UTF-8": b'{"layers": "\xff"}',
    "too large": b'{"x": "' + b"a" * (5 << 20) + b'"}',
    "no layers": changed(layers=[]),
    "layers that are none": changed(layers={"a": 1}),
    "schema 1": changed(schemaVersion=1),
    "another kind of document": changed(mediaType="application/vnd.oci.artifact.manifest.v1+json"),
    "an index": index_of(manifest_of([WEIGHT], PACK)),
    "too many layers": changed(layers=GOOD["layers"] * (MAX_LAYERS + 1)),
    "the same layer twice": changed(layers=GOOD["layers"] * 2),
    "two sizes for one digest": changed(layers=[GOOD["layers"][0], {**GOOD["layers"][0], "size": 2}]),
    "no configuration": changed(config=None),
    "a configuration too large": changed(config={**GOOD["config"], "size": 5 << 20}),
    "a negative size": layer(size=-1),
    "a size of text": layer(size="1"),
    "a size that is true": layer(size=True),
    "a size beyond sense": layer(size=MAX_BLOB_BYTES + 1),
    "a size that is a fraction": layer(size=1.5),
    "another algorithm": layer(digest="sha512:" + "a" * 128),
    "upper case": layer(digest="sha256:" + "A" * 64),
    "a digest that is a path": layer(digest="sha256:../../../../etc/passwd"),
    "no media type": layer(mediaType=""),
    "a media type of control characters": layer(mediaType="a\nb"),
    "an unknown media type": layer(mediaType="application/vnd.cncf.model.weight.v9.raw"),
    "zstd": layer(mediaType=f"{MODELPACK}weight.v1.tar+zstd"),
    "annotations that are a list": layer(annotations=[1]),
    "an annotation that is a number": layer(annotations={FILE_PATH: 1}),
    "no name": layer(annotations={}),
    "a traversal": pack("../../m.gguf"),
    "an absolute path": pack("/etc/m.gguf"),
    "a backslash": pack("a\\m.gguf"),
    "a control character": pack("m\x00.gguf"),
    "a title that leads up": pack("../m.gguf", key=TITLE),
    "names that differ by case": pack("M.gguf", "m.gguf"),
    "names that differ by normal form": pack("\u00e9.gguf", "e\u0301.gguf"),
    "a file that is a folder": pack("a", "a/m.gguf"),
    "marks of ours and no facts": changed(annotations={"homelab-llm.facts+json": "{}"}),
    "marks of ours that are not JSON": changed(annotations={"homelab-llm.facts+json": "{"}),
    "only code": pack("m.py", kind="code.v1.raw"),
    "a container image": manifest_of(
        [LayerOf("application/vnd.oci.image.layer.v1.tar+gzip", b"x")],
        LayerOf("application/vnd.oci.image.config.v1+json", b"{}"),
    ),
    "a plain layer without a title": manifest_of([LayerOf("x/y", b"x")], NOTHING),
    "a Docker model of the future": manifest_of([WEIGHT], LayerOf(f"{DOCKER}model.config.v9+json", b"{}")),
    "a Docker layer of the future": manifest_of(
        [LayerOf(f"{DOCKER}gguf.v9", b"x")], LayerOf(f"{DOCKER}model.config.v0.1+json", b"{}")
    ),
    "a diffusion model": manifest_of(
        [LayerOf(f"{DOCKER}dduf", b"x")], LayerOf(f"{DOCKER}model.config.v0.1+json", b"{}")
    ),
    "a kit's layer of the future": manifest_of(
        [LayerOf(f"{KIT}model.v2.tar", b"x")], LayerOf(f"{KIT}config.v1+json", b"{}")
    ),
    "a kit in zstd": manifest_of([LayerOf(f"{KIT}model.v1.tar+zstd", b"x")], LayerOf(f"{KIT}config.v1+json", b"{}")),
    "an Ollama layer of the future": manifest_of([LayerOf(f"{OLLAMA}dream", b"x")], NOTHING),
    "an Ollama model without weights": manifest_of([LayerOf(f"{OLLAMA}system", b"x")], NOTHING),
    "more texts than a model has": manifest_of(
        [LayerOf(f"{OLLAMA}model", b"w")] + [LayerOf(f"{OLLAMA}license", b"%d" % n) for n in range(101)], NOTHING
    ),
    "texts too large together": changed(
        layers=[{**GOOD["layers"][0], "mediaType": f"{OLLAMA}model"}]
        + [{"digest": f"sha256:{n:064x}", "size": 1 << 20, "mediaType": f"{OLLAMA}license"} for n in range(9)]
    ),
    "an Ollama text too large": changed(
        layers=[
            {**GOOD["layers"][0], "mediaType": f"{OLLAMA}model"},
            {"digest": f"sha256:{'1' * 64}", "size": 2 << 20, "mediaType": f"{OLLAMA}system"},
        ]
    ),
}


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("what", BAD)
def test_a_bad_manifest_is_refused_by_one_clear_sentence(what: str) -> None:
    with pytest.raises(BadManifest) as caught:
        describe(BAD[what])
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


def test_the_manifest_they_are_made_of_is_good() -> None:
    assert [part.path for part in describe(changed()).parts] == ["m.gguf"]


@pytest.mark.requirement("R-S1")
def test_an_index_leads_to_one_manifest_and_no_further() -> None:
    one, two = manifest_of([WEIGHT], PACK), manifest_of([WEIGHT], NOTHING)
    assert chosen_of_index(one) is None
    chosen = chosen_of_index(index_of(one, one))
    assert chosen is not None
    assert chosen.digest == Digest.of(one)
    attested = json.loads(index_of(one))
    attested["manifests"].append(
        {**json.loads(index_of(two))["manifests"][0], "annotations": {"vnd.docker.reference.type": "attestation"}}
    )
    chosen = chosen_of_index(json.dumps(attested).encode())
    assert chosen is not None
    assert chosen.digest == Digest.of(one)
    empty = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
    for bad in (index_of(one, two), index_of(one, mediaType=INDEX), index_of(one, size=9 << 20), empty):
        with pytest.raises(BadManifest):
            chosen_of_index(bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    field=st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "annotations", "artifactType"]),
    inner=st.sampled_from(["", "digest", "size", "mediaType", "annotations"]),
    value=JSON,
)
def test_any_value_in_any_place_is_taken_or_refused(field: str, inner: str, value: Any) -> None:
    if inner and field in {"config", "layers"}:
        entry = {**GOOD["layers"][0], inner: value}
        content = changed(**{field: [entry] if field == "layers" else entry})
    else:
        content = changed(**{field: value})
    for read in (describe, chosen_of_index):
        try:
            read(content)
        except BadManifest as error:
            assert error.message


def outline_of(**texts: str) -> tuple[Outline, Contents]:
    outline = describe(manifest_of(ollama_layers(b"w", **texts), NOTHING))
    return outline, {role: (texts["license" if role == "licence" else role].encode(),) for role, _ in outline.texts}


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize(
    "texts",
    [
        {"params": "[]"},
        {"params": "{"},
        {"params": '{"a b": 1}'},
        {"params": '{"stop": [1]}'},
        {"params": '{"x": {"y": 1}}'},
        {"params": json.dumps({f"p{n}": 1 for n in range(101)})},
        {"messages": "{}"},
        {"messages": '[{"role": "root", "content": "x"}]'},
        {"messages": '[{"role": "user", "content": 1}]'},
        {"messages": "[" * 50_000},
        {"messages": '[{"role": "user", "content": "\\ud800"}]'},
        {"params": '{"stop": ["\\ud800"]}'},
    ],
)
def test_defaults_that_are_none_are_refused(texts: dict[str, str]) -> None:
    with pytest.raises(BadManifest):
        settle(*outline_of(**texts), str)


def test_a_text_that_is_not_text_is_refused_and_a_template_that_cannot_be_translated_is_noted() -> None:
    outline, _ = outline_of(system="x")
    with pytest.raises(BadManifest):
        settle(outline, {"system": (b"\xff",)}, str)

    def cannot(_: str) -> str:
        raise InvalidTemplate("line 1: call")

    settled = settle(*outline_of(template="{{ call }}"), cannot)
    assert settled.defaults.template == ""
    assert "line 1: call" in settled.notes[0]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("   Apache License\n  Version 2.0, January 2004", "apache-2.0"),
        ("MIT License\n\nCopyright (c)", "mit"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "llama3.2"),
        ("Gemma Terms of Use\n", "gemma"),
        ("All rights reserved", ""),
    ],
)
def test_a_licence_is_known_by_its_first_words(text: str, name: str) -> None:
    assert licence_of(text) == name


# --- tar layers ---------------------------------------------------------------------------------------------

Layer = Callable[[bytes], Path]


@pytest.fixture
def tar(tmp_path: Path) -> Layer:
    def write(content: bytes) -> Path:
        path = tmp_path / "layer"
        path.write_bytes(content)
        return path

    return write


def special(kind: bytes, **fields: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("m.gguf")
        entry.type = kind
        for name, value in fields.items():
            setattr(entry, name, value)
        archive.addfile(entry)
    return out.getvalue()


def raw_header(size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    header = bytearray(512)
    header[:6] = b"m.gguf"
    header[124:136], header[156:157] = size, kind
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


BAD_TARS: dict[str, bytes] = {
    "a symbolic link": tar_of({}, links={"m.gguf": "/etc/passwd"}),
    "a hard link": special(tarfile.LNKTYPE, linkname="config.json"),
    "a device": special(tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a block device": special(tarfile.BLKTYPE),
    "a FIFO": special(tarfile.FIFOTYPE),
    "a sparse file": special(tarfile.GNUTYPE_SPARSE),
    "a kind nobody knows": raw_header(kind=b"Z"),
    "no tar": b"GGUF" * 1000,
    "a header cut": raw_header()[:100],
    "a file cut": raw_header(b"00000010000\0") + b"x",
    "a size beyond any disk": raw_header(b"\x80" + b"\xff" * 11),
    "a size of letters": raw_header(b"zzzzzzzzzzz\0"),
    "a wrong checksum": b"X" + raw_header()[1:] + bytes(512),
    "a pax header larger than any name": raw_header(b"00100000000\0", b"x") + bytes(1 << 20),
    "a pax record that lies": raw_header(b"00000000012\0", b"x") + b"99 path=m\n".ljust(512, b"\0"),
    "more files than a model has": tar_of({f"{n}": b"" for n in range(2 * MAX_ENTRIES + 1)}),
}


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("what", BAD_TARS)
def test_a_bad_tar_is_refused(tar: Layer, what: str) -> None:
    with pytest.raises(BadManifest):
        list_members(tar(BAD_TARS[what]), "")


@pytest.mark.requirement("R-S1")
def test_gzip_that_is_none_is_cut_or_swells_is_refused(tar: Layer) -> None:
    whole = tar_of({"m.gguf": b"x" * 100_000}, packed=True)
    for bad in (b"not gzip", whole[: len(whole) // 2]):
        with pytest.raises(BadManifest):
            list_members(tar(bad), "gzip")
    with pytest.raises(BadManifest) as caught:
        list_members(tar(tar_of({"m.gguf": bytes(40 << 20)}, packed=True)), "gzip")
    assert "swells" in caught.value.message


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_tars_of_all_forms_are_read_as_pythons_own_reads_them(tar: Layer, form: int, packed: bool) -> None:
    long_name = "a" * 60 + "/" + "b" * 60 + ".json"
    files = {"./config.json": b"{}", long_name: b"1" * 700, "empty.txt": b"", "w.gguf": b"2" * 3000}
    if form != tarfile.USTAR_FORMAT:
        files["é" * 80 + ".txt"] = b"3"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if packed else "w", format=form) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path, compression = tar(out.getvalue()), "gzip" if packed else ""
    expected = {name.removeprefix("./"): content for name, content in files.items()}
    members = list_members(path, compression)  # type: ignore[arg-type]
    assert {member.name: member.size_bytes for member in members} == {n: len(c) for n, c in expected.items()}
    read = {m.name: b"".join(chunks) for m, chunks in read_members(path, compression, expected)}  # type: ignore[arg-type]
    assert read == expected
    some = {m.name: b"".join(c) for m, c in read_members(path, compression, {"w.gguf"})}  # type: ignore[arg-type]
    assert some == {"w.gguf": expected["w.gguf"]}


@settings(max_examples=200)
@given(at=st.integers(0, 4000), value=st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_changes_only_what_it_hits(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(tar_of({"config.json": b"{}", "m.gguf": b"w" * 600}))
    content[at % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "flipped.tar"
    path.write_bytes(content)
    try:
        assert sum(member.size_bytes for member in list_members(path, "")) <= len(content)
    except HomelabError as error:
        assert error.code == "bad_manifest"
