"""Slots: ports whose numbers and names never move, while the models behind them are swapped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from homelab_llm.core.errors import InvalidInput, SlotNotFound
from homelab_llm.core.names import parse_slug

ALIASES = (
    "jerry-xl",
    "jerry-l",
    "jerry-m",
    "jerry-s",
    "bench-xl",
    "bench-l",
    "bench-m",
    "bench-s",
    "utility-a",
    "utility-b",
)
MOST_SLOTS = 64
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Slot:
    """A port and its name; both are fixed by the settings."""

    port: int
    alias: str


@dataclass(frozen=True, slots=True)
class SlotTable:
    """All slots of a node, by port in ascending order. Empty when the node has none."""

    slots: tuple[Slot, ...] = ()

    @classmethod
    def of(cls, ports: str, aliases: Sequence[str]) -> SlotTable:
        """From the settings: ``none``, ``8100-8109``, or a list such as ``8100,8102-8104``.

        The n-th port gets the n-th alias; ports beyond the last alias are called ``slot-PORT``.

        Raises:
            InvalidInput: not ports, a duplicate port or alias, or more than 64 slots.
            InvalidName: an alias that is not a slug.
        """
        numbers = parse_ports(ports)
        names = [parse_slug(alias, what="alias") for alias in aliases[: len(numbers)]]
        names += [f"slot-{port}" for port in numbers[len(names) :]]
        if len(set(names)) != len(names):
            raise InvalidInput("two slots have the same alias", field="slots.aliases")
        return cls(tuple(Slot(port, name) for port, name in zip(numbers, names, strict=True)))

    @property
    def ports(self) -> tuple[int, ...]:
        return tuple(slot.port for slot in self.slots)

    @property
    def aliases(self) -> tuple[str, ...]:
        return tuple(slot.alias for slot in self.slots)

    def find(self, text: str | int) -> Slot:
        """The slot of a port or an alias, as a person wrote it.

        Raises:
            SlotNotFound: the hint names the slots there are.
        """
        wanted = str(text)
        for slot in self.slots:
            if wanted in (str(slot.port), slot.alias):
                return slot
        shown = wanted[:40].encode("unicode_escape").decode("ascii")
        raise SlotNotFound(
            f"no slot {shown!r}",
            hint=f"the slots are {', '.join(f'{s.port} ({s.alias})' for s in self.slots)}"
            if self.slots
            else "this node has no slots; set slots.ports to 8100-8109",
            field="slot",
        )


def parse_ports(text: str) -> tuple[int, ...]:
    """The ports of ``none``, ``8100``, ``8100-8109`` or a list of these, ascending.

    Raises:
        InvalidInput: anything else.
    """
    if text.strip().lower() in ("none", ""):
        return ()
    ports: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 1024 <= first <= last <= 65535 or last - first >= MOST_SLOTS:
            raise InvalidInput(
                f"not ports for slots: {part.strip()[:40]!r}",
                hint=f"write none, 8100-8109 or 8100,8102 (1024 to 65535, at most {MOST_SLOTS})",
                field="slots",
            )
        ports.extend(range(first, last + 1))
    return _distinct(ports)


def _distinct(ports: Iterable[int]) -> tuple[int, ...]:
    ordered = sorted(ports)
    if len(set(ordered)) != len(ordered) or len(ordered) > MOST_SLOTS:
        raise InvalidInput(f"a port is named twice, or there are more than {MOST_SLOTS}", field="slots")
    return tuple(ordered)
