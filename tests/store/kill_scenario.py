"""One run through everything the store writes; started by ``test_kills.py`` in a process of its own.

``kill_scenario.py STORE SOURCES`` runs it once, with the failpoints of the environment.
``kill_scenario.py --count STORE SOURCES`` prints how often each failpoint is passed, as JSON.
``kill_scenario.py --every STORE SOURCES NAME COUNT`` forks once per passage of NAME, lets the child be killed
there, and prints what ``examine`` found after each kill, and after the repetition, as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from homelab_llm.core import failpoints
from homelab_llm.core.digests import Digest
from homelab_llm.core.errors import ModelNotFound
from homelab_llm.core.facts import ModelFacts
from homelab_llm.core.names import ModelRef
from homelab_llm.store.model_store import ModelStore

FACTS = ModelFacts(format="gguf", architecture="fake", size_bytes=30)
PULLED = b"content of a pulled model file"
ETAGGED = b"content without a known digest"
NAMES = ["copied:1", "etagged:1", "linked:1", "pulled:1", "single:1"]
ref = ModelRef.parse


def scenario(root: Path, sources: Path) -> None:
    """Import by copy and by link, pull, view, copy, remove, prune. May be repeated on what a kill left."""
    store = ModelStore(root)
    store.import_path(sources / "single.gguf", ref("single:1"))
    store.import_path(next(sources.glob("hub/models--*/snapshots/*")), ref("linked:1"))
    pull(store, "pulled:1", PULLED, expected=Digest.of(PULLED))
    pull(store, "etagged:1", ETAGGED, validator="etag")
    store.import_path(sources / "folder", ref("going:1"))
    store.view(store.resolve("going:1"))
    store.copy(ref("single:1"), ref("copied:1"))
    store.remove(ref("going:1"))
    with contextlib.suppress(ModelNotFound):
        store.remove(ref("absent:1"))
    leave_litter(store)
    store.prune(keep_partials_s=0)


def pull(store: ModelStore, name: str, content: bytes, *, expected: Digest | None = None, validator: str = "") -> None:
    with store.blobs.open_writer(name, expected=expected, size_bytes=len(content), validator=validator) as writer:
        while not writer.complete and writer.offset < len(content):
            writer.write(content[writer.offset : writer.offset + 10])
        digest = writer.commit()
    store.add(ref(name), {"model.gguf": digest}, FACTS, source=name)


def leave_litter(store: ModelStore) -> None:
    """What earlier accidents may have left: an orphan, a partial, temporary files."""
    with store.blobs.open_writer("orphan") as writer:
        writer.write(b"orphan")
        store.blobs.release([writer.commit()])
    with store.blobs.open_writer("partial", expected=Digest.of(b"never finished")) as writer:
        writer.write(b"never")
    (store.root / "tmp" / f"{'0' * 16}.put").write_bytes(b"litter")
    (store.root / ".index.json.0000.tmp").write_bytes(b"litter")


def examine(root: Path) -> dict[str, Any]:
    """What a new process finds: models (whole ones, by content), problems, and what a prune leaves."""
    store = ModelStore(root)
    wrong = [
        f"{model.name}/{name}"
        for model in store.models()
        for name, path in model.files.items()
        if Digest.of_file(path).hex != path.name
    ]
    problems = [problem.message for problem in store.problems()]
    names = [model.name for model in store.models()]
    report = store.prune(keep_partials_s=0)
    again = ModelStore(root)
    return {
        "names": names,
        "after_prune": [model.name for model in again.models()],
        "wrong": wrong,
        "problems": problems + [problem.message for problem in again.problems()] + list(report.problems),
        "orphans": orphans(again) if root.exists() else [],
    }


def orphans(store: ModelStore) -> list[str]:
    """Every file of the store that no model accounts for."""
    expected = {"oci-layout", "index.json", "store.lock", "verified"}
    for model in store.models():
        manifest = json.loads(store.blobs.path(model.digest).read_bytes())
        digests = [str(model.digest), manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
        expected.update(f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in digests)
        expected.update(f"views/{model.digest.hex}/{name}" for name in model.files)
        if model.name == "etagged:1":  # the record by which a second pull finds its blob lives as long as the blob
            key = Digest.of(b"etagged:1").hex
            expected.update((f"tmp/{key}.json", f"tmp/{key}.lock"))
    found = {path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if not path.is_dir()}
    return sorted(found - expected)


def killed_at(name: str, passage: int, root: Path, sources: Path) -> bool:
    """Run the scenario in a fork that dies at this passage; whether it did."""
    child = os.fork()
    if child == 0:
        failpoints.arm(f"{name}=kill@{passage}")
        scenario(root, sources)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def main(arguments: list[str]) -> None:
    if arguments[0] == "--count":
        failpoints.arm("none=raise")
        counts: dict[str, int] = {}
        count_passages(counts)
        scenario(Path(arguments[1]), Path(arguments[2]))
        sys.stdout.write(json.dumps(counts) + "\n")
    elif arguments[0] == "--every":
        root, sources, name, count = Path(arguments[1]), Path(arguments[2]), arguments[3], int(arguments[4])
        for passage in range(1, count + 1):
            place = root.with_name(f"{root.name}-{name}-{passage}")
            died = killed_at(name, passage, place, sources)
            after_kill = examine(place)
            scenario(place, sources)
            found = {"at": f"{name}@{passage}", "died": died, "kill": after_kill, "end": examine(place)}
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
    else:
        scenario(Path(arguments[0]), Path(arguments[1]))


def count_passages(counts: dict[str, int]) -> None:
    """Let the table of armed failpoints count who asks for an entry."""

    class Counting(dict[str, tuple[str, int]]):
        def __contains__(self, name: object) -> bool:
            counts[str(name)] = counts.get(str(name), 0) + 1
            return False

    failpoints.ARMED = Counting(failpoints.ARMED)


if __name__ == "__main__":
    main(sys.argv[1:])
