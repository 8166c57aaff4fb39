"""Signals during the start-up, and starts that fail."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from ._client import Connection
from ._process import Starter

MOMENTS = 12
# A server that listens, and is given to the shutdown when the shutdown has begun.
LISTENS_EARLY = """
import sys, time
from live_app import lifecycle, run_by_script
from flask_lifecycle import _servers as servers
create = servers.create
def slow(*arguments):
    server = create(*arguments)
    print("listening on", server.addresses()[0], flush=True)
    while lifecycle.remaining() is None:
        time.sleep(0.005)
    return server
servers.create = slow
sys.exit(run_by_script())
"""


def test_signal_at_any_moment_of_the_start(live: Starter, server: str) -> None:
    """At whichever moment of the start the signal comes, the process ends cleanly and prints no traceback."""
    began = time.monotonic()
    running = live.serve(server)
    start_takes = time.monotonic() - began
    assert running.stop() == 0
    for moment in range(MOMENTS):
        running = live.serve(server, listeners=0)
        # The moment itself is the matter: from the first instruction to a little after the start.
        time.sleep(start_takes * 1.1 * moment / MOMENTS)
        served = "listening on" in running.log
        code = running.stop()
        # Until `run` has taken over, the process serves nothing and SIGTERM is whose it was before.
        assert code in ((0,) if served else (0, -signal.SIGTERM)), f"moment {moment}: {running.log}"
        assert "Traceback" not in running.log, f"moment {moment}"
        assert running.hooks() in ([], ["last", "first"]), f"moment {moment}"


@pytest.mark.parametrize("server", ["waitress", "werkzeug", "cheroot", "gevent"])
def test_signal_before_the_server_serves(live: Starter, server: str) -> None:
    """Who connects before the server is in place is answered; the program of ``run`` has its handlers back."""
    running = live.start(sys.executable, "-c", LISTENS_EARLY, plan={"run": {"server": server}})
    running.wait_for(lambda: running.addresses, "its listener")
    connections = [Connection(running.address) for _ in range(3)]
    for connection in connections:
        connection.ask("/fast")
    running.send(signal.SIGTERM)
    for connection in connections:
        with connection:
            assert connection.answer().status in (200, 503)
    assert running.wait_gone() == 0, running.log_tail
    assert running.told("restored True")


@pytest.mark.parametrize(("server", "number"), [("waitress", signal.SIGTERM), ("werkzeug", signal.SIGINT)])
def test_signal_while_a_startup_function_runs(live: Starter, server: str, number: int) -> None:
    """A signal during an on_startup function stops cleanly: not a request is taken, the hooks run, exit 0."""
    plan = {"hooks": {"startup": [["warm-up", "gate", None]]}}
    running = live.serve(server, plan=plan, listeners=0)
    running.wait_event("startup warm-up")
    running.send(number)
    assert not running.gone.wait(0.2)
    running.open_gate("warm-up")
    assert running.wait_gone() == 0
    assert "-> READY" not in running.log
    assert running.hooks() == ["last", "first"]


def test_signal_while_a_startup_function_hangs(live: Starter) -> None:
    """An on_startup function that hangs does not hold a stop past the grace period."""
    plan = {"hooks": {"startup": [["warm-up", "hang", None]]}}
    settings = {"LIFECYCLE_GRACE_PERIOD": 1.0}
    running = live.serve("waitress", plan=plan, settings=settings, listeners=0)
    running.wait_event("startup warm-up")
    running.stop()
    assert "-> READY" not in running.log
