"""A check that the database has the migrations of this release, by Alembic.

It compares the revisions in the database's version table with the heads of the scripts, as Alembic does. It uses a
connection of the application's pool and does not run ``env.py``, as Alembic's commands do, because that creates its own
engine and configures logging again.

Two sets of heads can differ although no migration is pending: the database no longer lists a branch that another one
depends on. So the check decides by the scripts that have been applied, dependencies included.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ._check import CheckResult, HealthCheckError
from .sql import NOT_ASKED, engine_of, has_own_connections, query, validate

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import Connection, Engine

__all__ = ["MigrationsCheck"]

# The options of Alembic's context.configure() that name another version table.
TABLE = ("version_table", "version_table_schema")


class MigrationsCheck:
    """The database has all migrations of this release, and none that the release does not know.

    By default it belongs to the start-up: an instance waits there until the migrations have run. An older release that
    starts after a newer one has migrated fails as well; register the check with ``critical=False`` if it should start.
    The scripts are read once. The name of the version table is taken from Flask-Migrate
    (``Migrate(..., version_table=...)``) or from the options ``version_table`` and ``version_table_schema`` of a
    ``Config``. With several binds it checks only the default database. The limits of :class:`~.sql.DatabaseCheck`
    for pools hold here too.

    :param db: a synchronous SQLAlchemy ``Engine``, or the ``db`` of Flask-SQLAlchemy.
    :param directory: the directory that contains ``versions``, as a path or as Alembic's ``ScriptDirectory``, or an
        Alembic ``Config``; by default the directory of Flask-Migrate in the current application.
    """

    # Not "shared", though the database is: the scripts belong to this instance.
    scope = "local"
    groups = ("startup",)

    def __init__(
        self,
        db: Engine | SQLAlchemy,
        *,
        directory: str | os.PathLike[str] | Config | ScriptDirectory | None = None,
        name: str = "migrations",
    ) -> None:
        validate(db, None)
        _validate_directory(directory)
        self.name = name
        self._db = db
        self._directory = os.fspath(directory) if isinstance(directory, os.PathLike) else directory
        self._read: dict[Any, tuple[ScriptDirectory, dict[str, Any]]] = {}

    def __call__(self) -> CheckResult:
        engine = engine_of(self._db, None)
        if not has_own_connections(engine):
            return CheckResult(output=NOT_ASKED)
        source = _of_flask_migrate() if self._directory is None else self._directory
        if source not in self._read:
            self._read[source] = _scripts(source)
        scripts, table = self._read[source]
        return _compare(query(engine, lambda connection: _heads(connection, table)), scripts)


def _validate_directory(directory: Any) -> None:
    try:
        from alembic.config import Config
        from alembic.script import ScriptDirectory
    except ImportError:
        raise RuntimeError(
            "Alembic is not installed; install it with: pip install 'flask-lifecycle[migrate]'"
        ) from None
    if directory is not None and not isinstance(directory, str | os.PathLike | Config | ScriptDirectory):
        raise TypeError(
            f"'directory' must be a path, an Alembic Config or a ScriptDirectory, not {type(directory).__name__!r}."
        )


def _of_flask_migrate() -> Any:
    from flask import current_app

    try:
        return current_app.extensions["migrate"]
    except KeyError:
        error = RuntimeError(
            f"Flask-Migrate is not set up in the application '{current_app.name}';"
            " call Migrate(app, db), or give the check a 'directory'."
        )
        raise HealthCheckError("The directory of the migrations is not configured.") from error


def _scripts(source: Any) -> tuple[ScriptDirectory, dict[str, Any]]:
    """The scripts, and the options of the version table."""
    try:
        scripts, table = _open(source)
        scripts.get_heads()  # reads all of them
    except Exception as error:  # they are Python files and may raise anything
        raise HealthCheckError("The migrations of this release cannot be read; the log has the reason.") from error
    return scripts, {key: table[key] for key in TABLE if table.get(key)}


def _open(source: Any) -> tuple[ScriptDirectory, dict[str, Any]]:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    if isinstance(source, ScriptDirectory):
        return source, {}
    if isinstance(source, str):
        return ScriptDirectory(source), {}
    if isinstance(source, Config):
        return ScriptDirectory.from_config(source), {key: source.get_main_option(key) for key in TABLE}
    return ScriptDirectory.from_config(source.migrate.get_config()), source.configure_args


def _heads(connection: Connection, table: dict[str, Any]) -> set[str]:
    """The heads in the database; none if there is no version table yet."""
    from alembic.runtime.migration import MigrationContext

    return set(MigrationContext.configure(connection, opts=table).get_current_heads())


def _compare(heads: set[str], scripts: ScriptDirectory) -> CheckResult:
    revisions = {script.revision for script in scripts.walk_revisions()}
    unknown = heads - revisions
    known = tuple(heads & revisions)
    # Down to the base and along dependencies, unlike walk_revisions().
    applied = {script.revision for script in scripts.iterate_revisions(known, "base")} if known else set()
    pending = revisions - applied
    observed = {"database": sorted(heads), "scripts": sorted(scripts.get_heads()), "pending": len(pending)}
    if unknown:
        del observed["pending"]  # the unknown ones may contain them
        output = (
            f"Revisions of the database that this release does not know: {len(unknown)};"
            " deploy the release that knows them, or downgrade the database."
        )
        return CheckResult("fail", output, observed, len(unknown))
    if pending:
        output = f"Migrations still to be applied: {len(pending)} of {len(revisions)}; upgrade the database."
        return CheckResult("fail", output, observed, len(pending))
    return CheckResult(observed=observed, value=0)
