"""Checks of a SQL database, by way of SQLAlchemy: does it answer, and how full is the pool?

Both ask what the application itself uses. With a connection of their own they would say that all is well while the
application waits for its exhausted pool, and the probes of every replica would take from the connections that the
database allows.

The question is ``SELECT 1``, which SQLAlchemy writes as each dialect wants it (Oracle: ``FROM DUAL``). It is a
statement and not the driver's ping for two reasons: a proxy answers a ping by itself, and SQLAlchemy looks at
statements for lost connections: one of them marks the whole pool as stale, so that the one retry gets a
new connection even if all in the pool died together, as they do when a server restarts. A driver's ping would find only
one dead connection at a time, and a database that is well again would be reported as down until all were through.
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

NOT_ASKED = "The pool has no connection to lend to a check, so the database was not asked."


class DatabaseCheck:
    """The database answers ``SELECT 1`` on a connection of the application's own pool, which gets it back.

    A connection that turns out to be stale is replaced once. A pool that is exhausted makes the check wait, for the
    engine's ``pool_timeout`` at most (30 s unless set): with one below the check's timeout the check can say what is
    wrong, and otherwise it is reported as hanging; :class:`PoolCheck` warns before either. A server that
    takes the statement and does not answer holds one connection until the driver gives up, so set the driver's
    timeouts, in ``connect_args``.

    Pools that share a connection (``StaticPool``, ``SingletonThreadPool``, ``AssertionPool``), as they serve SQLite in
    memory, are left alone, and the check passes: to give such a connection back is to roll back what others do on it.

    :param db: a synchronous SQLAlchemy ``Engine``, or the ``db`` of Flask-SQLAlchemy.
    :param bind: which of Flask-SQLAlchemy's ``SQLALCHEMY_BINDS``; the default database if left out.
    """

    scope = "shared"

    def __init__(self, db: Engine | SQLAlchemy, *, bind: str | None = None, name: str = "database") -> None:
        accept(db, bind)
        self.name = name
        self._db = db
        self._bind = bind

    def __call__(self) -> CheckResult:
        from sqlalchemy import select

        engine = engine_of(self._db, self._bind)
        if not lends(engine):
            return CheckResult(output=NOT_ASKED)
        ask(engine, lambda connection: connection.scalar(select(1)))
        return CheckResult()


class PoolCheck:
    """The pool of this process has connections left; it asks the pool alone and never the database.

    :param db: a synchronous SQLAlchemy ``Engine``, or the ``db`` of Flask-SQLAlchemy.
    :param bind: which of Flask-SQLAlchemy's ``SQLALCHEMY_BINDS``; the default database if left out.
    :param warn_at: warn when this share of ``pool_size`` plus ``max_overflow`` is in use, more than 0 and at most 1.
        At the default of four fifths, SQLAlchemy's own default pool of 5 + 10 has three left.
    """

    scope = "local"

    def __init__(
        self, db: Engine | SQLAlchemy, *, bind: str | None = None, warn_at: float = 0.8, name: str = "database pool"
    ) -> None:
        accept(db, bind)
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
        used = max(0, pool.checkedout())  # read without the pool's lock, between two of its steps
        observed = {"size": pool.size(), "overflow": max(0, pool.overflow()), "checked_out": used}
        # No public name tells it; -1 is SQLAlchemy's own word for no limit, also with a pool_size of 0.
        overflow = getattr(pool, "_max_overflow", -1)
        if overflow < 0:
            return CheckResult(output="The pool has no upper limit, so it cannot be exhausted.", observed=observed)
        return self._judge(used, pool.size() + overflow, observed)

    def _judge(self, used: int, limit: int, observed: dict[str, int]) -> CheckResult:
        percent = round(100 * used / limit, 1)
        observed = {**observed, "limit": limit}
        if used / limit < self._warn_at:
            return CheckResult("pass", observed=observed, value=percent, unit="%")
        output = (
            f"{used} of the {limit} connections that the pool may open are in use;"
            " look for ones that are not given back, or raise 'pool_size'."
        )
        return CheckResult("warn", output, observed, percent, "%")


def accept(db: Any, bind: str | None) -> None:
    """Refuse what is no database of a kind that a check can ask.

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
            "'db' is an asynchronous engine, which a check cannot await; give a synchronous one to the same database."
        )
    if isinstance(db, Engine):
        if bind is not None:
            raise ValueError(f"An engine has no bind {bind!r}; leave 'bind' out, or give the db of Flask-SQLAlchemy.")
    elif not hasattr(type(db), "engines"):  # of the type: the property itself wants an application context
        raise TypeError(f"'db' must be a SQLAlchemy Engine or the db of Flask-SQLAlchemy, not {type(db).__name__!r}.")


def engine_of(db: Engine | SQLAlchemy, bind: str | None) -> Engine:
    """The engine itself; of Flask-SQLAlchemy's, the one that belongs to the current application."""
    from sqlalchemy import Engine

    if isinstance(db, Engine):
        return db
    try:
        return db.engine if bind is None else db.engines[bind]
    except KeyError as error:
        raise HealthCheckError("The application has no such database configured.") from error


def lends(engine: Engine) -> bool:
    """Whether the pool gives a check a connection that nobody else has at the same time.

    A StaticPool has one for all: giving it back rolls back the open transaction of whoever else has it. An
    AssertionPool has one and raises where the application wants it meanwhile. A SingletonThreadPool makes
    one for each thread, and closes arbitrary ones from the sixth thread on; each run of a check is a new thread.
    """
    from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

    return not isinstance(engine.pool, AssertionPool | SingletonThreadPool | StaticPool)


def ask(engine: Engine, question: Callable[[Connection], T]) -> T:
    """What the database answers on a connection of its pool, after one retry if that one was stale.

    The connection goes back at the end of the ``with``, and with it the transaction that SQLAlchemy had begun.
    """
    from sqlalchemy import exc

    def once() -> T:
        with engine.connect() as connection:
            return question(connection)

    try:
        try:
            return once()
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return once()
    except exc.TimeoutError as error:
        raise HealthCheckError(
            "No connection of the pool became free in time;"
            " look for ones that are not given back, or raise 'pool_size'."
        ) from error
    except exc.SQLAlchemyError as error:
        raise HealthCheckError("The database did not answer; the log says why.") from error
