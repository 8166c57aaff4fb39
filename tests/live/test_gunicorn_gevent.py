"""gunicorn's gevent worker, with our hooks in the configuration and without, the application loaded before the fork and
after it.
"""

from __future__ import annotations

import os
import signal

import pytest

from ._client import Connection, get
from ._process import BIG, Starter
from .test_gunicorn import address_of, exited, free_port, load, pids, serve, wait_draining, wait_ready

WARM = {"warm": True, "hooks": {"startup": [["open", "ok", None]], "shutdown": [["open", "ok", None]]}}
each_loading = pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["worker", "preload"])


@each_loading
def test_what_is_under_way_is_answered(live: Starter, preload: tuple[str, ...]) -> None:
    """What runs, streams, is half received or read slowly when the signal comes is answered; then the hooks run."""
    running = serve(live, "gevent", *preload, workers=1, ready=False)
    wait_ready(running, 1)
    address = address_of(running)
    with (
        Connection(address) as work, Connection(address) as stream, Connection(address) as head,
        Connection(address) as body, Connection(address, small=True) as slow,
    ):  # fmt: skip
        work.ask("/gate/work")
        slow.ask("/gated-big/work")
        stream.ask("/until-drain")
        body.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf-")
        for begun in ("begin live work", "begin until-drain", "begin echo"):
            running.wait_event(begun)
        head.send(b"GET /fast HTTP/1.1\r\nHo")
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        head.send(b"st: a\r\n\r\n")
        body.send(b"other")
        running.open_gate("work")
        assert (head.answer().body, body.answer().body) == (b"fast", b"10 bytes")
        answer = work.answer()
        assert (answer.body, answer.says_close) == (b"passed work", True)
        assert stream.answer().body.endswith(b"drained\n")
        assert slow.answer().body == BIG
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert running.told("end live work") < running.told("shutdown last")


@each_loading
def test_all_workers_leave_together(live: Starter, preload: tuple[str, ...]) -> None:
    """During the delay every worker refuses readiness, on its own listener for probes too, is alive, and serves."""
    probes = ("127.0.0.1", free_port())
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 1.0, "LIFECYCLE_PROBE_PORT": probes[1]}
    running = serve(live, "gevent", *preload, settings=settings, ready=False)
    wait_ready(running, 2)
    address = address_of(running)
    assert [get(where, "/readyz").status for where in (address, probes) for _ in range(8)] == [200] * 16
    running.send(signal.SIGTERM)
    wait_draining(running)
    assert [get(where, "/readyz").status for where in (address, probes) for _ in range(8)] == [503] * 16
    assert [get(where, "/livez").status for where in (address, probes)] == [200, 200]
    answer = get(address, "/fast")
    assert (answer.body, answer.says_close) == (b"fast", True)
    assert running.wait_gone() == 0
    assert running.lasted >= 1.0
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]


def test_the_accept_queue_is_served(live: Starter) -> None:
    """What waits in the kernel's queue when the signal comes is answered."""
    running = serve(live, "gevent", workers=1)
    address, (worker,) = address_of(running), pids(running)
    os.kill(worker, signal.SIGSTOP)
    connections = [Connection(address) for _ in range(8)]
    try:
        for connection in connections:
            connection.ask("/fast")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        os.kill(worker, signal.SIGCONT)
        assert [connection.answer().body for connection in connections] == [b"fast"] * 8
    finally:
        for connection in connections:
            connection.sock.close()
    assert running.wait_gone() == 0


def test_kept_and_silent_connections_hold_no_stop(live: Starter) -> None:
    """A ``keepalive`` longer than the grace period does not use it up where nobody asks for anything."""
    running = serve(live, "gevent", "--keep-alive", "300", workers=1)
    with Connection(address_of(running)) as kept, Connection(address_of(running)) as silent:
        kept.ask("/fast")
        assert kept.answer().body == b"fast"
        silent.send(b"")
        assert running.stop() == 0
        assert (kept.sock.recv(1), silent.sock.recv(1)) == (b"", b"")
    assert "shutdown complete" in running.log
    assert "Traceback" not in running.log


def test_workers_that_are_replaced_lose_nothing(live: Starter) -> None:
    """Clients that ask without pause are answered while workers are replaced and until the stop; hooks run once."""
    running = serve(live, "gevent", "--max-requests", "200", settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3})
    with load(address_of(running), keep_alive=True) as tallies:
        running.wait_for(lambda: exited(running) >= 2, "the end of some workers")
        assert running.stop() == 0
    assert [tally.lost for tally in tallies] == [[]] * 4
    assert running.hooks().count("first") == running.hooks().count("last") == exited(running)


def test_a_request_that_hangs(live: Starter) -> None:
    """A request that does not end is abandoned within the grace period, the hooks run, and the exit code is 1."""
    running = serve(live, "gevent", workers=1, settings={"LIFECYCLE_GRACE_PERIOD": 3.0})
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/never")
        running.wait_event("begin live never")
        assert running.stop() == 1
    assert running.hooks() == ["last", "first"]


def test_without_hooks_and_preloaded(live: Starter) -> None:
    """With ``--preload`` alone a started request is answered, and the hooks of its worker run once when it exits."""
    running = serve(live, "gevent", "--preload", config=None, workers=1, plan=WARM, ready=False)
    wait_ready(running, 2)  # of the warm-up, and of the worker, that nobody has asked anything
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert running.hooks() == ["open", "open"]  # the worker's, and the warm-up's


def test_without_hooks_started_requests_are_answered(live: Starter) -> None:
    """Without a configuration a started request is answered and the hooks of its worker run once, after it."""
    running = serve(live, "gevent", config=None, workers=1, ready=False)
    address = address_of(running)
    with Connection(address) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        assert get(address, "/readyz").status == 200
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert running.told("end live work") < running.told("shutdown last")
