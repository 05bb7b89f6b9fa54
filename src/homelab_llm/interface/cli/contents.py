"""The table of contents of ``mlxctl``: its verbs by what they are for, each in a line, and where each one lives.

A summary stands in ``mlxctl --help`` and in the completion of a shell, so that neither imports the verbs; what
``mlxctl VERB --help`` says is in the verb's own text. A verb without a summary is for machines and not listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_CLI = "homelab_llm.interface.cli"


class Entry(NamedTuple):
    """One verb."""

    place: str
    """``module:attribute``."""
    summary: str
    """At most 64 characters: a line of a terminal of 80."""


class Chapter(NamedTuple):
    """Verbs that a person looks for together."""

    title: str
    verbs: Mapping[str, Entry]


CHAPTERS = (
    Chapter(
        "Talk",
        {
            "run": Entry(f"{_CLI}.run:run", "Ask a model once; without a prompt, a chat"),
            "chat": Entry(f"{_CLI}.chat:chat", "Talk with a model"),
        },
    ),
    Chapter(
        "Models",
        {
            "suggest": Entry(f"{_CLI}.suggest:suggest", "Name models that fit this machine"),
            "pull": Entry(f"{_CLI}.pull:pull", "Fetch a model from the hub, a registry, Ollama, a file, …"),
            "import": Entry(f"{_CLI}.models:import_", "Take in a file or folder of this machine"),
            "init": Entry(f"{_CLI}.init:init", "Take in the models of a Hugging Face cache"),
            "list": Entry(f"{_CLI}.listing:list_", "List the models"),
            "show": Entry(f"{_CLI}.show:show", "Say everything about a model"),
            "rm": Entry(f"{_CLI}.models:rm", "Remove models"),
        },
    ),
    Chapter(
        "Make models",
        {
            "create": Entry(f"{_CLI}.create:create", "Make a model of a base, instructions, parameters, adapters"),
            "template": Entry(f"{_CLI}.templates:template", "Look at chat templates, check and translate them"),
            "convert": Entry(f"{_CLI}.conversion:convert", "Make a model in another format: GGUF, MLX, safetensors"),
            "quantize": Entry(f"{_CLI}.conversion:quantize", "Make a model with smaller weights"),
            "fuse": Entry(f"{_CLI}.conversion:fuse", "Make an adapter part of the weights"),
            "perplexity": Entry(f"{_CLI}.conversion:perplexity", "Measure how well a model foretells a text"),
        },
    ),
    Chapter(
        "Share models",
        {
            "push": Entry(f"{_CLI}.registries:push", "Copy a model to an OCI registry or the hub"),
            "pack": Entry(f"{_CLI}.registries:pack", "Write a model as one file, or an OCI layout"),
            "cp": Entry(f"{_CLI}.copying:cp", "Give a model another name, or copy it to or from a machine"),
            "export": Entry(f"{_CLI}.exporting:export", "Let tools of the Hugging Face cache find a model"),
            "login": Entry(f"{_CLI}.registries:login", "Keep credentials for a registry or the hub"),
            "logout": Entry(f"{_CLI}.registries:logout", "Forget the credentials"),
            "exchange": Entry(f"{_CLI}.copying:exchange", ""),
        },
    ),
    Chapter(
        "Trust and disk",
        {
            "verify": Entry(f"{_CLI}.upkeep:verify", "Hash models again; without a name, check the slots"),
            "repair": Entry(f"{_CLI}.trust:repair", "Fetch again what is damaged"),
            "du": Entry(f"{_CLI}.trust:du", "Say what takes how much of the disk"),
            "prune": Entry(f"{_CLI}.trust:prune", "Delete what no model refers to"),
            "gc": Entry(f"{_CLI}.trust:gc", "Another name of prune"),
        },
    ),
    Chapter(
        "Slots",
        {
            "load": Entry(f"{_CLI}.slots:load", "Serve a model on a slot"),
            "swap": Entry(f"{_CLI}.slots:swap", "Put another model behind a slot, without a failed request"),
            "unload": Entry(f"{_CLI}.slots:unload", "Empty slots"),
            "unload-all": Entry(f"{_CLI}.slots:unload_all", "Empty every slot"),
            "adopt": Entry(f"{_CLI}.slots:adopt", "Take a model server of another origin into the registry"),
            "reconcile": Entry(f"{_CLI}.upkeep:reconcile", "Bring the slots in line with the registry"),
            "registry": Entry(f"{_CLI}.registry:registry", "Export, import, check and edit the registry"),
            "handles": Entry(f"{_CLI}.handles:handles", "Export, check and take in handles of the slots"),
        },
    ),
    Chapter(
        "Memory and requests",
        {
            "ps": Entry(f"{_CLI}.residency:ps", "List the loaded models"),
            "stop": Entry(f"{_CLI}.residency:stop", "Unload models"),
            "pin": Entry(f"{_CLI}.upkeep:pin", "Keep a model in memory"),
            "unpin": Entry(f"{_CLI}.upkeep:unpin", "Let a model be unloaded again"),
            "unquarantine": Entry(f"{_CLI}.upkeep:unquarantine", "Let a model that failed be tried again"),
            "fit": Entry(f"{_CLI}.foresight:fit", "Say whether a model would fit into memory"),
            "explain": Entry(f"{_CLI}.foresight:explain", "Say where a request would go, and why"),
        },
    ),
    Chapter(
        "Look",
        {
            "status": Entry(f"{_CLI}.status:status", "Say how daemon, slots, models and memory are"),
            "jobs": Entry(f"{_CLI}.jobs:jobs", "List long work, wait for it, call it off"),
            "events": Entry(f"{_CLI}.events:events", "Show what happened"),
            "logs": Entry(f"{_CLI}.logs:logs", "Print what the daemon or a worker wrote"),
            "db": Entry(f"{_CLI}.db:db", "Ask the system database, copy it, keep it small"),
        },
    ),
    Chapter(
        "Installation",
        {
            "doctor": Entry(f"{_CLI}.doctor:doctor", "Say what is wrong, why, and the next command"),
            "daemon": Entry(f"{_CLI}.daemon:daemon", "Start, stop and restart the daemon"),
            "serve": Entry("homelab_llm.ops.serve:serve", "Run the daemon in the foreground"),
            "service": Entry(f"{_CLI}.service:service", "Run the daemon as a service of this user"),
            "key": Entry(f"{_CLI}.keys:key", "Make, list and revoke API keys"),
            "completion": Entry(f"{_CLI}.completion:completion", "Print the completion script of a shell"),
            "version": Entry(f"{_CLI}.version:version", "Say the version"),
        },
    ),
)
