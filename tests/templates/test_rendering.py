"""Templates of strangers end with their process, never with ours; and what they support is found by rendering."""

from __future__ import annotations

import pytest

from homelab_llm.core.errors import InvalidTemplate
from homelab_llm.store.templates.check import check, check_usable
from homelab_llm.store.templates.rendering import Conversation, render

pytestmark = pytest.mark.requirement("R-M8")
HELLO = Conversation([{"role": "user", "content": "hello"}])
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_many_conversations_are_rendered_by_one_process() -> None:
    refusing = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + PLAIN
    good, bad = render(refusing, [HELLO, Conversation(HELLO.messages, {"tools": [{}]})])
    assert good.prompt == "[user]hello"
    assert (bad.code, "no tools" in bad.reason) == ("invalid_input", True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'abcdefgh' * 8000 }}{% endfor %}",
        "{{ ('a' * 65536).replace('a', 'b' * 65536) }}",
        "{{ 'a'.ljust(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10**9) | list }}",
        "{{ ''.__class__ }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_template_is_an_invalid_one(source: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        check(source + "{{ messages[0].content }}", limit_s=0.3)
    assert refused.value.code == "invalid_template"


def test_what_a_template_swallows_is_told_from_what_it_refuses() -> None:
    status = {finding.name: finding.status for finding in check(PLAIN).findings}
    assert status["a question"] == status["several turns"] == "yes"
    assert status["tools"] == "lost"
    assert status["generation prompt"] == "no"
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    (found,) = [finding for finding in check(strict).findings if finding.name == "a system message"]
    assert (found.status, "no system" in found.reason) == ("no", True)


def test_a_template_that_loses_the_question_cannot_be_kept() -> None:
    assert not check("hello").usable
    with pytest.raises(InvalidTemplate):
        check_usable("hello")
    check_usable(PLAIN)
