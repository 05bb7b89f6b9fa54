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
    Meta,
    read_meta,
    read_state,
    write_changes,
    write_meta,
    write_slots,
)

log = logging.getLogger(__name__)

Move = Callable[[RegistryState], RegistryState]
_LOOKS = 5


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
        return self._meta_and_state()[1]

    def revision(self) -> int:
        """That of the state as it is now; one row is read."""
        return self._meta().revision

    def change(self, move: Move, *, taken: bytes = b"") -> RegistryState:
        """Run a move in one transaction, keep what it returns and export it. What raises changes nothing.

        A change is kept even when the file cannot be written then; that is published and made good by the next
        change or ``heal``.

        Args:
            taken: a document that the move takes in; where the exported file is just that, it is replaced.
        """
        with self._database.write() as connection:
            meta = read_meta(connection)
            before = read_state(connection, meta.revision)
            after = replace(move(before), revision=before.revision)
            if after == before:
                return before
            after = replace(after, revision=meta.revision + 1)
            write_changes(connection, before, after)
            write_meta(connection, replace(meta, revision=after.revision))
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
        self._export(asked=True)

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
            meta, state = self._meta_and_state()
            content = self._readable()
            if self._meta() == meta:
                break
        else:
            return ""
        if isinstance(content, str):
            return content
        if content is None or sha256(content) in (meta.exported, meta.before):
            return ""
        return self._edited(state, content)

    def _meta(self) -> Meta:
        with self._database.read() as connection:
            return read_meta(connection)

    def _meta_and_state(self) -> tuple[Meta, RegistryState]:
        with self._database.read() as connection:
            meta = read_meta(connection)
            return meta, read_state(connection, meta.revision)

    def _readable(self) -> bytes | str | None:
        assert self._file is not None  # noqa: S101 — the caller looked
        try:
            return self._file.read()
        except OSError as error:
            return f"{self._file.path} cannot be read: {error.strerror or error}"

    def _edited(self, state: RegistryState, content: bytes) -> str:
        assert self._file is not None  # noqa: S101 — the caller looked
        try:
            said = differences(Document.of(state), read_document(content))
        except RegistryInvalid as error:
            return f"{self._file.path} is not ours and cannot be read: {error.message}"
        return f"{self._file.path} was edited: {'; '.join(said)}" if said else ""

    def _try_to_export(self, taken: str = "") -> None:
        """Export; what goes wrong is published, because the change itself is kept."""
        try:
            self._export(taken=taken)
        except (HomelabError, OSError) as error:
            reason = error.message if isinstance(error, HomelabError) else error.strerror or str(error)
            where = self._file.path if self._file else ""
            self._publish(Event("drift", f"{where} could not be written: {reason}; the registry is kept", "warning"))

    def _export(self, *, taken: str = "", asked: bool = False) -> None:
        if self._file is None:
            return
        with self._file.lock():
            meta, state = self._meta_and_state()
            content, there = write_document(Document.of(state)), self._file.read()
            new, found = sha256(content), sha256(there) if there is not None else ""
            if meta.revision == 0 and found and not asked:
                return  # nothing was ever registered: a file of another origin waits to be imported
            ours = {meta.exported, meta.before, taken}
            step = next_step(found=found, ours=ours, exported="" if asked else meta.exported, new=new)
            if step == "nothing" and (found != new or (meta.exported, meta.before) == (new, "")):
                return
            if step == "set aside and write":
                self._set_aside(state, there or b"")
            if step != "nothing":
                self._note(exported=new, before=found)
                failpoint("registry.before_export")
                self._file.write(content)
            self._note(exported=new, before="")

    def _set_aside(self, state: RegistryState, found: bytes) -> None:
        assert self._file is not None  # noqa: S101 — the caller looked
        words = self._edited(state, found)
        if words:
            aside = self._file.set_aside()
            text = f"{words}; that was kept as {aside.name}: mlxctl registry import {aside}"
            self._publish(Event("drift", text, "warning"))

    def _note(self, *, exported: str, before: str) -> None:
        with self._database.write() as connection:
            write_meta(connection, replace(read_meta(connection), exported=exported, before=before))
