"""Verify: hash stored models again and say which file of which model is not what it was. Changes no model.

What is found is written down (``verification.py``): what is good need not be hashed before its next load, what is
bad is refused there at once, until it is repaired.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import HomelabError, ModelDamaged
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.failpoints import failpoint
from homelab_llm.store.census import Census, Damage, Piece, take_census
from homelab_llm.store.gc import all_blobs
from homelab_llm.store.hashing import Hashed, hash_blobs
from homelab_llm.store.index import read_index
from homelab_llm.store.progress import JobProgress, Progress
from homelab_llm.store.verification import FileState, Verdict, Verification

if TYPE_CHECKING:
    from homelab_llm.store.model_store import ModelStore

__all__ = ["FAILPOINTS", "Damage", "VerifyReport", "check_model", "damage_error", "verify"]

FAILPOINTS = ("verify.counted", "verify.hashed", "verify.noted")
"""Every failpoint of a verification; those of the store (``layout.FAILPOINTS``) are passed as well."""

_NOTE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    ``damages`` name each file of each model that is damaged; a blob that several models share is named for all of them.
    ``problems`` are what is wrong with the index itself; ``unreferenced`` counts blobs that no model needs.
    """

    models: int
    blobs: int
    bytes_hashed: int
    took_s: float
    damages: tuple[Damage, ...] = ()
    problems: tuple[str, ...] = ()
    unreferenced: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not (self.damages or self.problems)

    @property
    def damaged_models(self) -> list[str]:
        """Their names, each once."""
        return list(dict.fromkeys(damage.model for damage in self.damages if damage.model))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": self.ok,
            "models": self.models,
            "blobs": self.blobs,
            "bytes_hashed": self.bytes_hashed,
            "took_s": round(self.took_s, 3),
            "unreferenced": self.unreferenced,
            "damages": [
                {"model": damage.model, "file": damage.file, "digest": str(damage.digest), "text": damage.text}
                for damage in self.damages
            ],
            "problems": list(self.problems),
        }


def verify(
    store: ModelStore,
    names: Sequence[str] | None = None,
    *,
    progress: Callable[[JobProgress], None] | None = None,
    trust_s: float = 0.0,
) -> VerifyReport:
    """Hash every blob of the named models once, of the whole store when ``names`` is None; blocks.

    Args:
        progress: called often, from this thread; what it raises ends the work, and what was hashed stays known.
        trust_s: blobs found good so recently, and untouched since, are not hashed again.

    Raises:
        ModelNotFound: no such name. StoreDamaged: the index itself is unreadable.
    """
    started_s = time.monotonic()
    layout, known = store.layout, store.verification
    layout.check()
    if names is None:
        entries: Iterable[Any] = read_index(layout).entries
    else:
        entries = [entry for name in names for entry in store.entries(name)]
    census = take_census(layout, entries)
    wanted = [*census.pieces]
    unreferenced = 0
    if names is None and layout.blobs.is_dir():
        referenced = {*census.pieces, *(entry.digest for entry in entries)}
        loose = [digest for digest in all_blobs(layout) if digest not in referenced]
        unreferenced = len(loose)
        wanted += loose
    failpoint("verify.counted")
    recent = time.time() - trust_s
    if trust_s:
        wanted = [digest for digest in wanted if not _found_good_since(known, digest, recent)]
    hashed = list(_hashed(store, _of_right_size(store, census, wanted), progress))
    _judge(census, hashed)
    _forget_removed(store, census)
    return VerifyReport(
        models=len(census.models),
        blobs=len(hashed),
        bytes_hashed=sum(one.state.size_bytes for one in hashed if one.state and one.digest),
        took_s=time.monotonic() - started_s,
        damages=tuple(sorted(census.damages, key=lambda damage: (damage.model, damage.file))),
        problems=tuple(census.problems),
        unreferenced=unreferenced,
    )


def check_model(
    store: ModelStore, model: StoredModel, *, told: Callable[[float], None] | None = None, gently: bool = False
) -> list[Damage]:
    """Which files of a model are damaged; hashes only what is not known. For who is about to load it.

    Args:
        told: called with 0 to 1 while something is hashed; may raise to end it.
        gently: leave the processors to others.
    """
    damages, unknown = known_damages(store.verification, model)
    if damages or not unknown:
        return damages
    total = sum(path.lstat().st_size for path in unknown.values() if path.exists()) or 1
    owners = {Digest(path.name): name for name, path in unknown.items()}

    def tell(step: JobProgress) -> None:
        if told is not None:
            told(min(1.0, step.done_bytes / total))

    found = list(_hashed(store, list(owners), tell, gently=gently))
    return [Damage(model.name, owners[one.wanted], one.wanted, _how(one)) for one in found if not one.good]


