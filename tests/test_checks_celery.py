"""The check of Celery workers: real workers behind a real Redis, which the tests hang, kill and start again."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery  # type: ignore[import-untyped]  # it has no types
from kombu import pools

from flask_lifecycle import Lifecycle
from flask_lifecycle.checks._check import CheckResult, HealthCheckError
from flask_lifecycle.checks.celery import CeleryCheck
from tests._fakes import BOUND, make_app, running, until, whole
from tests._tasks import make

if TYPE_CHECKING:  # pytest imports it, as a plugin
    from tests._servers import Redis, Worker

pytest_plugins = ["tests._servers"]

NO_BROKER = "The broker of Celery did not answer; the log says why."
ONE = CheckResult("pass", "", {"answered": 1, "minimum": 1}, 1)
# Seconds in which a worker does not answer, where none is expected to; and in which one does, where it is.
SHORT, LONG = 0.2, BOUND
# How long a test watches that something does not happen, in seconds.
A_WHILE = 0.2


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
    """What is said when nobody answers."""
    output = f"0 of at least {minimum} Celery workers answered within 0.2 s."
    return CheckResult("fail", output, {"answered": 0, "minimum": minimum}, 0)


# -- workers: well, none, hung, killed, back ------------------------------------------------------------------------


def test_attributes() -> None:
    """Workers are shared by all replicas; the check's own timeout is longer than what it waits for."""
    app = make("memory://")
    check = CeleryCheck(app)
    assert (check.name, check.scope, check.timeout) == ("celery workers", "shared", 3.0)
    assert CeleryCheck(app, name="mail", reply_timeout=5).name == "mail"
    assert CeleryCheck(app, reply_timeout=5).timeout == 7.0


def test_no_worker(app: Celery) -> None:
    """Without a worker it fails, says how many answered, and leaves nothing behind in the threads."""
    assert CeleryCheck(app, reply_timeout=SHORT)() == none()


def test_workers_come_and_go(app: Celery, worker: Callable[[str], Worker]) -> None:
    """A worker that answers passes, one that hangs or was killed fails, and one that is back passes again."""
    patient, hasty = CeleryCheck(app, reply_timeout=LONG), CeleryCheck(app, reply_timeout=SHORT)
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
    """One worker is not enough where two are asked for, and the second one is; more are not waited for."""
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
    """A busy worker of the solo pool does not answer until its task is done; one of another pool does.

    The late answers to the earlier pings, which kombu counts but does not return, raise no false alarm.
    """
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
    """A remote control that gives fewer answers at first, as kombu does when an old one comes between."""

    def __init__(self, *counts: int) -> None:
        self.counts = list(counts)

    def ping(self, **_options: Any) -> list[dict[str, Any]]:
        return [{"celery@worker": {"ok": "pong"}}] * self.counts.pop(0)


def test_too_few_answers_too_early(app: Celery) -> None:
    """Answers that are too few before the time is over are asked for again, until there are enough."""
    app.control = late = Late(0, 1, 2, 2)
    expected = CheckResult("pass", "", {"answered": 2, "minimum": 2}, 2)
    assert CeleryCheck(app, minimum=2, reply_timeout=LONG)() == expected
    assert late.counts == [2]


# -- the broker: dead, hung, back -----------------------------------------------------------------------------------


def test_no_broker(broker: Redis) -> None:
    """A broker that is dead from the start fails at once, and is not tried for as long as Celery would."""
    with celery_app(broker, broker_connection_timeout=6 * BOUND) as app:
        check = CeleryCheck(app, reply_timeout=SHORT)
        broker.stop()

        def run() -> None:
            with pytest.raises(HealthCheckError, match=whole(NO_BROKER)) as caught:
                check()
            assert str(broker.port) in str(caught.value.__cause__)

        for _ in range(2):
            with running(run):
                pass
        broker.start()
        assert check() == none()


def test_the_broker_dies_and_is_back(broker: Redis, app: Celery) -> None:
    """A broker that dies behind the back of the pool fails, and is asked again when it is back."""
    check = CeleryCheck(app, reply_timeout=SHORT)
    assert check() == none()
    broker.stop()
    for _ in range(2):
        with pytest.raises(HealthCheckError, match=whole(NO_BROKER)):
            check()
    broker.start()
    assert check() == none()


def test_a_restart_raises_no_false_alarm(broker: Redis, app: Celery, worker: Callable[[str], Worker]) -> None:
    """After a restart of the broker the pooled connections are dead, and the first run passes all the same."""
    check = CeleryCheck(app, reply_timeout=LONG)
    assert CeleryCheck(app, reply_timeout=SHORT)() == none()  # the connections of the pool are open
    broker.stop()
    broker.start()
    worker("threads")
    assert check() == ONE


