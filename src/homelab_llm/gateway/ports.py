"""Ports: everything the front door shall listen on, what of it is ours, and what somebody else holds for now.

A default address or a slot's port that is held is tried again every few seconds and taken as soon as it is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from homelab_llm.core.events import Event
from homelab_llm.core.registry.slots import SlotTable
from homelab_llm.gateway.listeners import Address, Bound, Held, Inherited, Wanted, bind_all, bind_tcp, close_all, held

AGAIN_S = 3.0


def wanted_addresses(listen: Iterable[str], slots: SlotTable, slot_bind: str) -> list[Wanted]:
    """The front addresses, then one of each slot.

    Raises:
        InvalidInput: not an address.
    """
    front = [Wanted(Address.parse(text)) for text in listen]
    shown = f"[{slot_bind}]" if ":" in slot_bind else slot_bind
    return front + [Wanted(Address.parse(f"{shown}:{slot.port}"), slot.port) for slot in slots.slots]


class Ports:
    """Listening sockets and held addresses of one front door. While ``paused`` no more are taken.

    Args:
        named: the user chose the front addresses, so one that is taken is an error.
        news: gets an event when a held address was taken.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        daemon_sock: Path,
        *,
        named: bool = False,
        news: Callable[[Event], None] | None = None,
    ) -> None:
        self._wanted = wanted
        self._daemon_sock = daemon_sock
        self._named = named
        self._news = news
        self._held: list[Held] = []
        self.bound: list[Bound] = []
        self.paused = False

    def bind(self, *, have_key: bool, inherited: Inherited | None = None) -> None:
        """Take everything that can be had; raises as ``listeners.bind_all``."""
        self.bound, self._held = bind_all(
            self._wanted, self._daemon_sock, named=self._named, have_key=have_key, inherited=inherited
        )

    @property
    def warnings(self) -> list[dict[str, str]]:
        """What is held by others now: ``{text, hint}``."""
        return [{"text": entry.error.message, "hint": entry.error.hint} for entry in self._held]

    def slot_problems(self) -> dict[int, dict[str, Any]]:
        """Of each slot's port that is held: pid and program of who holds it (None, empty: unknown), and a sentence."""
        return {
            entry.wanted.slot: {
                "pid": entry.error.facts.get("pid"),
                "name": entry.error.facts.get("name", ""),
                "text": entry.error.message,
            }
            for entry in self._held
            if entry.wanted.slot
        }

    async def watch(self, serve: Callable[[Bound], Any], *, again_s: float) -> None:
        """Try what is held again, for ever; ``serve`` begins to serve a socket that was had at last."""
        while self._held:
            await asyncio.sleep(again_s)
            if self.paused:
                continue
            refused: list[tuple[Wanted, OSError]] = []
            for wanted in [entry.wanted for entry in self._held]:
                try:
                    bound = bind_tcp(wanted)
                except OSError as error:
                    refused.append((wanted, error))
                else:
                    self.bound.append(bound)
                    self._held = [entry for entry in self._held if entry.wanted != wanted]
                    await serve(bound)
                    self._tell(bound)
            if refused:
                self._held = await asyncio.to_thread(held, refused)

    def close(self, *, remove: bool) -> None:
        """Close everything; ``remove``: the daemon's own socket from the file system too."""
        close_all(self.bound, remove=remove)
        self.bound, self._held = [], []

    def _tell(self, bound: Bound) -> None:
        slot = bound.listener.slot
        if self._news is not None:
            self._news(
                Event(
                    "port_taken",
                    f"{bound.listener.address} is free again and served now",
                    service=f"slot:{slot}" if slot else "mlxserve",
                    port=slot,
                    facts={"address": bound.listener.address},
                )
            )
