"""Templates that know a prompt and a response, and no messages: Ollama renders them once for each turn. Pure.

A turn is kept when the next prompt or system message comes after a response (or a system message after a prompt).
What remains is the open turn; it is rendered up to the response, so that the model goes on from there. A system
message counts for one turn. Messages of one role that follow each other are one message with an empty line between.
"""

from __future__ import annotations

from collections.abc import Mapping

from homelab_llm.store.templates.go_nodes import Action, Block, Branch, Field, Node, Operand, Pipe

RESPONSE = Action(Pipe(((Field(("Response",)),),), 1))

COLLECT = """\
{%- set ollama = namespace(turns=[], system='', prompt='', response='', role='') -%}
{%- for message in messages -%}
  {%- set text = message.content or '' -%}
  {%- set again = message.role == ollama.role -%}
  {%- if message.role == 'system' -%}
    {%- if ollama.prompt or ollama.response -%}
      {%- set ollama.turns = ollama.turns + [{'system': ollama.system, 'prompt': ollama.prompt, 'response': ollama.response}] -%}
      {%- set ollama.prompt = '' -%}
      {%- set ollama.response = '' -%}
    {%- endif -%}
    {%- set ollama.system = ollama.system ~ '\\n\\n' ~ text if again else text -%}
  {%- elif message.role == 'user' -%}
    {%- if ollama.response -%}
      {%- set ollama.turns = ollama.turns + [{'system': ollama.system, 'prompt': ollama.prompt, 'response': ollama.response}] -%}
      {%- set ollama.system = '' -%}
      {%- set ollama.response = '' -%}
    {%- endif -%}
    {%- set ollama.prompt = ollama.prompt ~ '\\n\\n' ~ text if again else text -%}
  {%- elif message.role == 'assistant' -%}
    {%- set ollama.response = ollama.response ~ '\\n\\n' ~ text if again else text -%}
  {%- endif -%}
  {%- set ollama.role = message.role -%}
{%- endfor -%}
"""  # noqa: E501 — tags that trim cannot be broken more readably
EACH = "{%- for turn in ollama.turns -%}"
OPEN = "{%- set turn = {'system': ollama.system, 'prompt': ollama.prompt, 'response': ollama.response} -%}"


def names_in(block: Block, defined: Mapping[str, Block] | None = None) -> frozenset[str]:
    """Every field name in a block, and in the templates that are defined beside it."""
    found: set[str] = set()
    for part in (block, *(defined or {}).values()):
        for node in part:
            found |= _names_of(node)
    return frozenset(found)


def _names_of(node: Node) -> frozenset[str]:
    if isinstance(node, Action):
        return _names_in_pipe(node.pipe)
    if isinstance(node, Branch):
        return _names_in_pipe(node.pipe) | names_in(node.body) | names_in(node.otherwise)
    return _names_in_pipe(getattr(node, "pipe", None))


def _names_in_pipe(pipe: Pipe | None) -> frozenset[str]:
    words: list[Operand] = [word for command in pipe.commands for word in command] if pipe else []
    found: set[str] = set()
    for word in words:
        found |= set(getattr(word, "names", ())) | _names_in_pipe(getattr(word, "pipe", None))
    return frozenset(found)


def up_to_response(block: Block) -> Block:
    """The block without what follows the first response that is printed."""
    return _cut(block)[0]


def _cut(block: Block) -> tuple[Block, bool]:
    kept: list[Node] = []
    for node in block:
        if isinstance(node, Branch):
            body, cut = _cut(node.body)
            otherwise, cut_there = ((), True) if cut else _cut(node.otherwise)
            kept.append(Branch(node.kind, node.pipe, body, otherwise))
            if cut or cut_there:
                return tuple(kept), True
            continue
        kept.append(node)
        if isinstance(node, Action) and _prints_response(node.pipe):
            return tuple(kept), True
    return tuple(kept), False


def _prints_response(pipe: Pipe) -> bool:
    return any(isinstance(word, Field) and "Response" in word.names for command in pipe.commands for word in command)
