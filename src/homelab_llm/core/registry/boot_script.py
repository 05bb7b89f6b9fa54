"""Boot scripts of the systems this grew from: which model a shell script or a launchd job starts on which port. Pure.

A script is read, never run. It becomes a registry document, after which the registry alone decides what is started.
"""

from __future__ import annotations

import plistlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.parsers.expat import ExpatError

from homelab_llm.core.errors import InvalidName, RegistryInvalid
from homelab_llm.core.names import ModelRef, slug_of
from homelab_llm.core.registry.document import Document, document_of
from homelab_llm.core.registry.slots import SlotTable

MAX_BYTES = 1_000_000
_MODEL_FLAGS = ("--model-path", "--model")
_SHORT_FLAG = "-m"  # of llama-server; Python's own -m names a module
_FIELDS = {
    "--chat-template-file": "chat_template",
    "--tool-call-parser": "tool_call_parser",
    "--reasoning-parser": "reasoning_parser",
}
_CONTEXT_FLAGS = ("--context-length", "--max-model-len", "--ctx-size", "-c")
_SNAPSHOT = re.compile(r"(?:^|/)models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/")
_ENDS = frozenset({";", "&", "&&", "|", "||", "(", ")", "\n"})
_SHELLS = frozenset({"sh", "bash", "zsh"})


def is_boot_script(content: bytes) -> bool:
    """Whether these bytes look like a script or a launchd job rather than a registry document."""
    if content.startswith((b"bplist", b"#!")) or content.lstrip().startswith(b"<"):
        return True
    return b"--port" in content and content.lstrip()[:1] not in (b"{", b"[")


def read_boot_script(content: bytes, slots: SlotTable | None = None) -> Document:
    """What a script starts, as a document of intents.

    Args:
        slots: a port that is none of these is refused; None takes every port.

    Raises:
        RegistryInvalid: it cannot be read, starts no model server, or names one by a variable; facts ``line``.
    """
    if len(content) > MAX_BYTES:
        raise RegistryInvalid(f"a boot script has at most {MAX_BYTES:,} bytes")
    models: dict[str, dict[str, Any]] = {}
    for line, argv in _commands(content):
        if "--port" in (part.partition("=")[0] for part in argv) and (found := _entry(argv, line)):
            slug = slug_of(str(found["model_id"]).rpartition("/")[2].removesuffix(":latest"))
            if slug in models:
                raise _invalid(f"{slug} is started twice", line)
            models[slug] = found
    if not models:
        raise RegistryInvalid(
            "it starts no model server with --port and a model", hint="mlxctl load MODEL PORT assigns one by hand"
        )
    return document_of(models, slots)


def _commands(content: bytes) -> Iterator[tuple[int, list[str]]]:
    """Every simple command with the line it begins in; those of a launchd job are in line 1."""
    if content.startswith(b"bplist") or content.lstrip().startswith(b"<"):
        argv = _arguments(content)
        inline = len(argv) == 3 and argv[0].rpartition("/")[2] in _SHELLS and argv[1].endswith("c")
        yield from ((1, parts) for _, parts in _shell(argv[2])) if inline else ((1, argv),)
        return
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RegistryInvalid("neither a registry nor a script: it is not UTF-8 text") from error
    yield from _shell(text)


def _arguments(content: bytes) -> list[str]:
    try:
        job = plistlib.loads(content)
    except (plistlib.InvalidFileException, ExpatError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RegistryInvalid("not a launchd job: it is no property list") from error
    argv = job.get("ProgramArguments") if isinstance(job, dict) else None
    if not isinstance(argv, list) or not all(isinstance(part, str) for part in argv):
        raise RegistryInvalid("not a launchd job: it has no ProgramArguments", field="ProgramArguments")
    return argv


def _shell(text: str) -> Iterator[tuple[int, list[str]]]:
    begins, pending = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        begins = begins if pending else number
        pending += line
        if line.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        yield from ((begins, argv) for argv in _simple(pending, begins))
        pending = ""


def _simple(line: str, number: int) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    try:
        parts = list(lexer)
    except ValueError as error:
        if "--port" in line:
            raise _invalid("the command cannot be read: a quote is not closed", number) from error
        return
    argv: list[str] = []
    for part in [*parts, "\n"]:
        if part in _ENDS:
            if argv:
                yield argv
            argv = []
        else:
            argv.append(part)


def _entry(argv: Sequence[str], line: int) -> dict[str, Any] | None:
    """The object of an entry; None when the command names no model."""
    flags = _flags(argv)
    short = () if argv[0].rpartition("/")[2].startswith("python") else (_SHORT_FLAG,)
    model = next((flags[name] for name in (*_MODEL_FLAGS, *short) if flags.get(name)), "") or _served(argv)
    if not model:
        return None
    port = flags["--port"]
    for value in (model, port):
        if "$" in value or "`" in value:
            raise _invalid(f"{value} is only known when the script runs", line, hint="write it out in a copy")
    if not port.isdigit():
        raise _invalid(f"--port {port[:20]!r} is no number", line)
    entry = {**_named(model, line), "format": "gguf" if model.endswith(".gguf") else "mlx", "port": int(port)}
    entry |= {field: flags[flag] for flag, field in _FIELDS.items() if flags.get(flag)}
    context = next((flags[name] for name in _CONTEXT_FLAGS if flags.get(name, "").isdigit()), "")
    return entry | ({"context_length": int(context)} if context else {})


def _flags(argv: Sequence[str]) -> Mapping[str, str]:
    """Flags with their values, as ``--flag value`` or ``--flag=value``."""
    found: dict[str, str] = {}
    for part, after in zip(argv, [*argv[1:], ""], strict=True):
        if part.startswith("-"):
            name, equals, value = part.partition("=")
            found.setdefault(name, value if equals else after)
    return found


def _served(argv: Sequence[str]) -> str:
    """The model of ``vllm serve MODEL``."""
    place = argv.index("serve") if "serve" in argv else -1
    return argv[place + 1] if 0 <= place < len(argv) - 1 and not argv[place + 1].startswith("-") else ""


def _named(model: str, line: int) -> dict[str, Any]:
    """Where the model comes from and what it is called: a snapshot of the hub's cache, a path, or a repository."""
    snapshot = _SNAPSHOT.search(model)
    path = "" if snapshot is None and not model.startswith(("/", "~", ".")) else model
    repository = f"{snapshot['owner']}/{snapshot['name']}" if snapshot else model
    if path and not snapshot:
        repository = path.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    try:
        name = str(ModelRef.parse(repository))
    except InvalidName as error:
        raise _invalid(f"{repository[:60]!r} is no name of a model", line) from error
    return {"repo_id": "" if path and not snapshot else repository, "model_id": name, "cache_path": ""} | (
        {"source_path": path} if path else {}
    )


def _invalid(words: str, line: int, *, hint: str = "") -> RegistryInvalid:
    return RegistryInvalid(f"line {line}: {words}", hint=hint, line=line)
