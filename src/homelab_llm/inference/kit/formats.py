"""Formats of strings that are enforced: RFC 3339 dates and times, and UUIDs (RFC 9562)."""

from __future__ import annotations

from collections.abc import Mapping

from homelab_llm.inference.kit.grammar import Expr, Rep, alt, chars, maybe, seq

_DIGIT = chars("09")
_HEX = chars("09", "af")
_YEAR = Rep(_DIGIT, 4, 4)
_SIXTY = seq(chars("05"), _DIGIT)
_DAY = alt(seq("0", chars("19")), seq(chars("12"), _DIGIT))
_LONG = alt("01", "03", "05", "07", "08", "10", "12")
_SHORT = alt("04", "06", "09", "11")
# The 29th of February only when the year's last two digits may make it a leap year; 1900 slips through.
_LEAP = alt(
    seq(chars("0", "2", "4", "6", "8"), chars("0", "4", "8")),
    seq(chars("1", "3", "5", "7", "9"), chars("2", "6")),
)
_TO_28 = alt(seq("0", chars("19")), seq("1", _DIGIT), seq("2", chars("08")))
_DATE = alt(
    seq(_YEAR, "-", _LONG, "-", alt(_DAY, "30", "31")),
    seq(_YEAR, "-", _SHORT, "-", alt(_DAY, "30")),
    seq(_YEAR, "-02-", _TO_28),
    seq(Rep(_DIGIT, 2, 2), _LEAP, "-02-29"),
)
_HOUR = alt(seq(chars("01"), _DIGIT), seq("2", chars("03")))
_OFFSET = alt("Z", seq(chars("+", "-"), _HOUR, ":", _SIXTY))
_TIME = seq(_HOUR, ":", _SIXTY, ":", _SIXTY, maybe(seq(".", Rep(_DIGIT, 1, 9))), _OFFSET)
_UUID = seq(Rep(_HEX, 8, 8), "-", Rep(_HEX, 4, 4), "-", Rep(_HEX, 4, 4), "-", Rep(_HEX, 4, 4), "-", Rep(_HEX, 12, 12))

FORMATS: Mapping[str, Expr] = {"date": _DATE, "time": _TIME, "date-time": seq(_DATE, "T", _TIME), "uuid": _UUID}
