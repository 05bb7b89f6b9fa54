"""``mlxctl login``, ``logout``, ``push`` and ``pack``: models for others, and the credentials for that.

A secret is read from standard input or typed unseen; it is never an argument.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from homelab_llm.core.errors import Cancelled, InvalidInput
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.completion import model_names, targets
from homelab_llm.interface.cli.detached import detach, order
from homelab_llm.interface.cli.fetching import show_progress
from homelab_llm.interface.cli.invocation import Invocation, verb

if TYPE_CHECKING:
    from homelab_llm.store.push_report import PushReport
    from homelab_llm.store.settings import PullSettings

_MAX_SECRET_CHARACTERS = 65_536


@verb("login")
@click.argument("host")
@click.option("-u", "--user", help="Name of the account; asked for on a terminal.")
@click.option("--password-stdin", is_flag=True, help="Read the password, or access token, from standard input.")
@click.option("--token-stdin", is_flag=True, help="Read an identity token, or the hub's token, from standard input.")
def login(invocation: Invocation, host: str, user: str | None, password_stdin: bool, token_stdin: bool) -> None:
    """Prove who you are to the registry HOST (or huggingface.co), and keep that for pull and push.

    Credentials go into the file docker and podman use, or the credential helper it names; the hub's token where the
    hub's own tools keep it. Nothing is kept that is not taken.
    """
    from homelab_llm.store.hub_login import is_hub, log_in_to_hub

    if password_stdin and token_stdin:
        raise click.UsageError("--password-stdin and --token-stdin exclude each other")
    settings = _settings(invocation)
    if is_hub(host, settings):
        token = _secret(invocation, f"token for {host}", from_stdin=password_stdin or token_stdin)
        account, path = log_in_to_hub(token, settings)
        if invocation.environ.get("HF_TOKEN"):
            invocation.output.warning("HF_TOKEN is set and counts before this token", "unset HF_TOKEN")
        invocation.output.result({"registry": host, "account": account, "place": str(path)}, f"{host}: {account}")
        return
    from homelab_llm.store.oci.credentials import Credentials
    from homelab_llm.store.oci.login import log_in

    if token_stdin:
        credentials = Credentials(user or "", identity_token=_secret(invocation, "token", from_stdin=True))
    else:
        name = user or _asked(invocation, f"user name for {host}")
        credentials = Credentials(name, _secret(invocation, f"password of {name}", from_stdin=password_stdin))
    done = log_in(host, credentials, settings)
    if not done.asked:
        invocation.output.note(f"{done.registry} lets anybody in and did not ask; they are kept all the same")
    invocation.output.result(asdict(done), f"logged in to {done.registry}; kept in {done.place}")


@verb("logout")
@click.argument("host")
def logout(invocation: Invocation, host: str) -> None:
    """Forget the credentials for the registry HOST (or huggingface.co) in all files and helpers."""
    from homelab_llm.store.hub_login import is_hub, log_out_of_hub

    settings = _settings(invocation)
    if is_hub(host, settings):
        places = log_out_of_hub(settings)
    else:
        from homelab_llm.store.oci.login import log_out

        places = log_out(host, settings)
    text = f"logged out of {host}" if places else f"there were no credentials for {host}"
    invocation.output.result({"registry": host, "places": places}, text)


@verb("push")
@click.argument("model", shell_complete=model_names)
@click.argument("target", shell_complete=targets)
@detach
def push(invocation: Invocation, model: str, target: str, detach: bool) -> None:
    """Copy MODEL to a registry, oci://HOST/NAME:TAG, or to the hub, hf:ORG/NAME.

    A tag that exists is moved. What is there already is not sent again, and an interrupted push goes on where it
    was: repeat the command. With --json one line of progress after another, then what was done.
    """
    if detach:
        order(invocation, "push", {"model": model, "target": target})
        return
    from homelab_llm.store.push import push as store_push

    settings, events = _settings(invocation), invocation.output.json
    with show_progress(invocation, f"pushing {model}", events=events) as show:
        try:
            report = store_push(invocation.store, model, target, settings=settings, progress=show)
        except KeyboardInterrupt:
            raise Cancelled(
                f"pushing {model} was interrupted; what was sent is kept",
                hint=f"mlxctl push {model} {target}    # goes on from there",
            ) from None
    if events:
        invocation.output.event({"status": "done", "push": asdict(report)})
        return
    invocation.output.result({}, _pushed(report))


def _pushed(report: PushReport) -> str:
    how = [
        f"{format_bytes(report.sent_bytes)} sent" if report.sent_bytes else "nothing had to be sent",
        f"{report.mounted_blobs} of its blobs from another repository there" if report.mounted_blobs else "",
        f"it replaced {report.replaced}" if report.replaced else "",
    ]
    return f"{report.model} is at {report.url or report.target} ({'; '.join(filter(None, how))})"


@verb("pack")
@click.argument("model", shell_complete=model_names)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="FILE.tar, or a folder to make.")
def pack(invocation: Invocation, model: str, output: Path) -> None:
    """Write MODEL as an OCI layout of its own, for tools and machines without a registry.

    The same model gives the same bytes. `mlxctl pull file:OUTPUT` and `skopeo copy oci-archive:FILE.tar …` read it.
    """
    from homelab_llm.store.pack import pack as store_pack

    with show_progress(invocation, f"packing {model}", events=invocation.output.json) as show:
        try:
            report = store_pack(invocation.store, model, output, progress=show)
        except KeyboardInterrupt:
            raise Cancelled(
                f"packing {model} was interrupted; nothing is left of it", hint=f"mlxctl pack {model} -o {output}"
            ) from None
    if invocation.output.json:
        invocation.output.event({"status": "done", "pack": asdict(report)})
        return
    invocation.output.result({}, f"{report.model} is in {report.output} ({format_bytes(report.size_bytes)})")


def _settings(invocation: Invocation) -> PullSettings:
    from homelab_llm.store.settings import PullSettings

    return replace(PullSettings.of(invocation.settings.store), environ=invocation.environ)


def _secret(invocation: Invocation, what: str, *, from_stdin: bool) -> str:
    """Read from standard input, or typed unseen."""
    if not from_stdin:
        return _asked(invocation, what, unseen=True)
    secret = sys.stdin.read(_MAX_SECRET_CHARACTERS + 1).rstrip("\r\n")
    if not secret or len(secret) > _MAX_SECRET_CHARACTERS or not secret.isprintable():
        raise InvalidInput(f"standard input does not hold one {what.partition(' ')[0]}", field="stdin")
    return secret


def _asked(invocation: Invocation, what: str, *, unseen: bool = False) -> str:
    if not invocation.output.can_ask():
        raise click.UsageError("without a terminal give --user and --password-stdin, or --token-stdin")
    ask: Callable[..., str] = click.prompt
    return ask(what, hide_input=unseen, err=True)
