"""The template of a spec, as engines take it: Jinja or Go text, a file, or a name of the catalogue."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from homelab_llm.core.errors import InvalidTemplate
from homelab_llm.store.build.spec import did_you_mean, shown

_GO = re.compile(
    r"\{\{-?\s*(?:/\*|[.$]|\$|(?:if|else|range|with|end|block|define|template|len|slice|index|json|and|or|not|eq|ne)\b)"
)


@dataclass(frozen=True, slots=True)
class TemplateText:
    """``jinja`` is for engines; ``go`` is what it was translated from, or empty."""

    jinja: str = ""
    go: str = ""


def is_go(text: str) -> bool:
    """Whether a template is in Go's language, as Ollama's are. Jinja statements decide, then Go's words."""
    return "{%" not in text and bool(_GO.search(text))


def template_of(text: str, read: Callable[[str], str]) -> TemplateText:
    """What a spec's ``template`` means.

    Args:
        read: the text of a file that is named.

    Raises:
        InvalidTemplate: neither of the languages, or a Go template that cannot be said in Jinja.
    """
    if not text.strip():
        return TemplateText()
    if "{" not in text and "\n" not in text.strip():
        name = text.strip()
        if not name.startswith(("./", "../", "/", "~", "file:")) and not name.endswith((".jinja", ".tmpl", ".txt")):
            return TemplateText(_of_catalogue(name))
        text = read(name)
    if is_go(text):
        from homelab_llm.store.templates.go_template import translate

        return TemplateText(_checked(translate(text)), text)
    if "{{" not in text and "{%" not in text:
        raise InvalidTemplate("the template shows no message", hint="mlxctl show MODEL --template shows one that does")
    return TemplateText(_checked(text))


def _checked(text: str) -> str:
    """The text, if a question can be asked with it; rendered in a process of its own."""
    from homelab_llm.store.templates.check import check_usable

    check_usable(text)
    return text


def _of_catalogue(name: str) -> str:
    from homelab_llm.store.templates.catalogue import ENTRIES, named

    if (entry := named(name)) is not None:
        return entry.text
    closest = did_you_mean(name, [entry.name for entry in ENTRIES])
    raise InvalidTemplate(
        f"the catalogue has no template {shown(name)!r}{closest}",
        hint="mlxctl template list, or write the template, or ./FILE.jinja",
    )