def test_the_broker_hangs(broker: Redis, app: Celery) -> None:
    """A broker that hangs is waited for, and its late answer is an answer."""
    check = CeleryCheck(app, reply_timeout=SHORT)
    check()
    done = threading.Event()
    returned: list[CheckResult] = []

    def run() -> None:
        returned.append(check())
        done.set()

    broker.hang()
    with running(run):
        assert not done.wait(A_WHILE + SHORT)
        broker.resume()
        assert done.wait(BOUND)
    assert returned == [none()]


def test_the_broker_hangs_and_a_timeout(broker: Redis) -> None:
    """With a timeout of the transport's, a broker that hangs fails within it."""
    with celery_app(broker, broker_transport_options={"socket_timeout": 0.1}) as app:
        check = CeleryCheck(app, reply_timeout=SHORT)
        check()
        broker.hang()
        with pytest.raises(HealthCheckError, match=whole(NO_BROKER)):
            check()
        broker.well()
        assert check() == none()


# -- the application's own connections ------------------------------------------------------------------------------


def test_no_connection_of_its_own(broker: Redis, app: Celery, worker: Callable[[str], Worker]) -> None:
    """Fifty runs in threads of their own leave the broker with the same connections and keys."""
    worker("threads")
    check = CeleryCheck(app, reply_timeout=LONG)

    def run() -> None:
        assert check() == ONE

    def keys() -> set[Any]:
        with broker.client() as client:
            return set(client.keys())

    for _ in range(2):
        with running(run):
            pass
    before, keys_before = broker.clients(), keys()
    for _ in range(50):
        with running(run):
            pass
    assert len(broker.clients()) == len(before)
    assert keys() <= keys_before


def test_an_exhausted_pool(broker: Redis) -> None:
    """A pool without a free connection is what the check says, in time, and no way round it."""
    message = "No connection of Celery's pool became free in time; raise 'broker_pool_limit'."
    with celery_app(broker, broker_pool_limit=2) as app:
        check = CeleryCheck(app, reply_timeout=SHORT)
        with app.pool.acquire(), app.pool.acquire():
            with pytest.raises(HealthCheckError, match=whole(message)):
                check()
            assert broker.clients() == []
        assert check() == none()


def test_a_pool_of_one(broker: Redis) -> None:
    """A pool of one connection, which a ping would wait for while it has it, is told apart and left alone."""
    message = "A ping takes two connections to the broker, and 'broker_pool_limit' is 1; set it to 2 or more."
    with celery_app(broker, broker_pool_limit=1) as app:
        with pytest.raises(HealthCheckError, match=whole(message)):
            CeleryCheck(app)()
        with app.pool.acquire(block=False):
            pass


def test_registered(app: Celery, worker: Callable[[str], Worker]) -> None:
    """The check is registered as it is."""
    worker("threads")
    lifecycle = Lifecycle(flask_app := make_app())
    lifecycle.add_check(CeleryCheck(app, reply_timeout=LONG))
    assert flask_app.test_client().get("/readyz").status_code == 200


# -- bad arguments --------------------------------------------------------------------------------------------------


def test_bad_application() -> None:
    """What is no Celery application is refused."""
    with pytest.raises(TypeError, match=whole("'app' must be a Celery application, not 'Flask'.")):
        CeleryCheck(make_app())


@pytest.mark.parametrize("minimum", [0, -1, 1.5, True, "1", None])
def test_bad_minimum(minimum: Any) -> None:
    """A minimum that is no number of workers is refused."""
    message = f"'minimum' must be a whole number of workers, at least 1, not {minimum!r}."
    with pytest.raises(ValueError, match=whole(message)):
        CeleryCheck(make("memory://"), minimum=minimum)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "1", None])
def test_bad_timeout(timeout: Any) -> None:
    """A time that is none is refused."""
    message = f"'reply_timeout' must be a number of seconds greater than zero, not {timeout!r}."
    with pytest.raises(ValueError, match=whole(message)):
        CeleryCheck(make("memory://"), reply_timeout=timeout)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Celery, the error names the extra to install."""
    monkeypatch.setitem(sys.modules, "celery", None)
    message = "Celery is not installed; install it with: pip install 'flask-lifecycle[celery]'"
    with pytest.raises(RuntimeError, match=whole(message)):
        CeleryCheck(None)
