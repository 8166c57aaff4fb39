"""Servers in places of their own: in a process that was forked after ``init_app``, in a thread that is no daemon."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from ._client import Connection, free_port
from ._process import Running, Starter
from ._traffic import in_flight

# As they are named in tests/live_apps/serve_elsewhere.py.
SERVERS = ("waitress", "app_run", "make_server", "cheroot", "gevent", "uvicorn", "hypercorn", "run")


def serve(live: Starter, where: str, server: str, **more: Any) -> tuple[Running, tuple[str, int]]:
    """Start a server somewhere, and wait until its process may be signalled; what serves is the target."""
    address = ("127.0.0.1", free_port())
    command = (sys.executable, "serve_elsewhere.py", where, server, str(address[1]))
    running = live.start(*command, plan={"logging": True, **more.pop("plan", {})}, **more)
    running.wait_log("STARTING -> READY")
    running.wait_for(lambda: [e for e in running.events if e.text.startswith("pid ")], "the process that serves")
    running.target = int([e.text for e in running.events if e.text.startswith("pid ")][-1].split()[1])
    return running, address


# The second fork is no server's matter; one of each kind shows it.
@pytest.mark.parametrize(
    ("where", "server"),
    [*(("child", server) for server in SERVERS if server != "make_server"), ("grandchild", "waitress")],
)
def test_a_forked_child_that_serves_stops_gracefully(live: Starter, where: str, server: str) -> None:
    """SIGTERM to a child that serves its parent's application answers what runs and runs the hooks once."""
    running, address = serve(live, where, server)
    with in_flight(running, address=address):
        running.begin_stop()
    assert running.wait_gone() == 0
    assert running.told("exit 0")
    assert running.hooks() == ["last", "first"]


@pytest.mark.parametrize(("where", "times"), [("child", 1), ("grandchild", 3)])
def test_a_forked_child_exits_with_the_code_of_its_stop(live: Starter, where: str, times: int) -> None:
    """waitress swallows the code. A child of multiprocessing runs no ``atexit`` function of its parent, others do."""
    plan = {"hooks": {"shutdown": [["bad", "raise", None]]}}
    running, _address = serve(live, where, "waitress", plan=plan, excuse="ValueError: boom")
    assert running.stop() == 0
    assert running.told("exit 1")
    assert len(running.told("atexit")) == times


JOBS = """
import multiprocessing, os, signal, sys, threading
from live_app import LONGEST, app, event
import serve_elsewhere

def work():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # uvicorn's handler is inherited, and does nothing here
    threading.Event().wait(LONGEST)

@app.get("/job")
def job():
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    event(f"job {child.pid}")
    child.join()
    return str(child.exitcode)

getattr(serve_elsewhere, sys.argv[1])(int(sys.argv[2]))
"""


# The pool, the greenlets and the signal handlers of a loop that a child inherits.
@pytest.mark.parametrize("server", ["waitress", "gevent", "uvicorn"])
def test_a_child_of_a_server_that_serves_nothing_is_left_alone(live: Starter, server: str) -> None:
    """A process that a view forks neither starts the application again, nor is kept from dying by SIGTERM."""
    port = free_port()
    running = live.start(sys.executable, "-c", JOBS, server, str(port), plan={"logging": True})
    running.wait_log("STARTING -> READY")
    with Connection(("127.0.0.1", port)) as connection:
        connection.ask("/job")
        running.wait_for(lambda: [e for e in running.events if e.text.startswith("job ")], "the job")
        (job,) = [int(e.text.split()[1]) for e in running.events if e.text.startswith("job ")]
        assert not running.gone.wait(1.5)  # the longest pause of discovery is a second
        os.kill(job, signal.SIGTERM)
        assert connection.answer().body == b"-15"
    assert running.log.count("STARTING -> READY") == 1
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("where", "server"),
    [
        *(("join", server) for server in SERVERS if server not in ("run", "hypercorn")),
        ("sleep", "uvicorn"),
        # gevent and uvicorn cannot be started when the main thread has ended: they make a pool of threads.
        *(("end", server) for server in ("waitress", "make_server", "cheroot")),
    ],
)
def test_a_server_in_a_thread_that_is_no_daemon(live: Starter, where: str, server: str) -> None:
    """A loop in a thread that the interpreter waits for ends with the stop, and the process leaves with 0 at once."""
    running, address = serve(live, where, server, settings={"LIFECYCLE_GRACE_PERIOD": 60.0})
    with in_flight(running, address=address):
        running.begin_stop()
    assert running.wait_gone() == 0  # waits for much less than the grace period
    assert running.hooks() == ["last", "first"]
