"""Checks of a SQL database, by SQLAlchemy: does it answer, how full is the pool, and has it the migrations (Alembic)?

All use the application's own pool. With their own connection they would pass while the application waits for its
exhausted pool, and the probes of every replica would use up connections that the database allows.

The query is ``SELECT 1``, and not the driver's ping, which a proxy may answer itself. And a statement that finds a lost
connection makes SQLAlchemy mark the whole pool as stale, so the one retry gets a new connection even if all in the pool
died together, as in a restart of the server.

The migrations are compared by revision, as Alembic does. ``env.py`` does not run, as in Alembic's commands, because
that creates its own engine and configures logging again. Two sets of heads can differ although no migration is pending:
the database no longer lists a branch that another one depends on. So the check decides by the scripts that have been
applied, dependencies included.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._check import CheckResult, HealthCheckError
from ._validation import needs

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import Connection, Engine

T = TypeVar("T")

# The options of Alembic's context.configure() that name another version table.
TABLE = ("version_table", "version_table_schema")

NOT_ASKED = "The pool has no connection for a check alone, so the database was not asked."


class DatabaseCheck:
    """The database answers ``SELECT 1`` on a connection of the application's own pool.

    A stale connection is replaced once. If the pool is exhausted, the check waits for the engine's ``pool_timeout``
    at most (30 s unless set). If that is below the check's timeout, the check fails with the reason, otherwise it is
    reported as hanging; :class:`PoolCheck` warns before either. A server that takes the statement and does not answer
    blocks one connection until the driver gives up, so set the driver's timeouts, in ``connect_args``.

    The check does not use pools that share a connection (``StaticPool``, ``SingletonThreadPool``, ``AssertionPool``, as
    for SQLite in memory), and passes: returning such a connection would roll back the transactions of others.

    :param db: a synchronous SQLAlchemy ``Engine``, or the ``db`` of Flask-SQLAlchemy.
    :param bind: which of Flask-SQLAlchemy's ``SQLALCHEMY_BINDS``; by default the default database.
    """

    scope = "shared"

    def __init__(self, db: Engine | SQLAlchemy, *, bind: str | None = None, name: str = "database") -> None:
        validate(db, bind)
        self.name = name
        self._db = db
        self._bind = bind

    def __call__(self) -> CheckResult:
        from sqlalchemy import select

        engine = engine_of(self._db, self._bind)
        if not has_own_connections(engine):
            return CheckResult(output=NOT_ASKED)
        query(engine, lambda connection: connection.scalar(select(1)))
        return CheckResult()


class PoolCheck:
    """The pool of this process has free connections. It only looks at the pool and never asks the database.

    :param db: a synchronous SQLAlchemy ``Engine``, or the ``db`` of Flask-SQLAlchemy.
    :param bind: which of Flask-SQLAlchemy's ``SQLALCHEMY_BINDS``; by default the default database.
    :param warn_at: warn when this share of ``pool_size`` plus ``max_overflow`` is in use, more than 0 and at most 1.
        At the default of 0.8, SQLAlchemy's default pool of 5 + 10 has three left.
    """

    scope = "local"

    def __init__(
        self, db: Engine | SQLAlchemy, *, bind: str | None = None, warn_at: float = 0.8, name: str = "database pool"
    ) -> None:
        validate(db, bind)
        if isinstance(warn_at, bool) or not isinstance(warn_at, (int, float)) or not 0 < warn_at <= 1:
            raise ValueError(
                f"'warn_at' must be a share of the pool, more than 0 and at most 1, not {warn_at!r}; 0.8 is 80 %."
            )
        self.name = name
        self._db = db
        self._bind = bind
        self._warn_at = warn_at

    def __call__(self) -> CheckResult:
        from sqlalchemy.pool import QueuePool

        pool = engine_of(self._db, self._bind).pool
        if not isinstance(pool, QueuePool):
            return CheckResult(output="The pool has no size, so it cannot be exhausted.")
        used = max(0, pool.checkedout())  # read without the pool's lock, so it may be negative for a moment
        observed = {"size": pool.size(), "overflow": max(0, pool.overflow()), "checked_out": used}
        # It has no public name; -1 means no limit in SQLAlchemy, also with a pool_size of 0.
        overflow = getattr(pool, "_max_overflow", -1)
        if overflow < 0:
            return CheckResult(output="The pool has no upper limit, so it cannot be exhausted.", observed=observed)
        limit = observed["limit"] = pool.size() + overflow
        percent = round(100 * used / limit, 1)
        if used / limit < self._warn_at:
            return CheckResult("pass", observed=observed, value=percent, unit="%")
        output = (
            f"{used} of the {limit} connections that the pool may open are in use;"
            " look for ones that are not returned, or raise 'pool_size'."
        )
        return CheckResult("warn", output, observed, percent, "%")


def validate(db: Any, bind: str | None) -> None:
    """Reject a database that a check cannot ask: not SQLAlchemy's, or asynchronous."""
    with needs("SQLAlchemy", "sqlalchemy"):
        from sqlalchemy import Engine
    if hasattr(db, "sync_engine") or (isinstance(db, Engine) and db.dialect.is_async):
        raise TypeError(
            "'db' is an asynchronous engine, and a check cannot await it; give a synchronous one for the same database."
        )
    if isinstance(db, Engine):
        if bind is not None:
            raise ValueError(f"An engine has no bind {bind!r}; leave 'bind' out, or give the db of Flask-SQLAlchemy.")
    elif not hasattr(type(db), "engines"):  # of the type: the property itself needs an application context
        raise TypeError(f"'db' must be a SQLAlchemy Engine or the db of Flask-SQLAlchemy, not {type(db).__name__!r}.")


