"""Checks of a SQL database, by SQLAlchemy: does it answer, and how full is the pool?

Both use the application's own pool. With their own connection they would pass while the application waits for its
exhausted pool, and the probes of every replica would use up connections that the database allows.

The query is ``SELECT 1``, in the form of each dialect (Oracle: ``FROM DUAL``). It is a statement and not the driver's
ping for two reasons. A proxy answers a ping itself. And a statement that finds a lost connection makes SQLAlchemy mark
the whole pool as stale, so the one retry gets a new connection even if all in the pool died together, as in a restart
of the server. A driver's ping would find one dead connection at a time, and the check would go on failing after the
database has recovered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._check import CheckResult, HealthCheckError

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy
    from sqlalchemy import Connection, Engine

__all__ = ["DatabaseCheck", "PoolCheck"]

T = TypeVar("T")

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
        return self._result(used, pool.size() + overflow, observed)

    def _result(self, used: int, limit: int, observed: dict[str, int]) -> CheckResult:
        percent = round(100 * used / limit, 1)
        observed = {**observed, "limit": limit}
        if used / limit < self._warn_at:
            return CheckResult("pass", observed=observed, value=percent, unit="%")
        output = (
            f"{used} of the {limit} connections that the pool may open are in use;"
            " look for ones that are not returned, or raise 'pool_size'."
        )
        return CheckResult("warn", output, observed, percent, "%")


def validate(db: Any, bind: str | None) -> None:
    """Reject a database that a check cannot ask.

    :raises TypeError: it is neither an ``Engine`` nor Flask-SQLAlchemy's ``db``, or it is asynchronous.
    """
    try:
        from sqlalchemy import Engine
    except ImportError:
        raise RuntimeError(
            "SQLAlchemy is not installed; install it with: pip install 'flask-lifecycle[sqlalchemy]'"
        ) from None
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
    """The engine; of Flask-SQLAlchemy, the one of the current application."""
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
