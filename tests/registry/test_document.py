"""The registry as a document: what is read, what is refused and how an error says where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import HomelabError, RegistryInvalid
from homelab_llm.core.registry.document import Document, read_document, write_document
from homelab_llm.core.registry.entry import FORMATS, Entry
from homelab_llm.core.registry.fields import FIELDS
from homelab_llm.core.registry.json_text import MAX_BYTES
from homelab_llm.core.registry.slots import ALIASES, SlotTable

SLOTS = SlotTable.of("8100-8109", ALIASES)
BASIC = {"repo_id": "org/Some-Model", "model_id": "some:1", "cache_path": "/m", "format": "gguf", "port": None}


def a_document(**models: Any) -> bytes:
    return json.dumps({"version": 1, "models": models}, indent=1).encode()


def refusal(content: bytes) -> HomelabError:
    with pytest.raises(HomelabError) as caught:
        read_document(content, SLOTS)
    return caught.value


@pytest.mark.requirement("R-F2")
def test_a_document_of_the_promised_shape_is_read() -> None:
    more = {"tool_call_parser": "hermes", "context_length": 4096, "flags": ["--a"], "keep_alive": "5m", "pinned": True}
    document = read_document(a_document(some={**BASIC, **more, "port": 8101}), SLOTS)
    entry = document.entries["some"]
    assert document.ports == {"some": 8101}
    assert (entry.model_id, entry.repo_id, entry.tool_call_parser) == ("some:1", "org/Some-Model", "hermes")
    assert (entry.context_length, entry.flags, entry.keep_alive_s, entry.pinned) == (4096, ("--a",), 300.0, True)


@pytest.mark.requirement("R-F2")
def test_a_file_of_the_origin_is_read_with_the_fields_it_adds() -> None:
    origin = {
        "version": 1,
        "models": {
            "mlx-community-qwen2.5-coder-32b-instruct-8bit": {
                "repo_id": "mlx-community/Qwen2.5-Coder-32B-Instruct-8bit",
                "model_id": "mlx-community/Qwen2.5-Coder-32B-Instruct-8bit",
                "cache_path": "/hub/models--mlx-community--Qwen2.5/snapshots/abc",
                "format": "mlx",
                "port": 8103,
                "source_path": "/hub/source",
                "og_path": "/archive/base",
                "context_length": 131072,
                "max_output_tokens": 64000,
                "request_params": {"temperature": 0.2},
                "chat_template": None,
            },
            "ov-model": {**BASIC, "model_id": "ov", "format": "ov-ir"},
        },
    }
    document = read_document(json.dumps(origin).encode(), SLOTS)
    entry = document.entries["mlx-community-qwen2.5-coder-32b-instruct-8bit"]
    assert entry.model_id == "mlx-community/qwen2.5-coder-32b-instruct-8bit:latest", "as the store names it"
    assert entry.extra == {"og_path": "/archive/base"}
    assert entry.request_params == {"temperature": 0.2}
    assert document.entries["ov-model"].format == "ov-ir"
    assert json.loads(write_document(document))["models"][entry.slug]["og_path"] == "/archive/base"


def test_an_intent_needs_no_more_than_where_it_comes_from_and_its_format() -> None:
    document = read_document(a_document(big={"repo_id": "Org/Big", "format": "mlx"}), SLOTS)
    assert document.entries["big"].model_id == "org/big:latest"
    assert document.entries["big"].is_intent
    assert document.ports == {}, "nothing is said of a port that is not mentioned"


_ENTRY = {"format": "gguf", "model_id": "a"}


@pytest.mark.requirement("R-F2")
@pytest.mark.parametrize(
    ("models", "field", "line"),
    [
        ({"a": {**_ENTRY, "port": 8110}}, "models.a.port", 7),
        ({"a": {**_ENTRY, "port": -1}}, "models.a.port", 7),
        ({"a": {**_ENTRY, "port": "8100"}}, "models.a.port", 7),
        ({"a": {**_ENTRY, "port": True}}, "models.a.port", 7),
        ({"a": {**_ENTRY, "port": 8100}, "b": {**_ENTRY, "model_id": "b", "port": 8100}}, "models.b.port", 12),
        ({"a": _ENTRY, "b": _ENTRY}, "models.b.model_id", 10),
        ({"A b": _ENTRY}, "models.A b", 4),
        ({"a\x1b[2J": _ENTRY}, "models.a\\x1b[2J", 4),
        ({"a": 1}, "models.a", 4),
        ({"a": {"model_id": "a"}}, "models.a.format", 4),
        ({"a": {"format": "gguf"}}, "models.a.model_id", 4),
        ({"a": {**_ENTRY, "format": "exe"}}, "models.a.format", 5),
        ({"a": {**_ENTRY, "format": ["gguf"]}}, "models.a.format", 5),
        ({"a": {**_ENTRY, "model_id": "../etc"}}, "models.a.model_id", 6),
        ({"a": {**_ENTRY, "repo_id": 3}}, "models.a.repo_id", 7),
        ({"a": {**_ENTRY, "repo_id": "x" * 5000}}, "models.a.repo_id", 7),
        ({"a": {**_ENTRY, "repo_id": "x\0"}}, "models.a.repo_id", 7),
        ({"a": {**_ENTRY, "note": "\ud800"}}, "models.a.note", 7),
        ({"a": {**_ENTRY, "context_length": 1.5}}, "models.a.context_length", 7),
        ({"a": {**_ENTRY, "context_length": -1}}, "models.a.context_length", 7),
        ({"a": {**_ENTRY, "max_output_tokens": 2**31}}, "models.a.max_output_tokens", 7),
        ({"a": {**_ENTRY, "flags": "--x"}}, "models.a.flags", 7),
        ({"a": {**_ENTRY, "flags": [1]}}, "models.a.flags", 7),
        ({"a": {**_ENTRY, "request_params": []}}, "models.a.request_params", 7),
        ({"a": {**_ENTRY, "pinned": 1}}, "models.a.pinned", 7),
        ({"a": {**_ENTRY, "keep_alive": "soon"}}, "models.a.keep_alive", 7),
        ({"a": {**_ENTRY, "keep_alive": "inf"}}, "models.a.keep_alive", 7),
        ({"a": {**_ENTRY, "keep_alive": 10**400}}, "models.a.keep_alive", 7),
        ([], "models", 3),
    ],
)
def test_a_wrong_field_is_named_with_its_line(models: Any, field: str, line: int) -> None:
    error = refusal(json.dumps({"version": 1, "models": models}, indent=1).encode())
    assert error.code == "registry_invalid"
    assert (error.facts["field"], error.facts["line"]) == (field, line)


@pytest.mark.requirement("R-F2")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (bytes(4096), "filled with zeros"),
        (b'{"version": 1, "models": {"a": {"form', "ends in the middle"),
        (b"{}\0\0\0\0", "not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"[]", "must be an object"),
        (b'{"models": {}}', "version must be 1"),
        (b'{"version": "1", "models": {}}', "version must be 1"),
        (b'{"version": true, "models": {}}', "version must be 1"),
        (b'{"version": 0, "models": {}}', "version must be 1"),
        (b'{"version": 1, "models": {}, "lanes": {}}', "lanes is not known"),
        (b'{"version": 1,\n"models": {"a": {},\n"a": {}}}', "line 3: models.a is there twice"),
        (b'{"version": 1, "version": 1, "models": {}}', "version is there twice"),
        (b'{"version": 1, "models": {"a": {"x": NaN}}}', "number"),
        (b'{"version": 1, "models": {"a": {"x": 1e999}}}', "number"),
        (b'{"version": 1, "models": {"a": {"x": ' + b"9" * 9999 + b"}}}", "number"),
        (b'{"version": 1, "models": {"a": {"x": ' + b"[" * 40 + b"]" * 40 + b"}}}", "nested deeper"),
        (b"[" * 1_000_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b" " * (MAX_BYTES + 1), "more than"),
        (b'"' + b'\\"' * 1_000_000, "ends in the middle"),
        (b'{"a":1,"a":1} "' + b'\\"' * 1_000_000, "a is there twice"),
    ],
)
def test_what_is_no_registry_is_refused_in_words(content: bytes, words: str) -> None:
    error = refusal(content)
    assert error.code == "registry_invalid"
    assert words in error.message


@pytest.mark.requirement("R-F2")
def test_a_newer_version_is_refused_with_the_reason() -> None:
    error = refusal(b'{"version": 2, "models": {}, "lanes": {}}')
    assert error.code == "registry_too_new"
    assert error.facts["version"] == 2
    assert "reads version 1" in error.message


@pytest.mark.parametrize("keys", [1, 7])
def test_a_half_written_document_is_refused_wherever_it_ends(keys: int) -> None:
    models = {f"m{number}": {**BASIC, "model_id": f"m{number}", "note": "äé\n\"'"} for number in range(keys)}
    content = write_document(read_document(a_document(**models)))
    for end in range(0, len(content) - 2, 5):
        assert refusal(content[:end]).code == "registry_invalid"


_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_tokens = st.integers(0, 2**31 - 1)


@st.composite
def _documents(draw: st.DrawFn) -> Document:
    slugs = draw(st.lists(st.from_regex(r"[a-z0-9]{1,4}([._-][a-z0-9]{1,4}){0,2}", fullmatch=True), unique=True))
    ports: list[int | None] = [*draw(st.permutations(SLOTS.ports))[: len(slugs)]]
    ports += [None] * (len(slugs) - len(ports))
    entries = {
        slug: draw(
            st.builds(
                Entry,
                slug=st.just(slug),
                model_id=st.just(f"m{number}:latest"),
                repo_id=_texts,
                cache_path=_texts,
                format=st.sampled_from(FORMATS),
                source_path=_texts,
                chat_template=_texts,
                tool_call_parser=_texts,
                reasoning_parser=_texts,
                context_length=_tokens,
                max_output_tokens=_tokens,
                request_params=st.dictionaries(_texts, _json, max_size=3),
                draft_model=_texts,
                engine=_texts,
                flags=st.lists(_texts, max_size=3).map(tuple),
                pinned=st.booleans(),
                keep_alive_s=st.none() | st.floats(-1e9, 1e9),
                extra=st.dictionaries(_texts.filter(lambda key: key not in FIELDS), _json, max_size=3),
            )
        )
        for number, slug in enumerate(slugs)
    }
    named = draw(st.sets(st.sampled_from(slugs))) if slugs else set()
    return Document(entries, {s: p if s in named else None for s, p in zip(slugs, ports, strict=True)})


@pytest.mark.requirement("R-F2")
@given(_documents())
def test_what_was_written_is_read_back_the_same(document: Document) -> None:
    content = write_document(document)
    again = read_document(content, SLOTS)
    assert again == document
    assert write_document(again) == content


_VALID = write_document(Document({"a": Entry("a", "a:latest", flags=("--x",))}, {"a": 8100}))


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes_are_read_or_refused_as_no_registry(content: bytes) -> None:
    _read_or_refuse(content)


@given(_json)
def test_random_json_is_read_or_refused_as_no_registry(value: Any) -> None:
    _read_or_refuse(json.dumps(value).encode())
    _read_or_refuse(json.dumps({"version": 1, "models": value}).encode())
    _read_or_refuse(json.dumps({"version": 1, "models": {"a": value}}).encode())
    for field in FIELDS:
        _read_or_refuse(a_document(a={**_ENTRY, field: value}))


@given(st.integers(0, len(_VALID) - 1), st.binary(max_size=3), st.integers(0, 10))
def test_a_damaged_document_is_read_or_refused_as_no_registry(at: int, put: bytes, cut: int) -> None:
    _read_or_refuse(_VALID[:at] + put + _VALID[at + cut :])


def _read_or_refuse(content: bytes) -> None:
    try:
        document = read_document(content, SLOTS)
    except RegistryInvalid as error:
        assert error.message
    else:
        assert read_document(write_document(document), SLOTS) == document
