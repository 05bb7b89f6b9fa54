"""Pasted references: what people copy from web pages and other tools, rewritten into the grammar. Pure text to text.

Nothing is guessed: a text that could mean two things is left as it is, and the grammar refuses it with a hint.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co")
_LIBRARIES = ("ollama.com", "www.ollama.com", "registry.ollama.ai")
_WEB = re.compile(r"https?://(?P<rest>[^#?]+)(?:\?[^#]*)?", re.IGNORECASE)
_BARE_HOST = re.compile(
    r"(?:localhost|(?:[a-z0-9-]+\.)+[a-z]{2,}|[0-9.]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE
)
_FILES = (".gguf", ".safetensors", ".json", ".bin")


def canonical_text(text: str) -> str:
    """``text`` in a form of the grammar where it is a pasted one, else unchanged."""
    if text.lower().startswith("file:///"):
        path = unquote(text[len("file://") :])
        return text if "#" in path else f"file:{path}"
    web = _WEB.fullmatch(text)
    for prefix, scheme in (("docker://", "oci://"), ("ollama:", "")):
        if text.lower().startswith(prefix):
            rest = text[len(prefix) :]
            inner = _of_host(rest) if prefix == "ollama:" and _host(rest) in _HUBS else None
            return inner or (scheme + rest if scheme and _BARE_HOST.fullmatch(_host(rest)) else text)
    rest = web["rest"] if web else text
    found = _of_host(rest) or (_of_registry(text) if not web else None) or text
    if found.startswith("ollama:") and found != text and _host(found[len("ollama:") :]) in _HUBS:
        return canonical_text(found)  # ollama.com/hf.co/org/name
    return found


def _host(rest: str) -> str:
    return rest.partition("/")[0].lower()


def _of_host(rest: str) -> str | None:
    """The pages of the hub and of the Ollama library."""
    host, _, path = rest.partition("/")
    path = path.strip("/")
    if not path:
        return None
    if host.lower() in _HUBS:
        return _of_hub(path)
    if host.lower() in _LIBRARIES:
        return f"ollama:{path.removeprefix('library/')}" if path.count("/") <= 1 else None
    return None


def _of_hub(path: str) -> str | None:
    """``org/name[:Q]``, ``org/name/tree/rev``, ``org/name/blob|resolve/rev/file``."""
    parts = [unquote(part) for part in path.split("/")]
    if parts[0] in {"datasets", "spaces", "models", "docs", "collections"} or len(parts) > 12:
        return None
    repo = "/".join(parts[:2])
    if len(parts) <= 2:
        return f"hf:{repo}"
    if parts[2] == "tree" and len(parts) == 4:
        return f"hf:{repo}{_revision(parts[3])}"
    if parts[2] in {"blob", "resolve"} and len(parts) >= 5:
        file = "/".join(parts[4:])
        return f"hf:{repo}{_revision(parts[3])}#{file}" if file.lower().endswith(".gguf") else None
    return None


def _revision(revision: str) -> str:
    return "" if revision == "main" else f"@{revision}"


def _of_registry(text: str) -> str | None:
    """``ghcr.io/org/name:tag``: what looks like a host, a path below it, and does not look like a file."""
    host, slash, path = text.partition("/")
    if slash and _BARE_HOST.fullmatch(host) and not path.lower().endswith(_FILES) and ("." in host or ":" in host):
        return f"oci://{text}"
    return None
