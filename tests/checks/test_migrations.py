"""The check of migrations, with real scripts of Alembic's and a real PostgreSQL, or SQLite where that is enough."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from flask_migrate import Migrate, upgrade  # type: ignore[import-untyped]  # it has no types
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import StaticPool

from flask_lifecycle import CheckResult, HealthCheckError, Lifecycle
from flask_lifecycle.checks import MigrationsCheck
from tests._fakes import fails, make_app, whole

UNREADABLE = "The migrations of this release cannot be read; the log has the reason."
REVISION = """
revision = {!r}
down_revision = {!r}
branch_labels = None
depends_on = {!r}
def upgrade(): pass
def downgrade(): pass
"""
# Runs migrations on the connection that it is handed; the check would fail if it ran this.
ENV = """
from alembic import context
context.configure(connection=context.config.attributes["connection"], **context.config.attributes["options"])
with context.begin_transaction():
    context.run_migrations()
"""
FLASK_ENV = """
from alembic import context
from flask import current_app
migrate = current_app.extensions["migrate"]
with migrate.db.engine.connect() as connection:
    context.configure(connection=connection, **migrate.configure_args)
    with context.begin_transaction():
        context.run_migrations()
"""


class Scripts:
    """A directory of migrations that a test writes."""

    def __init__(self, path: Path, env: str = ENV) -> None:
        self.path = path
        (path / "versions").mkdir(parents=True)
        (path / "env.py").write_text(env)
        (path / "alembic.ini").write_text("[alembic]\n")
        self.config = Config()
        self.config.set_main_option("script_location", str(path))

    def add(self, revision: str, *down: str, depends_on: str | None = None) -> None:
        """Write a revision that follows others."""
        before = down if len(down) > 1 else next(iter(down), None)
        (self.path / "versions" / f"{revision}.py").write_text(REVISION.format(revision, before, depends_on))

    def upgrade(self, engine: Engine, to: str = "heads", **options: Any) -> None:
        """Bring a database to a revision."""
        with engine.connect() as connection:
            self.config.attributes.update(connection=connection, options=options)
            command.upgrade(self.config, to)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """Three migrations, one after the other."""
    made = Scripts(tmp_path / "migrations")
    made.add("a1")
    made.add("a2", "a1")
    made.add("a3", "a2")
    return made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A SQLite database in a file."""
    made = create_engine(f"sqlite:///{tmp_path / 'database'}")
    yield made
    made.dispose()


def well(*heads: str) -> CheckResult:
    """What is said when the database is where the scripts are."""
    return CheckResult("pass", "", {"database": list(heads), "scripts": list(heads), "pending": 0}, 0)


def pending(count: int, total: int, database: list[str], scripts: list[str]) -> CheckResult:
    """What is said when there is something to do."""
    output = f"Migrations still to be applied: {count} of {total}; upgrade the database."
    return CheckResult("fail", output, {"database": database, "scripts": scripts, "pending": count}, count)


def unknown(count: int, database: list[str], scripts: list[str]) -> CheckResult:
    """What is said when the database is ahead of the release."""
    output = (
        f"Revisions of the database that this release does not know: {count};"
        " deploy the release that knows them, or downgrade the database."
    )
    return CheckResult("fail", output, {"database": database, "scripts": scripts}, count)


def test_step_by_step(scripts: Scripts, engine: Engine, tmp_path: Path) -> None:
    """It fails while there are migrations to apply, says how many, and passes once there are none."""
    # It belongs into the start-up, and holds back the instance whose scripts it compares.
    check = MigrationsCheck(engine, directory=scripts.path)
    assert (check.name, check.groups, check.scope) == ("migrations", ("startup",), "local")
    assert check() == pending(3, 3, [], ["a3"])
    scripts.upgrade(engine, "a1")
    assert check() == pending(2, 3, ["a1"], ["a3"])
    assert MigrationsCheck(engine, directory=Scripts(tmp_path / "none").path)() == unknown(1, ["a1"], [])
    scripts.upgrade(engine)
    assert check() == well("a3")


def test_several_heads(scripts: Scripts, engine: Engine) -> None:
    """Of several heads, all have to be in the database."""
    scripts.add("b1")
    scripts.add("b2", "b1")
    check = MigrationsCheck(engine, directory=scripts.path)
    scripts.upgrade(engine, "a3")
    assert check() == pending(2, 5, ["a3"], ["a3", "b2"])
    scripts.upgrade(engine)
    assert check() == well("a3", "b2")


def test_a_merge(scripts: Scripts, engine: Engine) -> None:
    """Heads that a later script merges leave the merge to be applied, and nothing else."""
    scripts.add("b1")
    scripts.add("m1", "a3", "b1")
    scripts.upgrade(engine, "a3")
    scripts.upgrade(engine, "b1")
    check = MigrationsCheck(engine, directory=scripts.path)
    assert check() == pending(1, 5, ["a3", "b1"], ["m1"])
    scripts.upgrade(engine)
    assert check() == well("m1")


