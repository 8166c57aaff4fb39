"""The check of migrations with a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine

from flask_lifecycle.checks import MigrationsCheck
from tests._fakes import fails
from tests.checks.test_migrations import Scripts, pending, scripts, well

from ._servers import Postgres

__all__ = ["scripts"]

NO_ANSWER = "The database did not answer; the log has the reason."


@pytest.fixture
def pooled(postgres: Postgres) -> Iterator[Engine]:
    """The engine of an application, to a PostgreSQL that is well."""
    made = create_engine(postgres.url)
    yield made
    made.dispose()


def test_dead_and_back(postgres: Postgres, pooled: Engine, scripts: Scripts) -> None:
    """A database that cannot be reached fails; after a restart the first run passes, with what it found before."""
    check = MigrationsCheck(pooled, directory=scripts.path)
    scripts.upgrade(pooled)
    assert check() == well("a3")
    postgres.stop()
    error = fails(check, NO_ANSWER)
    assert str(postgres.port) in str(error.__cause__)
    postgres.start()
    assert check() == well("a3")
    postgres.stop()
    postgres.start()
    assert check() == well("a3")


def test_no_connection_of_its_own(postgres: Postgres, pooled: Engine, scripts: Scripts) -> None:
    """Fifty runs leave the server with the same connection, out of any transaction, and make no table."""
    check = MigrationsCheck(pooled, directory=scripts.path)
    check()
    before = postgres.sessions()
    assert [check() for _ in range(50)] == [pending(3, 3, [], ["a3"])] * 50
    assert postgres.sessions() == before
    assert [state for _, state in before] == ["idle"]
    assert postgres.ask("SELECT count(*) FROM pg_tables WHERE tablename = 'alembic_version'") == [(0,)]
