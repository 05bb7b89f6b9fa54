"""Registry: the kept state of the registry. It is changed by moves, and every change is exported.

One write transaction covers reading, moving and writing, so that no change is ever lost between two processes. The
export follows outside of it, from the state read under the file's lock: the last one to export shows the newest state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from homelab_llm.core.errors import HomelabError, RegistryInvalid
from homelab_llm.core.events import Event
from homelab_llm.core.failpoints import failpoint
from homelab_llm.core.registry.document import Document, read_document, write_document
from homelab_llm.core.registry.merge import differences
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.registry.state import RegistryState
from homelab_llm.data.database import Database
from homelab_llm.data.registry_file import RegistryFile, next_step, sha256
from homelab_llm.data.registry_rows import (
    Exported,
    read_exported,
    read_revision,
    read_state,
    write_changes,
    write_exported,
    write_revision,
    write_slots,
)

log = logging.getLogger(__name__)

Move = Callable[[RegistryState], RegistryState]
_LOOKS = 5
_MOST_WORDS = 5


def _say_in_log(event: Event) -> None:
    log.warning(event.text)


class Registry:
    """The registry of one database. Every call may block and may come from any thread.

    Args:
        export: where ``registry.json`` goes; None writes none.
        publish: gets an event (kind ``drift``) when a file edited by hand was kept aside, or when the file could not
            be written; called in the thread of the change. The log gets it when nobody listens.
    """

    def __init__(
        self, database: Database, export: Path | None = None, *, publish: Callable[[Event], None] = _say_in_log
    ) -> None:
        self._database = database
        self._file = RegistryFile(export) if export else None
        self._publish = publish

    @property
    def path(self) -> Path | None:
        """Where ``registry.json`` really lies; None when it is not exported."""
        return self._file.path if self._file else None

    def read(self) -> RegistryState:
        """The state as it is now."""
        with self._database.read() as connection:
            return read_state(connection)

    def revision(self) -> int:
        """That of the state as it is now; one row is read."""
        with self._database.read() as connection:
            return read_revision(connection)

    def change(self, move: Move, *, taken: bytes = b"") -> RegistryState:
        """Run a move in one transaction, keep what it returns and export it. What raises changes nothing.

        A change is kept even when the file cannot be written then; that is published and made good by the next
        change or ``heal``.

        Args:
            taken: a document that the move takes in; where the exported file is just that, it is replaced.
        """
        with self._database.write() as connection:
            before = read_state(connection)
            after = replace(move(before), revision=before.revision)
            if after == before:
                return before
            after = replace(after, revision=before.revision + 1)
            write_changes(connection, before, after)
            write_revision(connection, after.revision)
            failpoint("registry.before_commit")
        failpoint("registry.after_commit")
        self._try_to_export(sha256(taken) if taken else "")
        return after

    def export(self) -> None:
        """Have ``registry.json`` say what the registry says, whatever lies there; an edited one is kept aside.

        Raises:
            OSError: it cannot be written.
            StoreBusy: another process held its lock for 30 s.
        """
        if self._file is not None:
            self._export(self._file, asked=True)

    def heal(self, slots: SlotTable | None = None) -> None:
        """Mend what a killed process left: an export that was lost. Called when the daemon starts.

        Args:
            slots: the slots of the settings, noted in the database for who reads it; None leaves them.
        """
        if slots is not None:
            with self._database.write() as connection:
                write_slots(connection, slots)
        self._try_to_export()

    def file_drift(self) -> str:
        """How ``registry.json`` differs from the registry because somebody edited it; empty when nobody did."""
        if self._file is None:
            return ""
        for _ in range(_LOOKS):  # a process may be exporting just now: look again until nothing moved meanwhile
            with self._database.read() as connection:
                exported = read_exported(connection, self._file.place)
            try:
                content = self._file.read()
            except OSError as error:
                return f"{self._file.path} cannot be read: {error.strerror or error}"
            if content is None or sha256(content) in (exported.new, exported.before):
                return ""
            again, state = self._exported_and_state(self._file.place)
            if again == exported:
                return _edited(self._file.path, state, content)
        return ""

    def _exported_and_state(self, place: str) -> tuple[Exported, RegistryState]:
        """Both as of one moment."""
        with self._database.read() as connection:
            return read_exported(connection, place), read_state(connection)

    def _try_to_export(self, taken: str = "") -> None:
        """Export; what goes wrong is published, because the change itself is kept."""
        if self._file is None:
            return
        try:
            self._export(self._file, taken=taken)
        except (HomelabError, OSError) as error:
            reason = error.message if isinstance(error, HomelabError) else error.strerror or str(error)
            text = f"{self._file.path} could not be written: {reason}; the registry is kept"
            self._publish(Event("drift", text, "warning"))

    def _export(self, file: RegistryFile, *, taken: str = "", asked: bool = False) -> None:
        with file.lock():
            exported, state = self._exported_and_state(file.place)
            content, there = write_document(Document.of(state)), file.read()
            new, found = sha256(content), sha256(there) if there is not None else ""
            if state.revision == 0 and found and not asked:
                return  # nothing was ever registered: a file of another origin waits to be imported
            ours = {exported.new, exported.before, taken}
            step = next_step(found=found, ours=ours, exported="" if asked else exported.new, new=new)
            if step == "nothing" and (found != new or exported == Exported(new)):
                return
            if step == "set aside and write":
                self._set_aside(file, state, there or b"")
            if step != "nothing":
                self._note(file.place, Exported(new, before=found))
                failpoint("registry.before_export")
                file.write(content)
            self._note(file.place, Exported(new))

    def _set_aside(self, file: RegistryFile, state: RegistryState, found: bytes) -> None:
        if words := _edited(file.path, state, found):
            aside = file.set_aside()
            text = f"{words}; that was kept as {aside.name}: mlxctl registry import {aside}"
            self._publish(Event("drift", text, "warning"))

    def _note(self, place: str, exported: Exported) -> None:
        with self._database.write() as connection:
            write_exported(connection, place, exported)


def _edited(path: Path, state: RegistryState, content: bytes) -> str:
    """How a file that is not as we wrote it differs from the registry, in words; empty when it says the same."""
    try:
        said = differences(Document.of(state), read_document(content))
    except RegistryInvalid as error:
        return f"{path} is not ours and cannot be read: {error.message}"
    if not said:
        return ""
    more = f"; and {len(said) - _MOST_WORDS} more" if len(said) > _MOST_WORDS else ""
    by_whom = "was edited" if state.revision else "is of another origin"
    return f"{path} {by_whom}: {'; '.join(said[:_MOST_WORDS])}{more}"
