"""Tokens of a vocabulary that chat templates use, for models whose files have no template of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from homelab_llm.store.inspect.documents import read_object
from homelab_llm.store.inspect.gguf import read_gguf

ChatTokens: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]
"""Those that are there, and those among them that end an answer."""


def gguf_chat_tokens(path: Path) -> ChatTokens:
    """Of the GGUF file that holds the vocabulary; takes some tens of milliseconds for a large one.

    Raises:
        BadModelFile: as ``read_gguf``.
    """
    header = read_gguf(path, _wanted())
    ends = {header.values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")}
    return _sorted(header.tokens, {name for name, id_ in header.tokens.items() if id_ in ends})


def folder_chat_tokens(files: Mapping[str, Path]) -> ChatTokens:
    """Of a folder in Hugging Face's format, by its small files; ``tokenizer.json`` is not read.

    Raises:
        BadModelFile: one of them is not what its name says.
    """
    told = {name: read_object(files[name], name) for name in _FILES if name in files}
    settings = told.get("tokenizer_config.json", {})
    ids: dict[str, Any] = dict(told.get("added_tokens.json", {}))
    decoder = settings.get("added_tokens_decoder")
    for id_, token in (decoder if isinstance(decoder, dict) else {}).items():
        ids[_text(token)] = int(id_) if id_.isdecimal() and len(id_) < 10 else None
    generation = told.get("generation_config.json", {}).get("eos_token_id")
    end_ids = generation if isinstance(generation, list) else [generation]
    ends = {name for name, id_ in ids.items() if type(id_) is int and id_ in end_ids}
    ends |= {
        _text(told.get(name, {}).get("eos_token")) for name in ("tokenizer_config.json", "special_tokens_map.json")
    }
    return _sorted(ids, ends)


_FILES = ("added_tokens.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json")


def _wanted() -> frozenset[str]:
    from homelab_llm.store.templates.catalogue import TOKENS

    return TOKENS


def _sorted(found: Mapping[str, Any], ends: set[str]) -> ChatTokens:
    known = _wanted() & found.keys()
    return tuple(sorted(known)), tuple(sorted(known & ends))


def _text(token: Any) -> str:
    """A token is a string, or an object with ``content``."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""
