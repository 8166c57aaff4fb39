"""Surroundings that hinder a stop: children that live on, logs, receivers and checks that hang."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ._client import Connection, get, refuses
from ._process import Running, Starter
from ._traffic import hung_request
from .test_probes import PROBE_LISTENER, probe_address

# Longer than a test waits for a stop: one that waits for what never comes fails.
LONG_GRACE = {"LIFECYCLE_GRACE_PERIOD": 60.0}


@contextlib.contextmanager
def forked_child(running: Running) -> Iterator[None]:
    """Let a view fork a child that outlives the test's process, and end it by its own pid."""
    child = int(get(running.address, "/fork").body)
    try:
        running.wait_event("forked")
        yield
    finally:
        os.kill(child, signal.SIGKILL)


def test_forked_child_that_lives_on(live: Starter, server: str) -> None:
    """A child that a view has forked keeps neither a connection nor the listener open, nor delays the exit."""
    running = live.serve(server, settings={**LONG_GRACE, **PROBE_LISTENER})
    probes = probe_address(running)
    with contextlib.ExitStack() as stack:
        silent, idle, half = (stack.enter_context(Connection(running.address)) for _ in range(3))
        prober = stack.enter_context(Connection(probes))
        assert idle.get("/fast").body == b"fast"
        half.send(b"GET /fast HTTP/1.1\r\n")
        stack.enter_context(forked_child(running))
        running.begin_stop()
        running.wait_log("listener closed")
        assert refuses(running.address)
        half.send(b"Host: localhost\r\n\r\n")
        assert half.answer().body == b"fast"
        assert [connection.rest() for connection in (silent, idle, half, prober)] == [b""] * 4
        assert running.wait_gone() == 0
        assert refuses(running.address)
        assert refuses(probes)


def test_forked_child_and_a_forced_exit(live: Starter, server: str) -> None:
    """When the process leaves at once, its connections end, although a child that a view forked has them too."""
    running = live.serve(server, settings=LONG_GRACE)
    with hung_request(running) as connection, forked_child(running):
        running.begin_stop()
        assert not running.gone.wait(0.5)
        assert running.stop() == 128 + signal.SIGTERM
        assert connection.rest() == b""


def stall(running: Running) -> None:
    """Let stderr stall, if that is the plan of the process."""
    running.open_gate("stall")
    running.wait_event("stderr stalled")


STUCK: dict[str, dict[str, Any]] = {
    "stderr stalls": {"stderr": "stall"},
    "log handler hangs": {"log_handler": "hang"},
    "receiver hangs": {"receiver": "hang"},
    "hook hangs": {"hooks": {"shutdown": [["bad", "hang", None]]}},
}
# Which event says that it hangs, by the key of the plan.
HANGS = {"receiver": "rude receiver", "log_handler": "rude handler", "hooks": "shutdown bad"}
each_stuck = pytest.mark.parametrize("plan", STUCK.values(), ids=STUCK.keys())


@each_stuck
def test_what_hangs_does_not_outlast_the_grace_period(live: Starter, plan: dict[str, Any]) -> None:
    """Whatever of the user's hangs in the middle of the stop, the process leaves with exit code 1."""
    running = live.serve("waitress", plan=plan, settings={"LIFECYCLE_GRACE_PERIOD": 1.0})
    if "stderr" in plan:
        stall(running)
    assert running.stop() == 1


@each_stuck
def test_second_signal_while_something_hangs(live: Starter, plan: dict[str, Any]) -> None:
    """A second signal ends the process at once also while something of the user's hangs."""
    running = live.serve("waitress", plan=plan, settings=LONG_GRACE)
    if "stderr" in plan:
        stall(running)
    running.send(signal.SIGTERM)
    if "stderr" in plan:
        running.wait_for(lambda: get(running.address, "/readyz").status == 503, "a readiness that fails")
    else:
        running.wait_event(HANGS[next(iter(plan))])
    # It tells two signals from one that comes twice, which it does by the time when it reads them.
    assert not running.gone.wait(1.0)
    assert running.stop(signal.SIGINT) == 128 + signal.SIGINT


RAISING: dict[str, dict[str, Any]] = {"log handler": {"log_handler": "raise"}, "receiver": {"receiver": "raise"}}


@pytest.mark.parametrize("plan", RAISING.values(), ids=RAISING.keys())
def test_what_raises_does_not_change_the_stop(live: Starter, plan: dict[str, Any]) -> None:
    """A log handler or receiver that raises changes nothing: what runs is answered, the hooks run, exit 0."""
    running = live.serve("waitress", plan=plan, settings=LONG_GRACE, excuse="ValueError: boom")
    with Connection(running.address) as stream, Connection(running.address) as connection:
        stream.ask("/until-drain")
        running.wait_event("begin until-drain")
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        running.begin_stop()
        assert stream.answer().body.endswith(b"drained\n")
        running.wait_log("listener closed")
        running.open_gate("a")
        answer = connection.answer()
        assert (answer.body, answer.says_close) == (b"passed a", True)
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]


def test_signal_joins_a_shutdown(live: Starter, server: str) -> None:
    """The first signal after shutdown() joins it, what is in flight is answered, and the second forces the exit."""
    running = live.serve(server, settings=LONG_GRACE)
    with Connection(running.address) as connection, Connection(running.address) as never:
        connection.ask("/gate/a")
        never.ask("/gate/never")
        running.wait_event("begin live a")
        running.wait_event("begin live never")
        with Connection(running.address) as asking:
            asking.ask("/stop", "POST")
            assert asking.answer().body == b"stopping"
        running.wait_log("-> DRAINING")
        running.send(signal.SIGTERM)
        assert not running.gone.wait(0.5)
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
        assert running.stop() == 128 + signal.SIGTERM
    assert "abandoned GET /gate/never [/gate/<gate>] after" in running.log


def test_view_that_raises_system_exit(live: Starter, server: str) -> None:
    """A view that raises SystemExit is answered with 500, and holds neither its connection nor the drain."""
    running = live.serve(server, settings=LONG_GRACE, excuse="SystemExit: 3|raised SystemExit")
    running.open_gate("open")
    assert get(running.address, "/exit/open").status == 500
    with Connection(running.address) as connection:
        connection.ask("/exit/a")
        running.wait_event("begin exit a")
        running.begin_stop()
        running.wait_log("listener closed")
        running.open_gate("a")
        assert connection.answer().status == 500
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]


def test_readiness_probe_that_waits_for_a_hung_check(live: Starter, server: str) -> None:
    """A readiness probe that waits for hung checks answers 503 when the drain begins; liveness goes on."""
    settings = {**LONG_GRACE, **PROBE_LISTENER}
    running = live.serve(server, plan={"check": "hang"}, settings=settings)
    probes = probe_address(running)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Connection(address)) for address in (running.address, probes)]
        for connection in waiting:
            connection.ask("/readyz")
        work = stack.enter_context(Connection(running.address))
        work.ask("/gate/a")
        running.wait_event("begin live a")
        running.wait_event("rude check")
        assert [get(address, "/livez").status for address in (running.address, probes)] == [200, 200]
        running.begin_stop()
        # The drain goes on: the work has not passed its gate.
        assert [connection.answer().status for connection in waiting] == [503, 503]
        assert [get(probes, path).status for path in ("/livez", "/readyz")] == [200, 503]
        running.open_gate("a")
        assert work.answer().body == b"passed a"
    assert running.wait_gone() == 0
