"""The schema: old or new, never between, with a copy made before; on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, inspect, literal_column, select, table

from homelab_llm.core.errors import DatabaseUnavailable, HomelabError, SchemaTooNew
from homelab_llm.data.address import Address
from homelab_llm.data.backup import back_up
from homelab_llm.data.creation import SCRIPT, created, script_of
from homelab_llm.data.database import Database
from homelab_llm.data.migrate import SCRIPTS, migrate
from homelab_llm.data.schema import HEAD, is_current, revision_of
from homelab_llm.data.tables import metadata, slots
from homelab_llm.data.upgrade import begin_upgrade, upgraded
from homelab_llm.data.views import VIEWS

FAILPOINTS = ("migration.before", "migration.inside", "migration.after")
LATER = f"{int(HEAD) + 1:04d}"
NEXT = f"""
from alembic import op
import sqlalchemy as sa
revision = "{LATER}"
down_revision = "{HEAD}"
def upgrade():
    op.create_table("colours", sa.Column("name", sa.Text(), primary_key=True))
    op.execute("UPDATE slots SET alias = 'new'")
"""  # noqa: S608 — a revision of our own
CHILD = f"""
import sys
from pathlib import Path
from homelab_llm.data.address import Address
from homelab_llm.data.migrate import migrate
url, folder, scripts = sys.argv[1:]
migrate(Address.of(url, Path(folder) / "system.db"), Path(folder) / "backups", scripts=Path(scripts), head="{LATER}")
"""


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The scripts of a later version, with one revision more."""
    scripts = tmp_path / "migrations"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / f"r{LATER}_colours.py").write_text(NEXT)
    return scripts


def state(database: Database) -> tuple[str, bool, str]:
    """Revision, whether the later table is there, and the row that the later revision changes."""
    revision = revision_of(database.address)
    with database.read() as connection:
        alias = connection.execute(select(slots.c.alias)).scalar_one()
        return revision, inspect(connection).has_table("colours"), str(alias)


@pytest.mark.requirement("R-D1")
def test_the_migrations_lead_to_the_tables_the_code_uses(database_url: str, tmp_path: Path) -> None:
    address = Address.of(database_url, tmp_path / "system.db")
    assert migrate(address, tmp_path / "backups")
    assert not migrate(address, tmp_path / "backups")
    with closing(Database(address)) as database, database.read() as connection:
        exact = {"compare_type": True, "compare_server_default": database.dialect == "postgresql"}
        context = MigrationContext.configure(connection, opts=exact)
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_view_names()) == set(VIEWS)
    assert ScriptDirectory(str(SCRIPTS)).get_heads() == [HEAD]
    assert is_current(address)


@pytest.mark.requirement("R-D1")
def test_a_new_file_is_made_as_the_migrations_would_make_it(tmp_path: Path) -> None:
    migrated, made = Address("sqlite", tmp_path / "migrated.db"), Address("sqlite", tmp_path / "made.db")
    migrate(migrated, tmp_path / "backups")
    assert created(made)
    assert not created(made)
    assert script_of(made.path) == script_of(migrated.path) == SCRIPT.read_text("utf-8"), "run: make docs"
    assert made.path.stat().st_mode & 0o077 == migrated.path.stat().st_mode & 0o077 == 0


@pytest.mark.requirement("R-D1")
@pytest.mark.parametrize("point", FAILPOINTS)
def test_a_migration_killed_anywhere_leaves_the_old_or_the_new_schema_and_a_copy(
    database: Database, later: Path, point: str, tmp_path: Path, database_url: str
) -> None:
    with database.write() as connection:
        connection.execute(slots.insert().values(port=8100, alias="old"))
    command = [sys.executable, "-c", CHILD, database_url, str(tmp_path), str(later)]
    killed = subprocess.run(command, env={**os.environ, "HOMELAB_FAILPOINTS": f"{point}=kill"}, check=False)
    assert killed.returncode == -9
    assert state(database) in ((HEAD, False, "old"), (LATER, True, "new"))
    assert state(database)[1] == (point == "migration.after")
    copies = list((tmp_path / "backups").glob("system-*.db"))
    assert len(copies) == 1
    with sqlite3.connect(copies[0]) as copy:
        assert copy.execute("SELECT alias FROM slots").fetchall() == [("old",)]
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    copy.close()
    subprocess.run(command, check=True)
    assert state(database) == (LATER, True, "new")