def test_a_branch_that_another_depends_on(scripts: Scripts, engine: Engine) -> None:
    """A head that another branch depends on is not in the database any more, and is applied nevertheless."""
    scripts.add("b1")
    scripts.add("a4", "a3", depends_on="b1")
    check = MigrationsCheck(engine, directory=scripts.path)
    assert check() == pending(5, 5, [], ["a4", "b1"])
    scripts.upgrade(engine)
    observed = {"database": ["a4"], "scripts": ["a4", "b1"], "pending": 0}
    assert check() == CheckResult("pass", "", observed, 0)


def test_ahead(scripts: Scripts, engine: Engine, tmp_path: Path) -> None:
    """A database that a newer release has migrated fails in the older one; the newer one passes."""
    scripts.add("a4", "a3")
    scripts.upgrade(engine)
    older = Scripts(tmp_path / "older")
    older.add("a1")
    assert MigrationsCheck(engine, directory=older.path)() == unknown(1, ["a4"], ["a1"])
    assert MigrationsCheck(engine, directory=scripts.path)() == well("a4")


def test_each_way_to_name_the_scripts(scripts: Scripts, engine: Engine) -> None:
    """The scripts are given as a path, a text, Alembic's own directory or its configuration."""
    scripts.upgrade(engine)
    for directory in (scripts.path, str(scripts.path), ScriptDirectory(str(scripts.path)), scripts.config):
        assert MigrationsCheck(engine, directory=directory)() == well("a3")


def test_another_table(scripts: Scripts, engine: Engine) -> None:
    """The options of a configuration say how the version table is called."""
    scripts.upgrade(engine, version_table="ours")
    assert MigrationsCheck(engine, directory=scripts.path)() == pending(3, 3, [], ["a3"])
    scripts.config.set_main_option("version_table", "ours")
    assert MigrationsCheck(engine, directory=scripts.config)() == well("a3")


def test_what_is_read(scripts: Scripts, engine: Engine) -> None:
    """The scripts of a release are read once; the env.py of the application is left alone."""
    check = MigrationsCheck(engine, directory=scripts.path)
    scripts.upgrade(engine)
    (scripts.path / "env.py").write_text("raise SystemExit('env.py was run')")
    handlers = logging.getLogger().handlers[:]
    assert check() == well("a3")
    for script in (scripts.path / "versions").glob("*.py"):
        script.unlink()
    assert check() == well("a3")
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("source", ["raise OSError('at 10.0.0.1')", "this is not Python", "down_revision = 'gone'"])
def test_unreadable_scripts(scripts: Scripts, engine: Engine, source: str) -> None:
    """Scripts that are missing or broken fail with one public sentence, and are read anew at the next run."""
    fails(MigrationsCheck(engine, directory=scripts.path / "none"), UNREADABLE)
    bad = scripts.path / "versions" / "bad.py"
    bad.write_text(source)
    check = MigrationsCheck(engine, directory=scripts.path)
    error = fails(check, UNREADABLE)
    assert error.__cause__ is not None
    bad.unlink()
    assert check() == pending(3, 3, [], ["a3"])


def test_flask_migrate(tmp_path: Path) -> None:
    """Without a directory it is that of Flask-Migrate, with its version table; the start-up waits for the upgrade."""
    scripts = Scripts(tmp_path / "migrations", FLASK_ENV)
    scripts.add("a1")
    app = make_app(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'database'}")
    db = SQLAlchemy(app)
    Migrate(app, db, directory=str(scripts.path), version_table="ours")
    check: Any = MigrationsCheck(db)
    with app.app_context():
        assert check() == pending(1, 1, [], ["a1"])
        upgrade()
        assert check() == well("a1")
        lifecycle = Lifecycle(app)
        lifecycle.add_check(check)
        assert app.test_client().get("/startupz").status_code == 200
        db.engine.dispose()


def test_flask_migrate_is_not_set_up(engine: Engine) -> None:
    """Without a directory and without Flask-Migrate it fails, and the log says what to do."""
    message = "The directory of the migrations is not configured."
    with make_app().app_context(), pytest.raises(HealthCheckError, match=whole(message)) as caught:
        MigrationsCheck(engine)()
    assert str(caught.value.__cause__) == (
        "Flask-Migrate is not set up in the application 'testing';"
        " call Migrate(app, db), or give the check a 'directory'."
    )


def test_a_shared_connection_is_left_alone(scripts: Scripts) -> None:
    """A pool with one connection for all is not asked, and what is open on it stays open."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE held (x int)"))
        connection.commit()
        connection.execute(text("INSERT INTO held VALUES (1)"))
        output = "The pool has no connection for a check alone, so the database was not asked."
        assert MigrationsCheck(engine, directory=scripts.path)() == CheckResult(output=output)
        connection.commit()
        assert connection.scalar(text("SELECT count(*) FROM held")) == 1
    engine.dispose()
