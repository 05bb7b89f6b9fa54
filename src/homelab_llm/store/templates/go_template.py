"""Ollama's templates, which are Go's, as Jinja chat templates: what a Modelfile or an Ollama model brings.

Two differences are meant. JSON is written as Hugging Face's templates write it, with a space after each colon and
comma, for that is what the models have been trained on. And with ``.Messages`` neighbours of one role stay apart.
"""

from __future__ import annotations

from homelab_llm.store.templates.go_emitter import Emitter
from homelab_llm.store.templates.go_fields import ROOT, TURN
from homelab_llm.store.templates.go_nodes import Action, Block, Branch, GoTemplate
from homelab_llm.store.templates.go_parser import parse
from homelab_llm.store.templates.go_scope import Scope
from homelab_llm.store.templates.go_turns import COLLECT, EACH, OPEN, RESPONSE, names_in, up_to_response

_SYSTEM = """\
{%- set ollama = namespace(system='') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {%- set ollama.system = ollama.system ~ ('\\n\\n' if ollama.system else '') ~ (message.content or '') -%}
  {%- endif -%}
{%- endfor -%}
"""


def translate(text: str) -> str:
    """The Jinja chat template that gives the prompt Ollama would give. Pure: no file and no clock.

    Raises:
        InvalidTemplate: not a Go template, or one with something Jinja's messages do not have; with line and construct.
    """
    template = parse(text)
    names = names_in(template.body, template.defined)
    assigned = _assigned(template)
    if "Messages" in names:
        scope = Scope(ROOT, assigned)
        lines = Emitter(template, scope).lines(template.body)
        return (_SYSTEM if "System" in scope.used else "") + "\n".join(lines)
    body = template.body if "Response" in names else (*template.body, RESPONSE)
    emitter = Emitter(template, Scope(TURN, assigned))
    each = [EACH, *emitter.lines(body, 1), "{%- endfor -%}"]
    rest = [OPEN, *Emitter(template, Scope(TURN, assigned)).lines(up_to_response(body))]
    return COLLECT + "\n".join([*each, *rest])


def _assigned(template: GoTemplate) -> frozenset[str]:
    return frozenset().union(*(_assigned_in(block) for block in (template.body, *template.defined.values())))


def _assigned_in(block: Block) -> frozenset[str]:
    found: set[str] = set()
    for node in block:
        if isinstance(node, Action | Branch) and node.pipe.assigns:
            found |= set(node.pipe.declared)
        if isinstance(node, Branch):
            found |= _assigned_in(node.body) | _assigned_in(node.otherwise)
    return frozenset(found)
