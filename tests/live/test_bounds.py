"""The grace period, hooks that fail or hang, and the signal that forces."""

from __future__ import annotations

import contextlib
import signal

from ._client import Connection, get, request_head
from ._process import Starter
from ._traffic import hung_request, in_flight


def test_clients_longer_than_the_grace_period(live: Starter, server: str) -> None:
    """A client that never reads its answer is given up at the deadline and named; so is an unfinished request."""
    running = live.serve(server, settings={"LIFECYCLE_GRACE_PERIOD": 1.0})
    with Connection(running.address) as half, Connection(running.address, slow=True) as connection:
        half.send(request_head("/echo", "POST", 1000) + b"x" * 500)
        connection.ask("/big")
        connection.head()
        assert running.stop() == 1
    assert "abandoned GET /big after" in running.log
    assert running.hooks() == ["last", "first"]


def test_queue_longer_than_the_grace_period(live: Starter) -> None:
    """Requests that no thread has taken until the deadline count as abandoned too."""
    settings = {"LIFECYCLE_GRACE_PERIOD": 1.0}
    running = live.serve("waitress", threads=1, settings=settings)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Connection(running.address)).ask("/gate/never")
        running.wait_event("begin live never")
        assert get(running.address, "/livez").status == 200
        assert running.stop() == 1
    assert "3 abandoned" in running.log
    assert running.log.count("abandoned GET /gate/never") == 3
    assert running.log.count("abandoned GET /gate/never [/gate/<gate>] after") == 1  # the others have met no route yet
    assert len(running.told("begin live never")) == 1
    assert running.hooks() == ["last", "first"]


def test_second_signal_in_the_delay(live: Starter) -> None:
    """A second signal during the delay forces the exit, and the log names what was abandoned."""
    settings = {"LIFECYCLE_GRACE_PERIOD": 60.0, "LIFECYCLE_SHUTDOWN_DELAY": 30.0}
    running = live.serve("werkzeug", settings=settings)
    with hung_request(running):
        running.begin_stop()
        assert not running.gone.wait(0.2)  # the same signal within a tenth of a second is one
        assert running.stop(signal.SIGINT) == 128 + signal.SIGINT
    assert "forced by SIGINT: abandoned 1" in running.log
    assert "abandoned GET /gate/never [/gate/<gate>] after" in running.log


def test_same_signal_twice_at_once_is_one(live: Starter) -> None:
    """The same signal twice within a moment, as GNU timeout sends it, is one signal: the request is answered."""
    running = live.serve("waitress")
    with in_flight(running):
        running.send(signal.SIGTERM)
        running.send(signal.SIGTERM)
        running.wait_log("-> DRAINING")
    assert running.wait_gone() == 0
