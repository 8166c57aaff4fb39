"""cheroot and gevent that somebody else started: what a stop does to requests, with ``init_app`` alone."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

import pytest

from ._client import Connection, get, head_of, refuses, storm
from ._process import Running, Starter
from .test_connections import answers_of, fill_accept_queue

FULL = "the full promise"


@pytest.fixture(params=["cheroot", "cheroot command", "gevent"])
def started(request: pytest.FixtureRequest) -> str:
    """Who starts the server, and how."""
    way: str = request.param
    return way


def start(live: Starter, way: str, **more: Any) -> tuple[Running, tuple[str, int]]:
    """Start the server and let it be found, which is with the first request."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address: tuple[str, int] = free.getsockname()
    port = str(address[1])
    command = [sys.executable, "started_by_others.py", way, port]
    if way == "cheroot command":
        command = [sys.executable, "-m", "cheroot", "live_app:app", "--bind", f"127.0.0.1:{port}", "--threads", "4"]
    running = live.start(*command, plan={"logging": True, **more.pop("plan", {})}, **more)
    running.wait_for(lambda: not refuses(address), "its listener")
    assert get(address, "/fast").body == b"fast"
    running.wait_log(f"server {way.split()[0]} .*: {FULL}")
    return running, address


def test_nothing_is_lost(live: Starter, started: str) -> None:
    """A stop answers what runs, what is half received and what waits in the kernel's queue, hangs up idle and silent
    connections without a reset, and then runs the hooks.
    """
    running, address = start(live, started, settings={"LIFECYCLE_KEEPALIVE_LINGER": 0.25})
    with contextlib.ExitStack() as stack:
        runs, half_head, half_body, idle, silent = (stack.enter_context(Connection(address)) for _ in range(5))
        assert idle.get("/fast").body == b"fast"
        silent.sock.setblocking(True)
        runs.ask("/gate/a")
        running.wait_event("begin live a")
        head = head_of("GET", "/fast", {}, 0)
        half_head.send(head[:20])
        half_body.send(head_of("POST", "/echo", {}, 1000) + b"x" * 500)
        running.wait_event("begin echo")
        waiting = fill_accept_queue(running, [address] * 4)
        assert not running.gone.wait(1.0)
        half_head.send(head[20:])
        half_body.send(b"x" * 500)
        assert half_body.answer().body == b"1000 bytes"
        assert half_head.answer().body == b"fast"
        assert answers_of(waiting) == [(200, b"fast")] * 4
        assert (idle.rest(), silent.rest()) == (b"", b"")
        assert refuses(address)
        assert running.hooks() == []
        running.open_gate("a")
        answer = runs.answer()
        assert (answer.body, answer.says_close) == (b"passed a", True)
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert "clean, exit 0" in running.log
    assert running.shutdown_took < 5.0


@pytest.mark.parametrize("started", ["cheroot", "gevent"])
def test_delay_of_a_found_server(live: Starter, started: str) -> None:
    """During the delay all is served, and every answer tells its connection to close."""
    running, address = start(live, started, settings={"LIFECYCLE_SHUTDOWN_DELAY": 1.0})
    running.begin_stop()
    answers = [get(address, path) for path in ("/readyz", "/livez", "/fast")]
    assert [answer.status for answer in answers] == [503, 200, 200]
    assert all(answer.says_close for answer in answers)
    assert running.wait_gone() == 0


@pytest.mark.parametrize("started", ["cheroot", "gevent"])
def test_request_that_outlasts_a_found_server(live: Starter, started: str) -> None:
    """A request that hangs does not keep the process past its grace period, and is named once."""
    running, address = start(live, started, settings={"LIFECYCLE_GRACE_PERIOD": 2.0})
    with Connection(address) as connection:
        connection.ask("/gate/never")
        running.wait_event("begin live never")
        assert running.stop() == 1
    assert "1 abandoned" in running.log
    assert running.hooks() == ["last", "first"]
    assert running.lasted < 7.0


@pytest.mark.parametrize("started", ["cheroot", "gevent"])
def test_storm_on_a_found_server(live: Starter, started: str) -> None:
    """Of clients that connect in a loop not one loses a request over two stops."""
    for _ in range(2):
        running, address = start(live, started)
        with storm(address, running.gone, clients=6, keep_alive=False) as tallies:
            assert running.stop() == 0, running.log_tail
        assert [loss for tally in tallies for loss in tally.lost] == []
        running.wait_log(r"listener closed \(no device\)")
