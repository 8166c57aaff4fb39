"""The check of Celery workers: real workers behind a real Redis, which the tests hang, kill and start again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery  # type: ignore[import-untyped]  # it has no types
from kombu import pools

from flask_lifecycle import CheckResult
from flask_lifecycle.checks import CeleryCheck
from tests._fakes import BOUND, fails, in_thread, until

from ._servers import Redis, Worker
from ._tasks import make

NO_BROKER = "The broker of Celery did not answer; the log has the reason."
ONE = CheckResult("pass", "", {"answered": 1, "minimum": 1}, 1)
# Seconds in which a worker does not answer, where none is expected to; and in which one does, where it is.
SHORT, LONG = 0.2, BOUND


@contextlib.contextmanager
def celery_app(broker: Redis, **config: Any) -> Iterator[Celery]:
    """The Celery application of a Flask application; its connections are closed at the end."""
    app = make(broker.url, **config)
    try:
        yield app
    finally:
        pools.reset()  # type: ignore[no-untyped-call]  # kombu has one pool for all applications with the same broker
        app.close()


@pytest.fixture
def app(broker: Redis) -> Iterator[Celery]:
    """A Celery application whose broker is well."""
    with celery_app(broker) as made:
        yield made


def none(minimum: int = 1) -> CheckResult:
    """The result without an answer."""
    output = f"0 of at least {minimum} Celery workers answered within 0.2 s."
    return CheckResult("fail", output, {"answered": 0, "minimum": minimum}, 0)


def test_workers_come_and_go(app: Celery, worker: Callable[[str], Worker]) -> None:
    """A worker that answers passes, one that hangs or was killed fails, and one that is back passes again."""
    # Workers are shared by all replicas; the check's own timeout is longer than the time for replies.
    patient, hasty = CeleryCheck(app, reply_timeout=LONG), CeleryCheck(app, name="mail", reply_timeout=SHORT)
    assert (patient.name, patient.scope, patient.timeout) == ("celery workers", "shared", LONG + 2.0)
    assert (hasty.name, CeleryCheck(app).timeout) == ("mail", 3.0)
    started = worker("threads")
    assert patient() == ONE
    started.hang()
    assert hasty() == none()
    started.resume()
    assert patient() == ONE
    started.stop()
    assert hasty() == none()
    started.start()
    assert patient() == ONE


def test_too_few(app: Celery, worker: Callable[[str], Worker]) -> None:
    """One worker is too few if two are required; more than required are not awaited."""
    worker("threads")
    check = CeleryCheck(app, minimum=2, reply_timeout=1)
    output = "1 of at least 2 Celery workers answered within 1 s."
    expected = CheckResult("fail", output, {"answered": 1, "minimum": 2}, 1)
    until(lambda: check() == expected)
    worker("solo")
    two = CheckResult("pass", "", {"answered": 2, "minimum": 2}, 2)
    assert CeleryCheck(app, minimum=2, reply_timeout=LONG)() == two
    assert CeleryCheck(app, reply_timeout=LONG)() == ONE


@pytest.mark.parametrize(("pool", "answers"), [("solo", False), ("threads", True)])
def test_busy(app: Celery, worker: Callable[[str], Worker], tmp_path: Path, pool: str, answers: bool) -> None:
    """A busy worker of the solo pool does not answer until its task ends; one of another pool does."""
    # The late answers to earlier pings, which kombu counts but does not return, raise no false alarm.
    patient = CeleryCheck(app, reply_timeout=LONG)
    worker(pool)
    started, end = tmp_path / "started", tmp_path / "end"
    app.send_task("occupy", (str(started), str(end)), ignore_result=True)
    try:
        until(started.exists)
        for _ in range(3):
            assert (patient() if answers else CeleryCheck(app, reply_timeout=SHORT)()) == (ONE if answers else none())
    finally:
        end.touch()
    assert patient() == ONE


class Late:
    """A remote control that gives fewer answers at first, as kombu does after a late one."""

    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)

    def ping(self, **_options: Any) -> list[dict[str, Any]]:
        return [{"celery@worker": {"ok": "pong"}}] * self.counts.pop(0)


def test_too_few_answers_too_early(app: Celery) -> None:
    """Too few answers before the time is over are asked for again."""
    app.control = late = Late(0, 1, 2, 2)
    expected = CheckResult("pass", "", {"answered": 2, "minimum": 2}, 2)
    assert CeleryCheck(app, minimum=2, reply_timeout=LONG)() == expected
    assert late.counts == [2]


def test_no_broker(broker: Redis) -> None:
    """A dead broker fails at once, also one that dies behind the pool, and passes when it is back."""
    with celery_app(broker, broker_connection_timeout=6 * BOUND) as app:
        check = CeleryCheck(app, reply_timeout=SHORT)
        broker.stop()
        for _ in range(2):
            error = in_thread(lambda: fails(check, NO_BROKER))
            assert str(broker.port) in str(error.__cause__)
        broker.start()
        assert check() == none()
        broker.stop()
        fails(check, NO_BROKER)


def test_a_restart_raises_no_false_alarm(broker: Redis, app: Celery, worker: Callable[[str], Worker]) -> None:
    """After a restart of the broker the pooled connections are dead, and the first run passes."""
    check = CeleryCheck(app, reply_timeout=LONG)
    assert CeleryCheck(app, reply_timeout=SHORT)() == none()  # the connections of the pool are open
    broker.stop()
    broker.start()
    worker("threads")
    assert check() == ONE


def test_the_broker_hangs(broker: Redis) -> None:
    """With a timeout of its own the check fails within that, and the next one counts again."""
    with celery_app(broker, broker_transport_options={"socket_timeout": 0.1}) as hasty:
        check = CeleryCheck(hasty, reply_timeout=SHORT)
        check()
        broker.hang()
        fails(check, NO_BROKER)
        broker.well()
        assert check() == none()


def test_no_connection_of_its_own(broker: Redis, app: Celery, worker: Callable[[str], Worker]) -> None:
    """Fifty runs in their own threads leave the broker with the same connections and keys."""
    worker("threads")
    check = CeleryCheck(app, reply_timeout=LONG)

    def keys() -> set[Any]:
        with broker.client() as client:
            return set(client.keys())

    for _ in range(2):
        assert in_thread(check) == ONE
    before, keys_before = broker.clients(), keys()
    for _ in range(50):
        assert in_thread(check) == ONE
    assert len(broker.clients()) == len(before)
    assert keys() <= keys_before


@pytest.mark.parametrize(
    ("limit", "taken", "message"),
    [
        (2, 2, "No connection of Celery's pool became free in time; raise 'broker_pool_limit'."),
        # A ping would deadlock.
        (1, 0, "A ping takes two connections to the broker, and 'broker_pool_limit' is 1; set it to 2 or more."),
    ],
)
def test_a_pool_that_is_too_small(broker: Redis, limit: int, taken: int, message: str) -> None:
    """A pool without the connections for a ping fails with that reason, and the check does not bypass it."""
    with celery_app(broker, broker_pool_limit=limit) as app:
        check = CeleryCheck(app, reply_timeout=SHORT)
        with contextlib.ExitStack() as stack:
            for _ in range(taken):
                stack.enter_context(app.pool.acquire())
            fails(check, message)
            assert broker.clients() == []
        with app.pool.acquire(block=False):
            pass
