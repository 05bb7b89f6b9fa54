"""Elsewhere: on which machine a verb runs. Here, over ssh on the inference host, or against a daemon behind a URL.

This is asked before every verb, so the way to "here" reads one small file at most and imports nothing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import InvalidInput, UnsupportedRequest, VersionMismatch

if TYPE_CHECKING:
    from homelab_llm.interface.cli.invocation import Invocation

EXPECT_VERSION = "--expect-version"  # as in ``ops/remote.py``, which is not imported for a verb that runs here
_VARIABLE = "HOMELAB_REMOTE__INFERENCE_HOST"
_KEY_VARIABLE = "HOMELAB_KEY"
_MAX_KEY_BYTES = 4096
_HELP = ("-h", "--help")


def place_verb(invocation: Invocation, options: Mapping[str, Any], argv: Sequence[str]) -> int | None:
    """Run ``argv``, a verb and what follows it, on another machine; None when it runs in this process.

    Args:
        options: those of ``mlxctl`` itself: ``host local url key_file root json``.

    Raises:
        UsageError: options that exclude each other.
        VersionMismatch: another machine of another version asked for a verb that changes something.
        UnsupportedRequest: ``--url`` and a verb that needs files of this machine.
    """
    if invocation.expected_version is not None:
        _compare_versions(invocation, argv)
        from homelab_llm.ops.remote import end_with_caller

        end_with_caller()
        return None
    host, url = options["host"], options["url"]
    if sum(map(bool, (host, options["local"], url))) > 1:
        raise click.UsageError("--host, --local and --url exclude each other")
    if options["key_file"] and not url:
        raise click.UsageError("--key-file belongs to --url")
    if url:
        _speak_to(invocation, url, options["key_file"], argv)
        return None
    if options["local"] or _asks_for_help(argv) or not (host or _names_a_host(invocation)):
        return None
    return _forward(invocation, host, options, argv)


def _names_a_host(invocation: Invocation) -> bool:
    """Whether the settings may name an inference host; decides without reading YAML."""
    if _VARIABLE in invocation.environ:
        return bool(invocation.environ[_VARIABLE])
    return invocation.may_be_set("remote", "inference_host")


def _asks_for_help(argv: Sequence[str]) -> bool:
    return argv[-1] in _HELP and not any(word.startswith("-") for word in argv[:-1])


def _forward(invocation: Invocation, host: str | None, options: Mapping[str, Any], argv: Sequence[str]) -> int | None:
    from homelab_llm.interface.cli.reach import reach_of, verb_path

    if reach_of(argv).here_only:
        if host:
            raise UnsupportedRequest(
                f"mlxctl {verb_path(argv)} concerns the machine it is typed on",
                hint=f"ssh -t {host} mlxctl {verb_path(argv)}",
            )
        return None
    chosen = invocation.settings.remote
    if not (host or chosen.inference_host):
        return None  # the file only mentions the setting
    from homelab_llm import __version__
    from homelab_llm.ops.remote import FarSide, Terminals, run_there

    far = FarSide(host or chosen.inference_host, chosen.command, chosen.ssh_config)
    root = options["root"] if host else None  # without --host it names the home whose settings sent us there
    head = ["--home", str(root)] if root else []
    head += ["--json"] * options["json"] + ["-v"] * invocation.verbosity
    terminals = Terminals(*(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)))
    return run_there(far, [*head, *argv], terminals, version=__version__, environ=invocation.environ)


def _compare_versions(invocation: Invocation, argv: Sequence[str]) -> None:
    from homelab_llm import __version__

    theirs = invocation.expected_version
    if theirs == __version__:
        return
    from homelab_llm.interface.cli.reach import reach_of, verb_path

    text = f"mlxctl is {theirs} on the machine it was typed on and {__version__} here"
    if reach_of(argv).changes:
        raise VersionMismatch(
            f"{text}; mlxctl {verb_path(argv)} may change something and is refused",
            hint="install the same version on both machines",
            here=__version__,
            there=theirs,
        )
    invocation.output.warning(text, "install the same version on both machines")


def _speak_to(invocation: Invocation, url: str, key_file: Path | None, argv: Sequence[str]) -> None:
    from homelab_llm.interface.cli.reach import reach_of, verb_path
    from homelab_llm.interface.daemon_client import DaemonClient
    from homelab_llm.interface.doors import WebDoor

    if not reach_of(argv).by_url and not _asks_for_help(argv):
        raise UnsupportedRequest(
            f"mlxctl {verb_path(argv) or argv[0]} works on files or processes of one machine, not over --url",
            hint=f"mlxctl --host NAME {shlex.join(argv)}",
        )
    door = WebDoor(url, _key(invocation.environ, key_file))
    if door.in_the_clear:
        invocation.output.warning("the key crosses the network unencrypted", "use an https address, or --host")
    invocation.elsewhere = DaemonClient(door)


def _key(environ: Mapping[str, str], file: Path | None) -> str:
    """The key of the file, else of the environment, else none; never of the command line, which others can read.

    Raises:
        InvalidInput: the file is not one with a key.
    """
    if file is None:
        return environ.get(_KEY_VARIABLE, "").strip()
    with file.open("rb") as stream:
        content = stream.read(_MAX_KEY_BYTES + 1)
    text = content.decode("ascii", "replace").strip()
    if not text or len(content) > _MAX_KEY_BYTES or len(text.split()) != 1:
        raise InvalidInput(f"{file} does not hold one key", hint="mlxctl key create NAME --admin", field="key-file")
    return text
