"""System: the database as one daemon uses it. Registry, keys, inventory, jobs, records, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy import Connection

from homelab_llm.core.errors import DatabaseUnavailable
from homelab_llm.core.events import Event
from homelab_llm.core.facts import StoredModel
from homelab_llm.core.paths import Home
from homelab_llm.core.registry.handles import ManagedBy, handles_of
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.core.settings import DataSettings
from homelab_llm.data.database import Database
from homelab_llm.data.deployments import end_others, follow_events
from homelab_llm.data.footprints import Footprints
from homelab_llm.data.handles_file import export_handles, handles_path
from homelab_llm.data.inventory import Forecast, Inventory, Service
from homelab_llm.data.jobs import JobRows
from homelab_llm.data.keys import KeyRing
from homelab_llm.data.recorder import Recorder
from homelab_llm.data.registry import Registry
from homelab_llm.data.registry_file import registry_path
from homelab_llm.data.retention import Retention

RECORD_BUSY_S = 5.0


class SystemData:
    """Everything a daemon keeps. The schema must be the newest one.

    Args:
        publish: gets what the registry has to tell people; called on the event loop on which ``bind`` was called.
    """

    def __init__(
        self, home: Home, settings: DataSettings, environ: Mapping[str, str], publish: Callable[[Event], None]
    ) -> None:
        self._home = home
        self._publish = publish
        self._loop: asyncio.AbstractEventLoop | None = None
        self.database = Database.open(settings.url, home.database)
        own = Database.open(settings.url, home.database, durable=False, busy_s=RECORD_BUSY_S)
        retention = Retention(own, settings.keep_requests, settings.keep_events)
        self.recorder = Recorder(own, requests=settings.requests, retention=retention, follow=follow_events)
        self.footprints = Footprints(self.recorder.write_later)
        self.keys = KeyRing(self.database)
        export = registry_path(settings.registry_file, home, environ)
        self.registry = Registry(self.database, export, publish=self._tell)
        self.jobs = JobRows(self.database)
        self._inventory = Inventory(self.database)

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the registry's events are published on this loop."""
        self._loop = loop

    def open(self, slots: SlotTable) -> None:
        """Claim the database for this daemon, mend what a killed one left, and begin recording; blocks.

        Raises:
            DaemonRunning: another daemon uses this schema of a PostgreSQL database.
            DatabaseUnavailable: it cannot be used.
        """
        self.database.claim()
        self.registry.heal(slots)
        self.keys.import_file(self._home.keys)
        self.keys.open()
        self.footprints.load(self.database)
        self.recorder.open()

    def begin(self, alive: Collection[str]) -> None:
        """Workers of earlier daemons that are not among ``alive`` (ids) have ended; written later, in order."""
        now_s = time.time()

        def end(connection: Connection) -> None:
            end_others(connection, alive, now_s)

        self.recorder.write_later(end)

    def take_services(self, services: Sequence[Service]) -> None:
        """Write down who can be asked on this node now; blocks."""
        self._inventory.sync_services(services)

    def take_models(self, models: Sequence[StoredModel], foresee: Callable[[StoredModel], Forecast]) -> None:
        """Write down which models lie in the store; blocks.

        Args:
            foresee: what running a model here would take.
        """
        self._inventory.sync_models(models, foresee)

    def export_handles(self, models: Sequence[StoredModel], slots: SlotTable, managed_by: ManagedBy) -> None:
        """Bring ``handles.jsonl`` beside the exported registry up to date; blocks. A file never made stays absent
        while there is nothing to say.
        """
        embedders = {model.name for model in models if "embedding" in model.facts.capabilities}
        found = handles_of(self.registry.read(), slots, embedders, managed_by)
        export_handles(handles_path(self.registry.path, self._home), found)

    def close(self, *, succeeded: bool = False) -> None:
        """Write the last rows; blocks.

        Args:
            succeeded: another daemon serves here now, or will; else the services are down from now on.
        """
        self.keys.close()
        if not succeeded:
            with contextlib.suppress(DatabaseUnavailable):
                self._inventory.sync_services([])
        self.recorder.close()
        self.database.close()

    def _tell(self, event: Event) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._publish, event)
