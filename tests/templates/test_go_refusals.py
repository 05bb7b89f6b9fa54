"""What of a Go template cannot become Jinja is refused with its line, whatever the text is."""

from __future__ import annotations

import contextlib

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homelab_llm.core.errors import InvalidTemplate
from homelab_llm.store.templates.go_template import translate

pytestmark = pytest.mark.requirement("R-M8")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a\n{{ .Nothing }}", "line 2: .Nothing"),
        ("{{ range .Messages }}{{ .Prompt }}{{ end }}", ".Prompt is not known of a message"),
        ("{{ if .Prompt }}", "no {{ end }}"),
        ("{{ end }}", "without a block"),
        ("{{ .Prompt", "does not end"),
        ("{{ }}", "empty action"),
        ("{{ frobnicate .Prompt }}", "frobnicate"),
        ("{{ . }}", "everything"),
        ('{{ template "x" . }}', "not defined"),
        ('{{ define "x" }}{{ template "x" . }}{{ end }}{{ template "x" . }}', "calls itself"),
        ("{{ $x }}", "$x is not declared"),
        ("{{ $x := 1 }}{{ $x = .Prompt }}", "becomes a text"),
        ("{{ break }}", "outside of a range"),
        ("{{ range .Prompt }}{{ end }}", "a range over a text"),
        ('{{ printf "%5d" 1 }}', "printf"),
        ("{{ (.Prompt }}", "parenthesis"),
        ("{{ .Prompt.Role }}", ".Role is not known of a text"),
        ("{{ .Prompt | .System }}", "no function"),
        ('{{ "\\q" }}', "escape"),
        ("{{ # }}", "unexpected"),
        ("{{ if .Prompt }}" * 80 + "{{ end }}" * 80, "nested deeper"),
        ("{{ if" + " (" * 80 + ".Prompt" + ")" * 80 + " }}{{ end }}", "nested deeper"),
    ],
)
def test_what_cannot_be_translated_is_named_with_its_line(source: str, says: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        translate(source)
    assert refused.value.code == "invalid_template"
    assert says in refused.value.message


def test_templates_that_call_each_other_do_not_grow_without_bound() -> None:
    pieces = "".join(
        f'{{{{ define "t{n}" }}}}{{{{ template "t{n + 1}" . }}}}{{{{ template "t{n + 1}" . }}}}{{{{ end }}}}'
        for n in range(18)
    )
    with pytest.raises(InvalidTemplate):
        translate(pieces + '{{ define "t18" }}xyz{{ end }}{{ template "t0" . }}{{ .Messages }}')


WORDS = st.sampled_from(
    [
        *("if", "else", "end", "range", "with", "define", "template", "block", "break", "and", "eq", "len", "printf"),
        *(".Messages", ".Role", ".Content", ".Prompt", ".Response", "$", "$x", "$.System", ":=", "=", "|", "(", ")"),
        *('"a"', "`b`", "'c'", "1", "-2", ".", ",", "\n", " ", "-", "{{", "}}", "{{-", "-}}", "/*", "*/", "text", "é"),
    ]
)


@given(st.lists(WORDS, max_size=40).map(" ".join) | st.text(max_size=60))
def test_any_text_is_translated_into_valid_jinja_or_refused(source: str) -> None:
    with contextlib.suppress(InvalidTemplate):
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(translate(source))
