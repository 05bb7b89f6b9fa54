"""Logs: one line per event, as JSON or for a console, with the request's id and without secrets."""

from __future__ import annotations

import contextvars
import json
import logging
import re
import sys
import time
from typing import TextIO

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")

_SECRET = re.compile(
    r"(?i)(bearer\s+|(?:api[_-]?key|token|secret|password|authorization|cookie)[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)[^\s\"',;&]+"
)
_KEY_SHAPE = re.compile(r"\b(?:hl|sk|hf)[-_][A-Za-z0-9_-]{12,}")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """``text`` with everything that looks like a credential replaced by ``***``."""
    return _KEY_SHAPE.sub("***", _SECRET.sub(r"\1***", text))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    extra = {k: v for k, v in record.__dict__.items() if k not in _STANDARD}
    if current := request_id.get():
        extra.setdefault("request_id", current)
    return extra


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time level logger message`` and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, default=str, ensure_ascii=False))


class ConsoleFormatter(logging.Formatter):
    """One readable line: time, level, message, ``key=value`` pairs."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = " ".join(f"{k}={v}" for k, v in _fields(record).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()} {pairs}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send this product's logs to ``stream`` (standard error); replaces what was configured before."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    root = logging.getLogger("homelab_llm")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