def engine_of(db: Engine | SQLAlchemy, bind: str | None) -> Engine:
    from sqlalchemy import Engine

    if isinstance(db, Engine):
        return db
    try:
        return db.engine if bind is None else db.engines[bind]
    except KeyError as error:
        raise HealthCheckError("The application does not configure this database.") from error


def has_own_connections(engine: Engine) -> bool:
    """Whether the pool gives a check a connection that no other thread uses at the same time.

    A StaticPool has one for all: returning it rolls back the transaction of another thread. An AssertionPool has one
    and raises if the application needs it meanwhile. A SingletonThreadPool makes one for each thread, and closes
    arbitrary ones from the sixth thread on; each run of a check is a new thread.
    """
    from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

    return not isinstance(engine.pool, AssertionPool | SingletonThreadPool | StaticPool)


def query(engine: Engine, read: Callable[[Connection], T]) -> T:
    """The result of a query on a connection of the pool, after one retry if that one was stale.

    The end of the ``with`` returns the connection, and ends the transaction that SQLAlchemy has begun.
    """
    from sqlalchemy import exc

    def once() -> T:
        with engine.connect() as connection:
            return read(connection)

    try:
        try:
            return once()
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return once()
    except exc.TimeoutError as error:
        raise HealthCheckError(
            "No connection of the pool became free in time; look for ones that are not returned, or raise 'pool_size'."
        ) from error
    except exc.SQLAlchemyError as error:
        raise HealthCheckError("The database did not answer; the log has the reason.") from error


# -- migrations -----------------------------------------------------------------------------------------------------


class MigrationsCheck:
    """The database has all migrations of this release, and none that the release does not know.

    By default it belongs to the start-up: an instance waits there until the migrations have run. An older release that
    starts after a newer one has migrated fails as well; register the check with ``critical=False`` if it should start.
    The scripts are read once. The name of the version table is taken from Flask-Migrate
    (``Migrate(..., version_table=...)``) or from the options ``version_table`` and ``version_table_schema`` of a
    ``Config``. With several binds it checks only the default database. The limits of :class:`DatabaseCheck`
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
        with needs("Alembic", "migrate"):
            from alembic.config import Config
            from alembic.script import ScriptDirectory
        if directory is not None and not isinstance(directory, str | os.PathLike | Config | ScriptDirectory):
            raise TypeError(
                f"'directory' must be a path, an Alembic Config or a ScriptDirectory, not {type(directory).__name__!r}."
            )
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
