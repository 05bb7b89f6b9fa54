"""Units for people: sizes in decimal units as disks and memory are sold, durations, and their parsers."""

from __future__ import annotations

import re

from homelab_llm.core.errors import InvalidInput

_SCALES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")


def format_bytes(count: int) -> str:
    """``98362432`` → ``98.4 MB``; one decimal, decimal units."""
    for unit, scale in _SCALES:
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def parse_bytes(text: str | int) -> int:
    """``"8GB"``, ``"8 GiB"``, ``"512M"`` or a plain count of bytes → bytes.

    Raises:
        InvalidInput: not a size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if not match or match[2].lower() not in _SIZE_UNITS:
        raise InvalidInput(f"not a size: {text[:40]!r}", hint="write 8GB, 512MiB or a number of bytes")
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def format_duration(seconds: float) -> str:
    """``0.25`` → ``250ms``, ``75`` → ``1m15s``, ``7300`` → ``2h1m``; at most two parts."""
    if seconds < 0:
        return "never"
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    whole = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def parse_duration(value: str | float) -> float:
    """Seconds, or text such as ``5m``, ``1h30m``, ``250ms``; negative means for ever.

    The forms Ollama's ``keep_alive`` takes (its API reference).

    Raises:
        InvalidInput: not a duration.
    """
    if isinstance(value, int | float):
        return float(value)
    text = value.strip()
    try:
        return float(text)
    except ValueError:
        pass
    if not _DURATION.fullmatch(text):
        raise InvalidInput(f"not a duration: {text[:40]!r}", hint="write 300, 5m, 1h30m, or -1 for ever")
    total = sum(float(n) * _DURATION_UNITS[u] for n, u in _DURATION_PART.findall(text))
    return -total if text.startswith("-") else total
