"""The scanner report: each thing that was looked for, and what was found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.facts import ModelDefaults, StoredModel
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore
from homelab_llm.store.scan import ScanReport, origin_of_hashes, reach_of_template, scan

Folder = Callable[..., Path]
ref = ModelRef.parse


def status(report: ScanReport, name: str) -> str:
    return next(check.status for check in report.checks if check.name == name)


@pytest.fixture
def model(store: ModelStore, hf_folder: Folder) -> StoredModel:
    return store.import_path(hf_folder(), ref("tiny"))


def swapped(model: StoredModel, name: str, content: bytes, place: Path) -> StoredModel:
    """The model with one file as somebody may have left it."""
    place.write_bytes(content)
    return replace(model, files={**model.files, name: place})


@pytest.mark.requirement("R-M4")
def test_a_good_model_passes_every_check(model: StoredModel) -> None:
    report = scan(model)
    assert report.ok
    assert [check.status for check in report.checks if check.name != "hashes"] == ["ok"] * 6
    assert status(report, "hashes") == "warn"  # it was imported: nobody promised anything
    assert len(list(report.lines())) == len(report.checks) == len(report.as_dict()["checks"])


@pytest.mark.requirement("R-M4")
@pytest.mark.parametrize(
    ("name", "content", "check"),
    [
        ("config.json", b'{"model_type":"llama","auto_map":{"AutoModel":"m.M"}}', "no code"),
        ("config.json", b'{"model_type":"llama","vision_config":{"x":[{"trust_remote_code":true}]}}', "no code"),
        ("config.json", b'{"model_type":"llama","_attn_implementation_internal":"org/kernel"}', "no code"),
        ("config.json", b'{"model_type":"llama","attn_implementation":"org/kernel"}', "no code"),
        ("config.json", b'{"model_type":"llama","attn_implementation":{"text":"org/kernel"}}', "no code"),
        ("config.json", b'{"model_type":"llama","model_file":"m.py"}', "no code"),
        ("tokenizer_config.json", b'{"auto_map":{"AutoTokenizer":["t.T",null]}}', "no code"),
        ("generation_config.json", b'{"custom_generate":"org/gen"}', "no code"),
        ("modules.json", b'[{"idx":0,"type":"custom_st.Thing"}]', "no code"),
        ("modeling.py", b"import os", "formats"),
        ("pytorch_model.bin", b"pickle", "formats"),
        ("../escape.json", b"{}", "file names"),
        ("CONFIG.json", b"{}", "file names"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      extended", "tensors"),
    ],
)
def test_what_is_wrong_is_told_under_its_check(
    model: StoredModel, tmp_path: Path, name: str, content: bytes, check: str
) -> None:
    report = scan(swapped(model, name, content, tmp_path / "x"))
    assert not report.ok
    assert status(report, check) == "fail"


def test_attention_by_an_ordinary_name_is_no_code(model: StoredModel, tmp_path: Path) -> None:
    config = model.files["config.json"].read_bytes().replace(b"{", b'{"_attn_implementation":"flash_attention_2",', 1)
    assert status(scan(swapped(model, "config.json", config, tmp_path / "c")), "no code") == "ok"


def test_a_fifo_in_place_of_a_file_is_told_and_does_not_block(model: StoredModel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    report = scan(replace(model, files={**model.files, "LICENSE": tmp_path / "fifo"}))
    assert status(report, "plain files") == "fail"


@pytest.mark.parametrize(
    ("template", "reached"),
    [
        ("{{ ''.__class__.__mro__ }}", ["__class__", "__mro__"]),
        ("{{ messages|attr('__init__') }}", ["__init__"]),
        ("{{ x['__globals__'] }}", ["__globals__"]),
        ("{% import 'other' as o %}{% include 'x' %}", ["import …", "include …"]),
        ("{%- for m in messages -%}{{ m.content }}{%- endfor -%}", []),
        ("{{ 'say __class__ . import' }} text {{ m['role'] }} __class__", []),
        ("", []),
    ],
)
def test_a_template_that_reaches_out_of_its_sandbox_is_told(template: str, reached: list[str]) -> None:
    assert reach_of_template(template) == reached


def test_the_template_that_counts_is_the_one_that_is_used(model: StoredModel) -> None:
    evil = replace(model, defaults=ModelDefaults(template="{{ ''.__class__ }}"))
    assert status(scan(evil), "chat template") == "warn"


@given(st.text())
def test_any_template_is_looked_through_without_an_error(text: str) -> None:
    assert isinstance(reach_of_template("{{" + text + "}}{%" + text), list)


@pytest.mark.parametrize(
    ("source", "promised"),
    [
        ("hf:org/name@rev", True),
        ("oci://host/name:tag", True),
        ("https://host/file.gguf#sha256=" + "0" * 64, True),
        ("https://host/file.gguf", False),
        ("file:model.gguf", False),
        ("", False),
    ],
)
def test_where_each_hash_comes_from_is_told(model: StoredModel, source: str, promised: bool) -> None:
    assert origin_of_hashes(replace(model, pulled_from=source, source="test"))[0] is promised


def test_real_models_pass_the_scan(store: ModelStore, smollm2_gguf: Path, minilm_folder: Path) -> None:
    for path, name in ((smollm2_gguf, "smollm2:135m"), (minilm_folder, "all-minilm:l6-v2")):
        report = scan(store.import_path(path, ref(name)))
        assert report.ok, list(report.lines())