@pytest.mark.requirement("R-D1")
def test_a_database_of_an_earlier_version_keeps_its_rows_and_gains_the_tables(
    database_url: str, tmp_path: Path
) -> None:
    address = Address.of(database_url, tmp_path / "system.db")
    migrate(address, tmp_path / "backups", head="0001")
    with closing(Database(address)) as database:
        with database.write() as connection:
            connection.execute(slots.insert().values(port=8100, alias="old"))
            assert not inspect(connection).has_table("jobs")
        assert migrate(address, tmp_path / "backups")
        with database.read() as connection:
            assert connection.execute(select(slots.c.alias)).scalars().all() == ["old"]
            assert inspect(connection).has_table("jobs")
    assert len(list((tmp_path / "backups").iterdir())) == 1


@pytest.mark.requirement("R-D1")
@pytest.mark.parametrize("point", FAILPOINTS)
def test_a_killed_creation_is_finished_by_the_next_start(database_url: str, tmp_path: Path, point: str) -> None:
    environ = {**os.environ, "HOMELAB_FAILPOINTS": f"{point}=kill"}
    code = f"from pathlib import Path; from {upgraded.__module__} import upgraded; import sys\n"
    code += "print(upgraded(Path(sys.argv[1]), sys.argv[2]))"
    command = [sys.executable, "-c", code, str(tmp_path), database_url]
    killed = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    # a SQLite file is made by the process itself, all else by its child
    assert killed.returncode == -9 or "was ended by SIGKILL" in killed.stderr
    address = Address.of(database_url, tmp_path / "system.db")
    assert is_current(address) == (point == "migration.after")
    assert upgraded(tmp_path, database_url) == (point != "migration.after")
    assert is_current(address)


@pytest.mark.requirement("R-D1")
def test_migrations_at_once_are_one_migration(database_url: str, tmp_path: Path) -> None:
    told = json.dumps({"url": database_url, "home_root": str(tmp_path)})
    command = [sys.executable, "-m", "homelab_llm.data.migrate"]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(3)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write(told)
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert begin_upgrade(tmp_path, database_url) is None
    assert not (tmp_path / "backups").exists()


@pytest.mark.requirement("R-D1")
def test_a_database_of_a_newer_version_is_left_alone(database: Database, tmp_path: Path, database_url: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    for attempt in (begin_upgrade, upgraded):
        with pytest.raises(SchemaTooNew) as caught:
            attempt(tmp_path, database_url)
        assert (caught.value.facts["found"], caught.value.facts["known"]) == ("0999", HEAD)
    with pytest.raises(SchemaTooNew):
        migrate(database.address, tmp_path / "backups")


def test_the_error_of_the_child_is_the_error_of_the_caller(
    database: Database, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM alembic_version")  # it looks empty, and is not
    upgrade = begin_upgrade(tmp_path, database_url)
    assert upgrade is not None
    with pytest.raises(HomelabError) as caught:
        upgrade.wait()
    assert caught.value.code == "database_unavailable"
    assert "already exists" in caught.value.message


def test_a_damaged_file_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "system.db"
    path.write_bytes(bytes(range(256)) * 64)
    with pytest.raises(DatabaseUnavailable) as caught:
        begin_upgrade(tmp_path, "")
    assert "backups" in caught.value.hint
    assert path.stat().st_size == 256 * 64


def test_the_newest_five_copies_are_kept(tmp_path: Path) -> None:
    address = Address.of("", tmp_path / "system.db")
    migrate(address, tmp_path / "backups")
    database = Database(address)
    made = [back_up(database, tmp_path / "backups", HEAD).name for _ in range(8)]
    database.close()
    assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == made[3:]


def test_the_check_at_start_imports_neither_sqlalchemy_nor_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from homelab_llm.data.upgrade import begin_upgrade, upgraded\n"
        f"upgraded(Path({str(tmp_path)!r}), ''); assert begin_upgrade(Path({str(tmp_path)!r}), '') is None\n"
        "assert not {'sqlalchemy', 'alembic', 'psycopg', 'pydantic'} & set(sys.modules)\n"
        "import homelab_llm.data.database, homelab_llm.data.tables\n"
        "assert not {'alembic', 'mako', 'psycopg'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_view_of_an_empty_database_can_be_read(database: Database) -> None:
    with database.read() as connection:
        for view in VIEWS:
            assert connection.execute(select(literal_column("*")).select_from(table(view))).fetchall() == []
        assert connection.execute(select(func.count()).select_from(slots)).scalar_one() == 0
