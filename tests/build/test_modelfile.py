"""Modelfiles: Ollama's grammar, its oddities included; what is refused, and that writing and reading are inverse."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.build.test_modelspec import EXAMPLE, SPECS

from homelab_llm.core.errors import InvalidModelSpec
from homelab_llm.store.build.modelfile import looks_like_yaml, parse_modelfile, write_modelfile
from homelab_llm.store.build.modelspec import parse_modelspec
from homelab_llm.store.build.spec import ModelSpec

pytestmark = pytest.mark.requirement("R-M6")

EXAMPLES = EXAMPLE.parent


def test_every_instruction_is_understood() -> None:
    text = '''# a comment
FROM ./model.gguf
parameter temperature 0.7
Parameter num_predict -1
PARAMETER stop "<|im_end|>"
PARAMETER stop   AI Assistant:
TEMPLATE """{{ .System }}
{{ .Prompt }}"""
SYSTEM   You are "quoted" # not a comment
ADAPTER ./lora.gguf
ADAPTER other
LICENSE """
first
"""
LICENSE second
MESSAGE user Is Toronto in Canada?
MESSAGE assistant "yes
and more"
REQUIRES 0.14.0
'''
    assert parse_modelfile(text.encode()) == ModelSpec(
        base="./model.gguf",
        parameters={"temperature": 0.7},
        stop=("<|im_end|>", "AI Assistant:"),
        template="{{ .System }}\n{{ .Prompt }}",
        system='You are "quoted" # not a comment',
        adapters=("./lora.gguf", "other"),
        licence="\nfirst\n\n\nsecond",
        messages=(
            {"role": "user", "content": "Is Toronto in Canada?"},
            {"role": "assistant", "content": "yes\nand more"},
        ),
        requires="ollama>=0.14.0",
    )


def test_both_examples_of_the_docs_say_the_same() -> None:
    yaml, modelfile = EXAMPLE.read_bytes(), (EXAMPLES / "Modelfile").read_bytes()
    assert (looks_like_yaml(yaml), looks_like_yaml(modelfile)) == (True, False)
    spec = replace(parse_modelspec(yaml), name="", metadata={}, requires="")
    assert parse_modelfile(modelfile) == spec


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_and_line_ends_of_other_systems_are_read(encoding: str) -> None:
    assert parse_modelfile("FROM a\r\nSYSTEM é".encode(encoding)) == ModelSpec("a", system="é")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 0, "needs a FROM"),
        ("SYSTEM hello", 0, "needs a FROM"),
        ("FORM x", 1, "did you mean FROM"),
        ("FROM x\n{}", 2, "no instruction"),
        ("FROM", 1, "says nothing"),
        ("FROM x\nFROM y", 2, "first in line 1"),
        ("FROM x\nSYSTEM a\nSYSTEM b", 3, "first in line 2"),
        ('FROM x\n\nSYSTEM """never\nclosed', 3, "never closed"),
        ('FROM x\nSYSTEM "never', 2, "never closed"),
        ("FROM x\nPARAMETER temperature", 2, "says nothing"),
        ("FROM x\nPARAMETER temperature hot", 2, "a number"),
        ("FROM x\nPARAMETER num_thread 8", 2, "engine.threads"),
        ("FROM x\nPARAMETER mirostat 1", 2, "no effect here"),
        ("FROM x\nPARAMETER foo 1", 2, "no parameter"),
        ("FROM x\nMESSAGE bot hi", 2, "role of a MESSAGE"),
        ("FROM x\nMESSAGE user", 2, "is empty"),
        ("FROM x\nRENDERER qwen3-coder", 2, "TEMPLATE"),
        ("FROM x\nPARSER qwen3-coder", 2, "no effect here"),
        ("FROM x\nDRAFT ./d.gguf", 2, "draft model"),
        ("FROM x\nREQUIRES soon", 2, "least version"),
        ('FROM x\nADAPTER """a\nb"""', 2, "one line"),
        ("FROM x\nSYSTEM \0", 2, "NUL"),
    ],
)
def test_a_bad_modelfile_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(InvalidModelSpec) as refused:
        parse_modelfile(text.encode())
    assert said in refused.value.message
    assert refused.value.facts["line"] == line


@given(SPECS)
def test_a_modelfile_that_was_written_reads_the_same(spec: ModelSpec) -> None:
    plain = replace(
        spec,
        name="",
        revision="",
        quantization="",
        tool_call_parser="",
        metadata={},
        requires=spec.requires if spec.requires.startswith("ollama") else "",
    )
    assume("\r" not in repr(plain).replace("\\r", "\r"))  # line ends are read as this system's
    try:
        written = write_modelfile(plain)
    except InvalidModelSpec as error:
        assert "quotes" in error.message
        return
    assert parse_modelfile(written.encode()) == plain


@given(st.text(max_size=120) | st.text(alphabet='FROM x\n"#', max_size=40))
def test_no_text_makes_anything_but_a_spec_or_a_typed_error(text: str) -> None:
    with contextlib.suppress(InvalidModelSpec):
        parse_modelfile(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("text", "yaml"),
    [
        ("base: x", True),
        ("# FROM\n\nbase: x", True),
        ("---\nbase: x", True),
        ('{"base": "x"}', True),
        ("FROM x", False),
        ("# base: x\nfrom x", False),
        ("", False),
    ],
)
def test_the_content_tells_which_of_the_two_a_file_is(text: str, yaml: bool) -> None:
    assert looks_like_yaml(text.encode()) is yaml


def test_the_docs_say_the_path_of_both_examples() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "build-a-model.md"
    assert "examples/modelspec.yaml" in guide.read_text()
    assert "examples/Modelfile" in guide.read_text()


def test_a_long_text_in_quotes_is_read_in_one_pass() -> None:
    text = "line\n" * 100_000
    assert parse_modelfile(f'FROM a\nSYSTEM """{text}"""'.encode()).system == text


def test_quotes_close_on_the_line_that_ends_with_them() -> None:
    for text, value in (
        ('""""""x"""', '"""x'),
        ('  """ a\nb """  ', " a\nb "),
        ('"a\n\nb"', "a\n\nb"),
        ('"""a"\n""""', 'a"\n"'),
    ):
        assert parse_modelfile(f"FROM a\nSYSTEM {text}".encode()).system == value
