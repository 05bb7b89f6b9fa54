"""Write the reference pages that are generated from code; ``tests/docs`` fails when a page drifts.

Usage: reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import inspect

from homelab_llm.core.errors import error_classes
from homelab_llm.core.settings import Section, Settings
from homelab_llm.core.units import format_bytes, format_duration
from homelab_llm.data.address import Address
from homelab_llm.data.creation import SCRIPT, script_of
from homelab_llm.data.database import Database
from homelab_llm.data.migrate import migrate
from homelab_llm.data.schema_page import render as render_schema
from homelab_llm.data.views import VIEWS
from homelab_llm.gateway.errors import status_of
from homelab_llm.gateway.routes import ROUTES
from homelab_llm.interface.cli.exit_codes import exit_code_of
from homelab_llm.interface.cli.reference import render as render_cli

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Generated from code by `make docs`; do not edit. -->\n"


def _shown(key: str, value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    if key.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    if (key.endswith("_s") or key == "keep_alive") and isinstance(value, int | float):
        return format_duration(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def settings_page() -> str:
    """Every setting with default and meaning."""
    lines = [
        NOTE,
        "# Settings",
        "",
        "Defaults are overridden by `HOME/config.yaml`, that by the environment, that by flags.",
    ]
    lines += [
        "The variable of a key is `HOMELAB_<SECTION>__<KEY>`. Unknown keys are errors that name file and line.",
        "",
    ]
    defaults = Settings()
    for section in Settings.model_fields:
        values: Section = getattr(defaults, section)
        lines += [
            f"## {section}",
            "",
            (type(values).__doc__ or "").strip(),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, field in type(values).model_fields.items():
            lines.append(f"| `{key}` | `{_shown(key, getattr(values, key))}` | {field.description} |")
        lines.append("")
    return "\n".join(lines)


def errors_page() -> str:
    """Every error with HTTP status and exit code."""
    lines = [
        NOTE,
        "# Errors",
        "",
        "Every error carries `code`, `message`, `hint` (the next step), `retryable` and facts.",
        "",
    ]
    lines += ["| code | HTTP | exit | retry helps | meaning |", "|---|---|---|---|---|"]
    for cls in error_classes():
        meaning = " ".join((cls.__doc__ or "").split())
        retry = "yes" if cls.retryable else "no"
        lines.append(f"| `{cls.code}` | {status_of(cls)} | {exit_code_of(cls)} | {retry} | {meaning} |")
    return "\n".join([*lines, ""])


def endpoints_page() -> str:
    """Every endpoint with who may call it."""
    lines = [NOTE, "# Endpoints", "", "| method | path | who | what |", "|---|---|---|---|"]
    lines += [f"| {' '.join(sorted(r.methods))} | `{r.path}` | {r.access} | {r.summary} |" for r in ROUTES]
    return "\n".join([*lines, ""])


@contextmanager
def migrated() -> Iterator[Address]:
    """A database that all migrations have just made."""
    with TemporaryDirectory() as folder:
        address = Address("sqlite", path=Path(folder) / "system.db")
        migrate(address, Path(folder))
        yield address


def creation_script() -> str:
    """What a new SQLite database is made from: all that the migrations lead to."""
    with migrated() as address:
        return script_of(address.path)


def schema_page() -> str:
    """Tables and views, as a database tells them that the migrations have just made."""
    with migrated() as address:
        with closing(Database(address)) as database, database.read() as connection:
            found = inspect(connection)
            return render_schema({view: [column["name"] for column in found.get_columns(view)] for view in VIEWS})


def pages() -> dict[str, str]:
    """File name → content of every generated page."""
    return {
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "endpoints.md": endpoints_page(),
        "cli.md": NOTE + render_cli(),
        "../foundation/system-docs-db-schema.md": NOTE + "\n" + schema_page(),
    }


def main() -> None:
    """Write the pages, and the script of a new database."""
    SCRIPT.write_text(creation_script(), "utf-8")
    for name, content in pages().items():
        path = (FOLDER / name).resolve()
        path.write_text(content, "utf-8")
        print(f"wrote {path.relative_to(FOLDER.parent.parent)}")


if __name__ == "__main__":
    main()
