"""The checks of a SQL database, against a real PostgreSQL that the tests hang, kill and start again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, create_engine, event, exc, text
from sqlalchemy.dialects import registry
from sqlalchemy.pool import AssertionPool, NullPool, Pool, SingletonThreadPool, StaticPool

from flask_lifecycle import CheckResult, HealthCheckError, Lifecycle
from flask_lifecycle.checks import DatabaseCheck, MigrationsCheck, PoolCheck
from tests._fakes import fails, in_thread, make_app, until, whole
from tests.checks.test_migrations import Scripts, pending, scripts, well

from ._servers import Postgres

__all__ = ["scripts"]

NO_ANSWER = "The database did not answer; the log has the reason."
NO_CONNECTION = (
    "No connection of the pool became free in time; look for ones that are not returned, or raise 'pool_size'."
)
NOT_ASKED = CheckResult(output="The pool has no connection for a check alone, so the database was not asked.")


@contextlib.contextmanager
def engine_to(url: str, **options: Any) -> Iterator[Engine]:
    """An engine as an application makes it."""
    engine = create_engine(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[Engine]:
    """The engine of an application."""
    with engine_to(postgres.url) as made:
        yield made


def fill(engine: Engine, count: int) -> None:
    """Put idle connections into the pool."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(engine.connect()).execute(text("SELECT 1"))


@pytest.fixture
def application(postgres: Postgres) -> Iterator[tuple[Flask, SQLAlchemy]]:
    """An application whose default database is PostgreSQL, with a bind 'other' to a pool of one connection there."""
    bind = {"url": postgres.url, "pool_size": 1, "max_overflow": 0}
    app = make_app(SQLALCHEMY_DATABASE_URI=postgres.url, SQLALCHEMY_BINDS={"other": bind})
    db = SQLAlchemy(app)
    yield app, db
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_killed_while_connected(postgres: Postgres, engine: Engine) -> None:
    """A dead database fails with a public sentence, the pool's state is still known, and it passes when it is back."""
    # It is shared by all replicas, and a pool belongs to one; names can be chosen.
    check, pool = DatabaseCheck(engine, name="orders"), PoolCheck(engine)
    assert (check.name, check.scope, pool.name, pool.scope) == ("orders", "shared", "database pool", "local")
    fill(engine, 3)
    postgres.stop()
    for _ in range(2):
        error = fails(check, NO_ANSWER)
        assert isinstance(error.__cause__, exc.OperationalError)
    assert str(postgres.port) in str(error.__cause__)
    assert pool().status == "pass"
    postgres.start()
    assert check() == CheckResult()


@pytest.mark.parametrize("options", [{}, {"pool_use_lifo": True}, {"pool_pre_ping": True}, {"poolclass": NullPool}])
def test_a_restart_raises_no_false_alarm(postgres: Postgres, options: dict[str, Any]) -> None:
    """After a restart the pool is full of dead connections, and the first run of the check passes."""
    with engine_to(postgres.url, **options) as engine:
        fill(engine, 5)
        postgres.stop()
        postgres.start()
        seen = statements(engine, lambda _connection: None)
        assert DatabaseCheck(engine)() == CheckResult()
        # The second is the retry; the pool sees for itself what is stale, or keeps nothing.
        assert seen == ["SELECT 1"] * (1 if {"pool_pre_ping", "poolclass"} & set(options) else 2)


def test_hung_seen_by_a_probe(postgres: Postgres, engine: Engine) -> None:
    """Probes of a database that hangs, or of an exhausted pool, fail in time and take one connection."""
    check: Any = DatabaseCheck(engine)
    check.timeout, check.scope, check.ttl = 0.05, "local", 0
    lifecycle = Lifecycle(app := make_app())
    lifecycle.add_check(check)
    client = app.test_client()
    fill(engine, 1)
    postgres.hang()
    assert [client.get("/readyz").status_code for _ in range(5)] == [503] * 5
    assert engine.pool.status().endswith("Current Checked out connections: 1")
    postgres.resume()
    until(lambda: engine.pool.status().endswith("Current Checked out connections: 0"))
    until(lambda: client.get("/readyz").status_code == 200)
    with engine_to(postgres.url, pool_size=1, max_overflow=0) as small:  # its timeout is 30 s
        check._db = small
        with small.connect():
            assert [client.get("/readyz").status_code for _ in range(3)] == [503] * 3
        until(lambda: client.get("/readyz").status_code == 200)


