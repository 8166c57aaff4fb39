"""A thread that crashes stops the process as a signal would, and the exit code says that it was no clean end."""

from __future__ import annotations

import signal
import sys

import pytest

from ._client import Connection, get
from ._process import Running, Starter
from ._traffic import hung_request, in_flight

CRASH = {"LIFECYCLE_STOP_ON_CRASH": ["MainThread", "consumer-*"], "LIFECYCLE_GRACE_PERIOD": 20}


def script(live: Starter, **plan: object) -> Running:
    return live.start(sys.executable, "crash_app.py", settings=CRASH, plan={"logging": True, **plan}, excuse="boom")


def assert_stopped(running: Running, thread: str) -> None:
    """Assert that the crash is the reason, that it was shown and that all else of the stop was as ever."""
    assert running.wait_gone() == 1
    assert f"shutdown begins: thread '{thread}' crashed: ValueError" in running.log
    assert "Traceback" in running.log
    assert "a thread crashed, exit 1" in running.log
    assert running.hooks() == ["last", "first"]


def test_a_named_thread_under_run(live: Starter, server: str) -> None:
    """A consumer that crashes stops the server; the request in flight is answered first."""
    plan = {"crashing": ["consumer-1", "other"]}
    running = live.serve(server, app="crash_app.py", settings=CRASH, plan=plan, excuse="boom")
    running.open_gate("other")  # which no pattern names
    running.wait_log("boom of other")
    assert get(running.address, "/fast").body == b"fast"
    with in_flight(running):
        running.open_gate("consumer-1")
        running.wait_log("listener closed")
    assert_stopped(running, "consumer-1")


@pytest.mark.parametrize(("gate", "thread"), [("main", "MainThread"), ("consumer-1", "consumer-1")])
def test_a_thread_beside_a_foreign_server(live: Starter, gate: str, thread: str) -> None:
    """Beside waitress in a thread, the main thread ends after the request in flight, whichever has crashed."""
    running = script(live, serve=True, crashing=["consumer-1"])
    running.wait_for(lambda: running.addresses, "its listener")
    with Connection(running.address) as connection:
        connection.ask("/pool/a")
        running.wait_event("begin live a")
        running.open_gate(gate)
        running.wait_log("-> DRAINING")
        running.open_gate("a")
        assert connection.answer().body == b"from the pool"
    assert_stopped(running, thread)


@pytest.mark.parametrize(
    ("plan", "gate", "thread"),
    [({"crashing": ["consumer-1"]}, "consumer-1", "consumer-1"), ({"job": True}, "main", "MainThread")],
)
def test_a_process_that_only_has_jobs(live: Starter, plan: dict[str, object], gate: str, thread: str) -> None:
    """A consumer, or a main thread between two jobs, that crashes without a server stops it; the hooks run."""
    running = script(live, **plan)
    running.wait_event("main waits")
    running.open_gate(gate)
    assert_stopped(running, thread)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_during_the_stop(live: Starter, number: int) -> None:
    """A held main thread hears of signals: Ctrl-C forces the end, and so does the second SIGTERM."""
    running = script(live, serve=True)
    running.wait_for(lambda: running.addresses, "its listener")
    with hung_request(running, "a"):
        running.open_gate("main")
        running.wait_log("-> DRAINING")
        running.send(number)
        if number == signal.SIGTERM:
            running.gone.wait(0.3)  # less than a tenth of a second apart they would be one
            running.send(number)
        assert running.wait_gone() == 128 + number
    assert "abandoned 1" in running.log


def test_a_crash_during_a_drain(live: Starter) -> None:
    """A consumer that crashes while the process stops changes neither the reason nor the exit code."""
    plan = {"crashing": ["consumer-1"]}
    running = live.serve("waitress", app="crash_app.py", settings=CRASH, plan=plan, excuse="boom")
    with in_flight(running):
        running.begin_stop()
        running.open_gate("consumer-1")
        running.wait_log("boom of consumer-1")
    assert running.wait_gone() == 0
    assert "clean, exit 0" in running.log
