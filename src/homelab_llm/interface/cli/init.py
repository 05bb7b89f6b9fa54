"""``mlxctl init``: begin with what this machine has. Models of a Hugging Face cache, and servers on slot ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from homelab_llm.core.errors import HomelabError, NotFound
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.units import format_bytes
from homelab_llm.interface.cli.invocation import Invocation, verb
from homelab_llm.interface.cli.slots import slots_of

if TYPE_CHECKING:
    from homelab_llm.core.registry.state import RegistryState
    from homelab_llm.store.hf_cache import CachedModel


@dataclass(slots=True)
class _Report:
    """What became of everything that was found."""

    cache: Path
    imported: list[dict[str, Any]] = field(default_factory=list)
    present: list[dict[str, Any]] = field(default_factory=list)
    passed: list[dict[str, str]] = field(default_factory=list)
    foreign: list[dict[str, Any]] = field(default_factory=list)
    adopted: list[int] = field(default_factory=list)
    stored: list[StoredModel] = field(default_factory=list)

    def as_dict(self, *, dry_run: bool) -> dict[str, Any]:
        names = ("imported", "present", "passed", "foreign", "adopted")
        return {"cache": str(self.cache), "dry_run": dry_run, **{name: getattr(self, name) for name in names}}

    def lines(self, *, dry_run: bool) -> Iterator[str]:
        word = "would import" if dry_run else "imported"
        for row in self.imported:
            older = f"; an older revision, because {row['older']}" if row.get("older") else ""
            yield f"{word} {row['name']} ({format_bytes(row['size_bytes'])}) from {row['repo_id']}{older}"
        for row in self.present:
            yield f"{row['name']} is in the store already"
        for row in self.passed:
            yield f"passed over {row['repo_id']}: {row['reason']}"
        for port in self.adopted:
            yield f"adopted the server on port {port}"
        if not (self.imported or self.present or self.passed):
            yield f"no models in {self.cache}"


@verb("init")
@click.argument("cache", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--copy", is_flag=True, help="Copy where the cache is on another file system than the store.")
@click.option("--adopt", is_flag=True, help="Adopt model servers of another origin that hold slot ports.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def init(invocation: Invocation, cache: Path | None, copy: bool, adopt: bool, dry_run: bool) -> None:
    """Take in the models of a Hugging Face cache, and the model servers that run on slot ports.

    CACHE is a hub cache; else HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub. Of each model the newest complete
    revision is linked into the store, not copied, and registered. Run it again at any time: what is there is left.
    """
    report = _Report(_cache_folder(invocation, cache))
    _take_models(invocation, report, copy=copy, dry_run=dry_run)
    if report.stored and not dry_run:
        with invocation.registry() as registry:
            registry.change(lambda state: _registered(state, report.stored))
        invocation.registry_changed()
    _look_at_slots(invocation, report, adopt=adopt and not dry_run)
    invocation.output.result(report.as_dict(dry_run=dry_run), lambda: report.lines(dry_run=dry_run))
    for row in report.foreign if not invocation.output.json else ():
        if row["port"] not in report.adopted:
            invocation.output.note(f"port {row['port']} is held by {row['words']}; try: mlxctl adopt {row['port']}")


def _cache_folder(invocation: Invocation, given: Path | None) -> Path:
    from homelab_llm.core.paths import hub_cache

    folder = (given or hub_cache(invocation.environ)).expanduser().absolute()
    if given and (folder / "hub").is_dir():
        folder /= "hub"  # HF_HOME itself was given
    if given and not folder.is_dir():
        raise NotFound(f"no folder {folder}", hint="mlxctl init ~/.cache/huggingface/hub")
    return folder


def _take_models(invocation: Invocation, report: _Report, *, copy: bool, dry_run: bool) -> None:
    from homelab_llm.store.hf_cache import read_cache

    contents = read_cache(report.cache)
    report.passed += [{"repo_id": passed.repo_id, "reason": passed.reason} for passed in contents.passed]
    for found in contents.models:
        by_name = {model.name: model for model in invocation.store.models()}
        known = by_name.get(str(found.ref))
        row = {"name": str(found.ref), "repo_id": found.repo_id, "commit": found.commit, "size_bytes": found.size_bytes}
        if found.older:
            row["older"] = found.older
        if known and known.source == found.source:
            report.present.append(row)
            report.stored.append(known)
        elif known and not known.source.startswith(f"hf:{found.repo_id}@"):
            report.passed.append(
                {"repo_id": found.repo_id, "reason": f"{known.name} is another model ({known.source})"}
            )
        elif dry_run:
            report.imported.append(row)
        else:
            _import(invocation, report, found, row, copy=copy)


def _import(invocation: Invocation, report: _Report, found: CachedModel, row: dict[str, Any], *, copy: bool) -> None:
    """One that cannot be taken in does not keep the others out."""
    with invocation.output.transfer(f"importing {found.ref}") as bar:
        try:
            model = invocation.store.import_path(
                found.path,
                found.ref,
                progress=lambda done, total: bar.update("hash", done, total),
                source=found.source,
                copy=copy,
            )
        except HomelabError as error:
            step = f" (try: {error.hint})" if error.hint else ""
            report.passed.append({"repo_id": found.repo_id, "reason": error.message + step})
            return
    report.stored.append(model)
    report.imported.append(row)


def _registered(state: RegistryState, models: list[StoredModel]) -> RegistryState:
    """With an entry for each; a model that was wanted completes the entry that wants it."""
    from homelab_llm.inference.controller.entries import registered

    for model in models:
        repo_id = model.source.removeprefix("hf:").partition("@")[0]
        wanting = (e.slug for e in state.entries.values() if e.is_intent and e.repo_id.removeprefix("hf:") == repo_id)
        state = registered(state, model, next(wanting, ""))
    return state


def _look_at_slots(invocation: Invocation, report: _Report, *, adopt: bool) -> None:
    """Servers of another origin on slot ports; a daemon is started only to adopt them."""
    client = invocation.daemon() if adopt else invocation.daemon_if_running()
    if client is None:
        return
    for row in slots_of(client):
        if row.get("state") != "foreign":
            continue
        holder = row.get("foreign") or {}
        who = " ".join(str(holder[name]) for name in ("name", "model") if holder.get(name)) or "another process"
        words = f"{who} (pid {holder['pid']})" if holder.get("pid") else who
        report.foreign.append({"port": row["port"], "alias": row["alias"], **holder, "words": words})
        if adopt:
            try:
                client.post("/admin/slots/adopt", {"slot": str(row["port"])})
                report.adopted.append(int(row["port"]))
            except HomelabError as error:
                report.passed.append({"repo_id": f"port {row['port']}", "reason": error.message})