def statements(engine: Engine, meddle: Callable[[Connection], str | None]) -> list[str]:
    """Record the statements of an engine, and call a function before each; it may replace the statement."""
    seen: list[str] = []

    def before(
        connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> tuple[str, Any]:
        seen.append(statement)
        return meddle(connection) or statement, parameters

    event.listen(engine, "before_cursor_execute", before, retval=True)
    return seen


def test_one_retry(postgres: Postgres, engine: Engine) -> None:
    """A connection that breaks is replaced once; if the second breaks too, the check fails."""

    def end(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        postgres.ask(f"SELECT pg_terminate_backend({driver.info.backend_pid}, 5000)")

    seen = statements(engine, end)
    error = fails(DatabaseCheck(engine), NO_ANSWER)
    assert seen == ["SELECT 1", "SELECT 1"]
    assert isinstance(error.__cause__, exc.DBAPIError)
    assert error.__cause__.connection_invalidated
    until(lambda: postgres.sessions() == [])


def test_no_retry_of_what_is_not_stale(postgres: Postgres, engine: Engine) -> None:
    """An error on a good connection is not retried."""
    seen = statements(engine, lambda _connection: "SELECT 1/0")
    fails(DatabaseCheck(engine), NO_ANSWER)
    assert seen == ["SELECT 1"]
    assert [state for _, state in postgres.sessions()] == ["idle"]


@pytest.mark.parametrize(
    ("dialect", "expected"), [("oracle", "SELECT 1 FROM DUAL"), ("mysql", "SELECT 1"), ("mssql", "SELECT 1")]
)
def test_what_is_asked(engine: Engine, dialect: str, expected: str) -> None:
    """The query is a statement in the form of each dialect."""
    asked: list[str] = []
    foreign = registry.load(dialect)()

    def before(_connection: Any, statement: Any, *_others: Any) -> None:
        asked.append(str(statement.compile(dialect=foreign, compile_kwargs={"literal_binds": True})))

    event.listen(engine, "before_execute", before)
    DatabaseCheck(engine)()
    assert asked == [expected]


def test_no_connection_of_its_own(postgres: Postgres, engine: Engine) -> None:
    """Fifty runs leave the server with the same connections, none in a transaction."""
    check = DatabaseCheck(engine)
    fill(engine, 2)
    before = postgres.sessions()
    for _ in range(50):
        assert in_thread(check) == CheckResult()
    assert postgres.sessions() == before
    assert [state for _, state in before] == ["idle", "idle"]
    assert engine.pool.status() == (
        "Pool size: 5  Connections in pool: 2 Current Overflow: -3 Current Checked out connections: 0"
    )


def test_an_exhausted_pool(postgres: Postgres) -> None:
    """A pool without a free connection fails with that reason after the pool's timeout."""
    with engine_to(postgres.url, pool_size=1, max_overflow=0, pool_timeout=0.05) as engine:
        check = DatabaseCheck(engine)
        with engine.connect() as taken:
            taken.execute(text("SELECT 1"))
            error = fails(check, NO_CONNECTION)
            assert isinstance(error.__cause__, exc.TimeoutError)
            assert len(postgres.sessions()) == 1
        assert check() == CheckResult()


@pytest.mark.parametrize("poolclass", [StaticPool, SingletonThreadPool, AssertionPool])
def test_pools_that_share_a_connection_are_left_alone(poolclass: type[Pool]) -> None:
    """The checks do not touch a transaction on the only connection of a pool."""
    with engine_to("sqlite://", poolclass=poolclass, connect_args={"check_same_thread": False}) as engine:
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE held (x int)"))
            connection.commit()
            connection.execute(text("INSERT INTO held VALUES (1)"))
            for _ in range(10):
                assert in_thread(DatabaseCheck(engine)) == NOT_ASKED
            connection.commit()
            assert connection.scalar(text("SELECT count(*) FROM held")) == 1
        assert PoolCheck(engine)() == CheckResult(output="The pool has no size, so it cannot be exhausted.")


def test_flask_sqlalchemy(postgres: Postgres, application: tuple[Flask, SQLAlchemy]) -> None:
    """The db of Flask-SQLAlchemy gives the engine of the current application, by the name of a bind that it has."""
    app, db = application
    lifecycle = Lifecycle(app)
    default, other = DatabaseCheck(db), DatabaseCheck(db, bind="other")
    lifecycle.add_check(default)
    assert app.test_client().get("/readyz").status_code == 200
    with app.app_context():
        assert default() == other() == CheckResult()
        with db.engines["other"].connect():
            assert PoolCheck(db)().value == 0.0
            assert PoolCheck(db, bind="other")().value == 100.0
    assert len(postgres.sessions()) == 2
    message = "The application does not configure this database."
    for check in (DatabaseCheck(db, bind="none"), PoolCheck(db, bind="none")):
        with app.app_context(), pytest.raises(HealthCheckError, match=whole(message)):
            check()


def pool_result(engine: Engine, taken: int, **options: Any) -> CheckResult:
    """What a PoolCheck says while so many connections are out."""
    with contextlib.ExitStack() as stack:
        for _ in range(taken):
            stack.enter_context(engine.connect())
        return PoolCheck(engine, **options)()


WARNING = (
    "{} of the 4 connections that the pool may open are in use;"
    " look for ones that are not returned, or raise 'pool_size'."
)


@pytest.mark.parametrize(
    ("taken", "overflow", "warn_at", "status", "percent"),
    [
        (0, 0, 0.75, "pass", 0.0),
        (2, 0, 0.75, "pass", 50.0),
        (3, 1, 0.75, "warn", 75.0),
        (4, 2, 0.75, "warn", 100.0),
        (3, 1, 1, "pass", 75.0),
        (4, 2, 1, "warn", 100.0),
        (3, 1, 0.8, "pass", 75.0),
        (1, 0, 0.01, "warn", 25.0),
    ],
)
def test_pool(postgres: Postgres, taken: int, overflow: int, warn_at: float, status: str, percent: float) -> None:
    """A pool warns from its threshold on, with the share of what it may open in per cent, and is asked alone."""
    with engine_to(postgres.url, pool_size=2, max_overflow=2) as engine:
        seen = statements(engine, lambda _connection: None)
        observed = {"size": 2, "overflow": overflow, "checked_out": taken, "limit": 4}
        output = WARNING.format(taken) if status == "warn" else ""
        expected = CheckResult(status, output, observed, percent, "%")
        assert pool_result(engine, taken, warn_at=warn_at) == expected
        assert seen == []


@pytest.mark.parametrize("options", [{"pool_size": 0}, {"pool_size": 2, "max_overflow": -1}])
def test_a_pool_without_a_limit(postgres: Postgres, options: dict[str, int]) -> None:
    """A pool without a limit, or without a size, passes and says so."""
    with engine_to(postgres.url, **options) as engine:
        result = pool_result(engine, 3)
    assert (result.status, result.value) == ("pass", None)
    assert result.output == "The pool has no upper limit, so it cannot be exhausted."
    assert result.observed["checked_out"] == 3
    with engine_to(postgres.url, poolclass=NullPool) as engine:
        expected = CheckResult(output="The pool has no size, so it cannot be exhausted.")
        assert pool_result(engine, 3) == expected


def test_migrations_of_a_database_that_is_dead_and_back(postgres: Postgres, engine: Engine, scripts: Scripts) -> None:
    """A database that cannot be reached fails; after a restart the first run passes, with what it found before."""
    check = MigrationsCheck(engine, directory=scripts.path)
    scripts.upgrade(engine)
    assert check() == well("a3")
    postgres.stop()
    error = fails(check, NO_ANSWER)
    assert str(postgres.port) in str(error.__cause__)
    postgres.start()
    assert check() == well("a3")
    postgres.stop()
    postgres.start()
    assert check() == well("a3")


def test_migrations_take_no_connection_of_their_own(postgres: Postgres, engine: Engine, scripts: Scripts) -> None:
    """Fifty runs leave the server with the same connection, out of any transaction, and make no table."""
    check = MigrationsCheck(engine, directory=scripts.path)
    check()
    before = postgres.sessions()
    assert [check() for _ in range(50)] == [pending(3, 3, [], ["a3"])] * 50
    assert postgres.sessions() == before
    assert [state for _, state in before] == ["idle"]
    assert postgres.ask("SELECT count(*) FROM pg_tables WHERE tablename = 'alembic_version'") == [(0,)]