def known_damages(known: Verification, model: StoredModel) -> tuple[list[Damage], dict[str, Path]]:
    """What is known of a model without hashing: its damaged files, and those of which nothing is known."""
    damages: list[Damage] = []
    unknown: dict[str, Path] = {}
    for name, path in model.files.items():
        digest = Digest(path.name)
        verdict = known.verdict(digest)
        if verdict == "bad":
            damages.append(Damage(model.name, name, digest, "has other content than its digest says"))
        elif verdict == "unknown":
            if not os.path.lexists(path):
                damages.append(Damage(model.name, name, digest, "is missing"))
            unknown[name] = path
    return damages, unknown


def damage_error(model: str, damages: Sequence[Damage]) -> ModelDamaged:
    """The error for a model that must not be loaded."""
    first, more = damages[0], len(damages) - 1
    rest = f", and {more} more of its files are damaged" if more else ""
    return ModelDamaged(
        f"{model} is damaged: {first.file} {first.text}{rest}",
        hint=f"mlxctl repair {model}",
        model=model,
        files=[damage.file for damage in damages],
    )


def _found_good_since(known: Verification, digest: Digest, unix_s: float) -> bool:
    found = known.known(digest)
    return found is not None and found.verdict == "good" and found.at_unix_s >= unix_s


def _of_right_size(store: ModelStore, census: Census, wanted: Sequence[Digest]) -> list[Digest]:
    """Those worth hashing; a file of the wrong size is damaged whatever is in it."""
    worth = []
    for digest in wanted:
        pieces = census.pieces.get(digest, ())
        expected = next((piece.size_bytes for piece in pieces if piece.size_bytes is not None), None)
        found = store.blobs.size_bytes(digest)
        if found is None or expected is None or found == expected:
            worth.append(digest)
        else:
            census.damages += _damages(pieces, digest, f"has {found:,} bytes in place of {expected:,}")
    return worth


def _hashed(
    store: ModelStore,
    wanted: Sequence[Digest],
    progress: Callable[[JobProgress], None] | None,
    *,
    gently: bool = False,
) -> Iterator[Hashed]:
    """Hash, tell and write down what is found, also when it is broken off."""
    report = Progress(progress or (lambda _: None), doing="hashing")
    sizes: Mapping[Digest, int] = {digest: store.blobs.size_bytes(digest) or 0 for digest in wanted}
    report.total([*sizes.values()])
    report.begin("", 0)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        report.bytes(done)

    pending: list[tuple[Digest, FileState, Verdict]] = []
    noted_s = time.monotonic()
    paths = [(digest, store.blobs.path(digest)) for digest in wanted]
    run = hash_blobs(paths, told=told, drop=not gently, gently=gently)
    try:
        for one in run:
            if one.state is not None:  # what cannot be read, because the disk says so, is no better than wrong
                pending.append((one.wanted, one.state, "good" if one.good else "bad"))
            failpoint("verify.hashed")
            if time.monotonic() - noted_s >= _NOTE_EVERY_S:
                _note(store, pending)
                noted_s = time.monotonic()
            yield one
    finally:
        run.close()
        _note(store, pending)
    report.stage("done")


def _note(store: ModelStore, pending: list[tuple[Digest, FileState, Verdict]]) -> None:
    if pending:
        store.verification.note(pending)
        pending.clear()
        failpoint("verify.noted")


def _judge(census: Census, hashed: Iterable[Hashed]) -> None:
    for one in hashed:
        if not one.good:
            pieces = census.pieces.get(one.wanted, ())
            census.damages += _damages(pieces, one.wanted, _how(one))


def _damages(pieces: Iterable[Piece], digest: Digest, text: str) -> list[Damage]:
    owners = [Damage(piece.model, piece.file or digest.short, digest, text) for piece in pieces]
    return owners or [Damage("", digest.short, digest, text)]


def _how(one: Hashed) -> str:
    return one.trouble.removeprefix("it ") or "has other content than its digest says"


def _forget_removed(store: ModelStore, census: Census) -> None:
    """A model that was removed while we looked is not damaged."""
    if any(damage.model for damage in census.damages):
        try:
            named = {str(entry.ref) for entry in read_index(store.layout).entries if entry.ref}
        except HomelabError:
            return
        census.damages = [damage for damage in census.damages if not damage.model or damage.model in named]
