"""Output: the only place of the command line that prints. Tables, JSON, answers, notes, progress, errors.

Results go to standard output, everything else to standard error. Text that a model, a model file or an engine
wrote never reaches a terminal raw: control characters are shown as escapes. Rich is imported only when something
moves on a terminal.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

from homelab_llm.core.errors import HomelabError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_C1 = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
_COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "dim": "2"}


class OutputClosed(Exception):
    """The reader of standard output went away (``mlxctl list | head -1``)."""


def escape(text: str) -> str:
    """``text`` with every control character but newline and tab made visible: ESC becomes ``\\x1b``."""
    return _CONTROL.sub(lambda found: _visible(found[0]), text)


def escape_line(text: str) -> str:
    """As ``escape``, and on one line."""
    return escape(text).replace("\n", "\\n").replace("\t", "\\t")


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def as_json(data: Any, *, indent: int | None = None) -> str:
    """JSON that is safe to show: C1 controls and lone surrogates are escaped as C0 ones are."""
    text = json.dumps(data, ensure_ascii=False, indent=indent, default=str)
    return _C1.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def format_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell, two spaces between; cells are escaped to one line."""
    cells = [list(headers), *([escape_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


class Progress(Protocol):
    """Something that shows how far a piece of work is."""

    def update(self, stage: str, done: float, total: float | None, pace: str = "") -> None:
        """``total`` None means unknown; for transfers both are bytes, else ``total`` is 1. ``pace`` is shown as is."""
        ...


class Output:
    """Where a verb writes.

    Args:
        json: results as JSON on standard output, errors too; nothing else goes there.
        environ: ``NO_COLOR`` and ``TERM`` are read from it.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, *, json: bool, environ: Mapping[str, str]) -> None:
        self.json = json
        self._out, self._err = stdout, stderr
        self.to_terminal = stdout.isatty()
        self.notes_to_terminal = stderr.isatty()
        self._colours = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"

    @classmethod
    def of_process(cls, environ: Mapping[str, str], *, json: bool = False) -> Output:
        """On this process's streams; characters the locale cannot show are escaped, never an error."""
        for stream in (sys.stdout, sys.stderr):
            if reconfigure := getattr(stream, "reconfigure", None):
                reconfigure(errors="backslashreplace")
        return cls(sys.stdout, sys.stderr, json=json, environ=environ)

    # --- results ------------------------------------------------------------------------------------------

    def result(self, data: Any, text: str | Callable[[], Iterable[str]]) -> None:
        """The result of a verb: ``data`` with ``--json``, else ``text`` (or the lines it makes)."""
        if self.json:
            self._print(as_json(data, indent=2))
            return
        for line in [text] if isinstance(text, str) else text():
            self._print(escape(line))

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]], data: Any) -> None:
        """Rows for people, ``data`` for programs."""
        if self.json:
            self._print(as_json(data, indent=2))
            return
        head, *lines = format_table(headers, rows)
        self._print(self._styled(head, "bold", self.to_terminal))
        for line in lines:
            self._print(line)

    def event(self, data: Any) -> None:
        """One line of a JSON stream, written at once."""
        self._print(as_json(data), flush=True)

    def answer(self, text: str) -> None:
        """A piece of a model's answer, shown at once and never with a line end of ours."""
        self._print(escape(text), end="", flush=True)

    def thinking(self, text: str) -> None:
        """A piece of what a model says to itself: dim on a terminal, nowhere else."""
        if self.notes_to_terminal and not self.json:
            self._err.write(self._styled(escape(text), "dim", to_terminal=True))
            self._err.flush()

    def raw(self, text: str) -> None:
        """Our own text as it is: a completion script, a rendered unit."""
        self._print(text, end="" if not text or text.endswith("\n") else "\n")

    # --- beside the result --------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something a person may want to know; on standard error."""
        self._say(escape(text))

    def warning(self, text: str, hint: str = "") -> None:
        """Something is worse than it could be, and what mends it."""
        self._say(self._styled("warning: ", "yellow", self.notes_to_terminal) + escape(text))
        if hint:
            self._say(f"  try: {escape(hint)}")

    def error(self, error: HomelabError, exit_code: int) -> None:
        """The reason and the next step; with ``--json`` as an object on standard output."""
        if self.json:
            self._print(as_json({"error": {**error.as_dict(), "exit_code": exit_code}}, indent=2))
            return
        self._say(self._styled("error: ", "red", self.notes_to_terminal) + escape(error.message))
        if error.hint:
            self._say(f"  try: {escape(error.hint)}")

    def mark(self, status: str) -> str:
        """A status word, coloured on a terminal: ok, warn, fail."""
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[status]
        return self._styled(f"{status:4}", colour, self.to_terminal)

    def checks(self, rows: Iterable[tuple[str, str, str, str]]) -> None:
        """Status, name, finding and next step of each check."""
        for status, name, why, step in rows:
            self._print(f"{self.mark(status)}  {escape_line(name)}: {escape_line(why)}")
            if step:
                self._print(f"      try: {escape_line(step)}")

    # --- progress -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transfer(self, title: str) -> Iterator[Progress]:
        """Bytes, speed and time left: a bar on a terminal, ten lines elsewhere, nothing with ``--json``."""
        if self.json:
            yield _Silent()
        elif self.notes_to_terminal:
            from homelab_llm.interface.cli.live import transfer_bar

            with transfer_bar(self._err, escape_line(title), colours=self._colours) as bar:
                yield bar
        else:
            yield _LineProgress(self, title)

    @contextlib.contextmanager
    def loading(self, title: str) -> Iterator[Progress]:
        """How far a load is: a spinner on a terminal, nothing elsewhere."""
        if self.notes_to_terminal and not self.json:
            from homelab_llm.interface.cli.live import load_spinner

            with load_spinner(self._err, escape_line(title), colours=self._colours) as spinner:
                yield spinner
        else:
            yield _Silent()

    # --- questions ----------------------------------------------------------------------------------------

    def confirm(self, question: str) -> bool:
        """Ask yes or no on the terminal; only call it where ``can_ask``."""
        self._err.write(f"{escape_line(question)} [y/N] ")
        self._err.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def can_ask(self) -> bool:
        """Whether a person sits at the other end."""
        return not self.json and self.notes_to_terminal and sys.stdin is not None and sys.stdin.isatty()

    # --- the bottom ---------------------------------------------------------------------------------------

    def _styled(self, text: str, style: str, to_terminal: bool) -> str:
        return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if to_terminal and self._colours else text

    def _print(self, text: str, *, end: str = "\n", flush: bool = False) -> None:
        try:
            print(text, end=end, file=self._out, flush=flush)
        except BrokenPipeError as error:
            raise OutputClosed from error

    def _say(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads the notes: no reason to stop the work
            self.finish()
            print(text, file=self._err, flush=True)

    def finish(self) -> None:
        """Write what is buffered, so that results and notes keep their order."""
        try:
            self._out.flush()
        except BrokenPipeError as error:
            raise OutputClosed from error


class _Silent:
    def update(self, stage: str, done: float, total: float | None, pace: str = "") -> None:
        """Nobody watches."""


class _LineProgress:
    """A line at every tenth, for logs and pipes."""

    def __init__(self, output: Output, title: str) -> None:
        self._output, self._title, self._tenth = output, title, -1

    def update(self, stage: str, done: float, total: float | None, pace: str = "") -> None:
        tenth = int(10 * done / total) if total else 0
        if tenth != self._tenth:
            self._tenth = tenth
            self._output.note(f"{self._title}: {stage} {tenth * 10} % {pace}".rstrip())
