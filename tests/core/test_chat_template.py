"""Chat templates: rendered as their authors expect, and kept within bounds when they are hostile."""

from __future__ import annotations

import json

import pytest

from homelab_llm.core.chat_template import ChatTemplate
from homelab_llm.core.errors import InvalidInput, InvalidTemplate

pytestmark = pytest.mark.requirement("R-M8")
HELLO = [{"role": "user", "content": "hello"}]


def test_a_template_gets_the_messages_the_tokens_and_the_callers_values() -> None:
    template = ChatTemplate(
        "{{ bos_token }}\n  {% for m in messages %}\n{{ m.role }}={{ m['content'] }}\n  {% endfor %}\n{{ mood }}"
    )
    assert template.render(HELLO, {"bos_token": "<s>", "mood": "calm"}) == "<s>\nuser=hello\ncalm"


def test_what_transformers_gives_templates_is_there() -> None:
    template = ChatTemplate(
        "{%- for m in messages %}{%- if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor -%}"
        "{% generation %}{{ 'é' | tojson }}{% endgeneration %}{{ strftime_now('%Y') | length }}"
    )
    assert template.render(HELLO * 2, {}) == json.dumps(HELLO[0]) + '"é"4'


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidInput, match="roles must alternate"):
        template.render(HELLO, {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for m in messages * 60000 %}{% for n in messages * 60000 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ ((9 ** 99) ** 99) ** 99 }}",
        "{% for a in range(99999) %}{{ 'abcdefgh' * 8000 }}{% endfor %}",
        "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
        "{% set ns = namespace(t='abcdefgh') %}{% for i in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{% set ns = namespace(t='abcdefgh') %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t=[1]) %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{{ '%999999999d' % 1 }}",
        "{{ range(10**9) | length }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ range(10000000) | list }}",
    ],
)
def test_a_hostile_or_broken_template_costs_one_request_and_little_time(source: str) -> None:
    template = ChatTemplate(source, limit_s=0.2)
    with pytest.raises(InvalidInput):
        template.render(HELLO, {})


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x", "{% include 'x' %}{% if %}", "x" * (1 << 21), "{{" + "(" * 9999]
)
def test_a_template_that_is_none_is_refused_before_it_runs(source: str) -> None:
    with pytest.raises(InvalidTemplate):
        ChatTemplate(source)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("\n{% include 'x' %}", "line 2"),
        ("{% import 'x' as y %}", "another template"),
        ("{% from 'x' import y %}", "another template"),
        ("{% extends 'x' %}", "another template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "reaches for __"),
        ("{{ cycler.__init__.__globals__ }}", "reaches for __"),
        ("{{ ''['__class__'] }}", "reaches for __class__"),
    ],
)
def test_what_no_template_may_is_refused_with_its_line(source: str, says: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        ChatTemplate(source)
    assert refused.value.code == "invalid_template"
    assert says in refused.value.message


def test_a_template_that_runs_away_is_told_from_one_that_refuses() -> None:
    with pytest.raises(InvalidTemplate):
        ChatTemplate("{% for a in range(99999) %}{{ 'abcdefgh' * 8000 }}{% endfor %}").render(HELLO, {})
    with pytest.raises(InvalidInput) as refused:
        ChatTemplate("{{ raise_exception('no') }}").render(HELLO, {})
    assert refused.value.code == "invalid_input"
