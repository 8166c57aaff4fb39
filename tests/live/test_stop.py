"""What a stop does to the requests that run, and how the process ends."""

from __future__ import annotations

import re
import signal

import pytest

from ._client import Connection, get
from ._process import Running, Starter
from ._traffic import hung_request


def assert_clean(running: Running, code: int) -> None:
    """Assert that a stop lost nothing: code 0, the log says so, hooks ran once, last in first."""
    assert code == 0
    assert "clean, exit 0" in running.log
    assert running.hooks() == ["last", "first"]


def test_client_gone_and_raising_body_leave_nothing(live: Starter, lossless_server: str) -> None:
    """A client that leaves, or a body that raises, leaves nothing in flight; a request may ask for the shutdown."""
    running = live.serve(lossless_server, excuse="raised in the body")
    with Connection(running.address) as connection:
        connection.ask("/stream?gate=a")
        running.wait_event("begin stream")
        connection.reset()
    running.open_gate("a")
    running.wait_event("end stream")
    with Connection(running.address) as connection:
        connection.ask("/raise-in-body")
        connection.head()
        connection.sock.settimeout(5.0)
        assert b"one chunk" in connection.rest()
    # The count goes down after the last byte has gone out, so look until it has.
    running.wait_for(lambda: get(running.address, "/in-flight").body == b"1", "only the asking request in flight")
    with Connection(running.address) as connection:
        connection.ask("/stop", "POST")
        assert connection.answer().body == b"stopping"
    assert_clean(running, running.wait_gone())
    assert "asked by a request" in running.log


@pytest.mark.parametrize(("server", "way_out"), [("waitress", "Ctrl-C"), ("werkzeug", "Ctrl-C again")])
def test_the_countdown(live: Starter, server: str, way_out: str) -> None:
    """On a terminal whole lines tell what is awaited, requests and work; what the application logs is glued to none."""
    running = live.serve(server, terminal=True, plan={"logging": True}, settings={"LIFECYCLE_GRACE_PERIOD": 60.0})
    assert get(running.address, "/work/job").status == 202
    running.wait_event("begin work job")
    with hung_request(running, "a") as connection:
        if way_out == "Ctrl-C":
            running.send(signal.SIGTERM)
        else:
            running.type(b"\x03")
        running.wait_log("1 request and 1 work item in flight")
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
        running.wait_log("\n1 work item in flight")
    running.open_gate("job")
    assert_clean(running, running.wait_gone())
    told = [line.strip() for line in running.log.splitlines() if " in flight" in line]
    assert len(told) >= 2
    for line in told:
        assert re.fullmatch(
            rf"1 (request|request and 1 work item|work item) in flight, \d+ s left \({way_out} to force\)", line
        )


def test_ctrl_c_twice_on_a_terminal(live: Starter) -> None:
    """A second Ctrl-C on a terminal forces the exit."""
    running = live.serve("waitress", terminal=True)
    with hung_request(running):
        running.type(b"\x03")
        running.wait_log("again to force")
        assert not running.gone.wait(0.2)
        running.type(b"\x03")
        assert running.wait_gone() == 128 + signal.SIGINT


def test_what_notices_the_drain(live: Starter, lossless_server: str) -> None:
    """While requests are in flight on_drain functions run and streams end themselves; threads can still start."""
    running = live.serve(lossless_server, plan={"hooks": {"drain": [["consumer", "ok", None]]}})
    with Connection(running.address) as stream, Connection(running.address) as connection:
        stream.ask("/until-drain")
        running.wait_event("begin until-drain")
        connection.ask("/pool/a")
        running.wait_event("begin live a")
        running.send(signal.SIGTERM)
        running.wait_event("drain consumer")
        assert stream.answer().body.endswith(b"tick\ndrained\n")
        running.wait_log("listener closed")
        running.open_gate("a")
        assert connection.answer().body == b"from the pool"
    assert_clean(running, running.wait_gone())


def test_background_checks_end_before_the_hooks(live: Starter) -> None:
    """When the hooks run no background check is started any more: what it needs may be torn down already."""
    plan = {"background": 0.02, "hooks": {"shutdown": [["slow", "gate", None]]}}
    running = live.serve("waitress", plan=plan)
    running.wait_event("background", 2)
    running.send(signal.SIGTERM)
    running.wait_event("shutdown slow")
    assert not running.gone.wait(0.2)
    running.open_gate("slow")
    assert running.wait_gone() == 0
    # One that was under way when the hooks began may have told its event a moment after.
    begun = running.told("shutdown slow")[0]
    assert len([when for when in running.told("background") if when > begun]) <= 1
