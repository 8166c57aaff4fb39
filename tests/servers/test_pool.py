"""How a ping goes through a server: ahead of all that waits, and without ever holding up who sends it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher
from waitress.trigger import trigger

from flask_lifecycle import _servers
from flask_lifecycle._core.inflight import Load
from flask_lifecycle._servers import waitress
from tests._fakes import BOUND, Served, running, served, until
from tests.live._client import Connection

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Gates:
    """An application whose requests wait until they are let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.begun.release()
        assert self.gate.acquire(timeout=BOUND)
        start_response("200 OK", [("Content-Length", "0")])
        return [b""]


@pytest.fixture
def app() -> Gates:
    return Gates()


@pytest.fixture
def ours(app: Gates) -> Iterator[Served]:
    """The application above on our waitress, with a single worker."""
    with served("waitress", app, threads=1) as subject:
        yield subject


def comes_back(send: Callable[[Callable[[], None]], bool | None]) -> bool:
    """Whether a ping of a server that gets on comes back."""
    back = threading.Event()
    assert send(back.set) is True
    return back.wait(BOUND)


# -- our waitress -------------------------------------------------------------------------------------------------


def test_ahead_of_all_that_waits(app: Gates, ours: Served) -> None:
    """The next worker that is free takes the ping, however much waits, and until then it is no part of the load."""
    back = threading.Event()
    with Connection(ours.address) as one, Connection(ours.address) as two:
        one.ask("/one")
        assert app.begun.acquire(timeout=BOUND)
        two.ask("/two")
        until(lambda: ours.runner.load().queued == 1)
        assert ours.runner.ping(back.set) is True
        assert ours.runner.load()._replace(oldest=0.0) == Load(1, 1, 1)
        assert not back.is_set()
        app.gate.release()
        assert back.wait(BOUND)  # and the second request still waits at its gate, or in the queue
        app.gate.release()
        assert (one.answer().status, two.answer().status) == (200, 200)


def test_a_lock_that_is_not_to_be_had(ours: Served) -> None:
    """Whoever sends a ping is not held up by a lock of the pool that nobody gives back."""
    assert comes_back(ours.runner.ping)
    with ours.runner._servers()[0].task_dispatcher.lock:
        assert ours.runner.ping(lambda: None) is False
    assert comes_back(ours.runner.ping)


def test_a_loop_that_does_not_turn() -> None:
    """Workers alone do not bring the ping back: the loop has to turn as well."""
    runner: Any = _servers.create("waitress", lambda e, s: [], None, None, {"listen": "127.0.0.1:0"})
    back = threading.Event()
    assert runner.ping(back.set)
    until(lambda: bool(runner._servers()[0].trigger.thunks))
    assert not back.is_set()
    runner.close()


def test_a_pool_that_is_emptied() -> None:
    """A ping that is still there when waitress ends its pool is given up in silence."""
    pool = ThreadedTaskDispatcher()
    assert waitress.pool.send_ahead(pool, waitress.pool.Ping(lambda: pytest.fail("it came back")))
    pool.shutdown(timeout=0)
    assert not pool.queue


# -- servers that somebody else started ---------------------------------------------------------------------------


def test_through_a_foreign_waitress(app: Gates) -> None:
    """A waitress that somebody else runs sends the ping through each pool and each loop of its listeners."""
    made = [create_server(app, map={}, host="127.0.0.1", port=0, threads=1) for _ in range(2)]
    subject = waitress.Waitress()
    subject.adopt(made, [])
    back, gate = threading.Event(), threading.Event()
    other = made[1].task_dispatcher
    assert waitress.pool.send_ahead(other, waitress.pool.Ping(gate.wait))
    until(lambda: not other.queue)
    with running(made[0].run):
        assert subject.ping(back.set) is True
        until(lambda: bool(other.queue))
        assert not back.is_set()  # the other pool has no worker that is free
        gate.set()
        until(lambda: bool(made[1].trigger.thunks))
        assert not back.is_set()  # and its loop does not turn yet
        with running(made[1].run):
            assert back.wait(BOUND)
            for server in made:
                server.task_dispatcher.shutdown()
                server.trigger.pull_trigger(server.close)
    assert subject.ping(lambda: None) is None


@pytest.fixture
def pulled() -> Iterator[Any]:
    """A trigger of waitress, of a loop that nobody turns."""
    subject: Any = trigger({})
    yield subject
    subject.close()


def test_a_trigger_that_is_full(pulled: Any) -> None:
    """A pipe that nobody empties any more holds up no worker; what is in it wakes the loop, should it ever turn."""
    os.set_blocking(pulled.trigger, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pulled.trigger, b"x" * 4096)
    os.set_blocking(pulled.trigger, True)
    with running(lambda: waitress.pool.through_loop(pulled, lambda: None)):
        pass
    assert len(pulled.thunks) == 1


def test_a_trigger_that_is_closed(pulled: Any) -> None:
    """Nothing is written to the number of a pipe that is closed; an open one wakes its loop by a byte."""
    called: list[str] = []
    waitress.pool.through_loop(pulled, lambda: called.append("back"))
    pulled.handle_read()
    assert called == ["back"]
    pulled.close()
    waitress.pool.through_loop(pulled, lambda: None)
    assert pulled.thunks == []


def test_a_trigger_whose_lock_is_held(pulled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thunk that hangs in the loop holds up no worker for longer than a second."""
    monkeypatch.setattr(waitress.pool, "NEXT_PATIENCE", 0.01)
    with pulled.lock:
        waitress.pool.through_loop(pulled, lambda: None)
    assert pulled.thunks == []
