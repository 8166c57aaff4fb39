"""What a stop does to connections: half received, idle, pipelined, waiting to be accepted, still being read."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

import pytest

from ._client import Connection, get, refuses
from ._process import BIG, UNTIL_ASKED, Starter
from ._traffic import fill_accept_queue, hung_request, in_flight
from .conftest import each_lossless_server

# Longer than a test waits for anything, with as long a grace period.
LONG_LINGER = {"LIFECYCLE_KEEPALIVE_LINGER": 60.0, "LIFECYCLE_GRACE_PERIOD": 90.0}


def answers_of(connections: list[Connection]) -> list[tuple[int, bytes]]:
    """Read and close every connection."""
    answers = []
    for connection in connections:
        with connection:
            answer = connection.answer()
            answers.append((answer.status, answer.body))
    return answers


def test_silent_connection_speaks_within_the_linger(live: Starter, lossless_server: str) -> None:
    """A connection made before the signal that first speaks within the linger is answered."""
    running = live.serve(lossless_server, settings=LONG_LINGER)
    with Connection(running.address) as connection:
        assert get(running.address, "/fast").status == 200
        running.begin_stop()
        running.wait_log("listener closed")
        answer = connection.get("/fast")
        assert (answer.status, answer.body, answer.says_close) == (200, b"fast", True)
        assert connection.rest() == b""
    assert running.wait_gone() == 0


def test_connection_that_spoke_in_the_delay_lingers_no_more(live: Starter) -> None:
    """An idle connection whose request in the delay was told to close is closed by the answer, not by the linger."""
    running = live.serve("waitress", settings=LONG_LINGER, plan=UNTIL_ASKED)
    with Connection(running.address) as connection:
        assert not connection.get("/fast").says_close
        running.begin_stop()
        assert connection.get("/fast").says_close
        running.open_gate("asked")
        assert connection.rest() == b""
    assert running.wait_gone() == 0


def test_accept_queue_where_no_listener_becomes_deaf(live: Starter, lossless_server: str) -> None:
    """Where the kernel lets no listener become deaf, what stands in the accept queue is answered all the same."""
    running = live.serve(lossless_server, plan={"fallback": True})
    connections = fill_accept_queue(running, [running.address] * 20)
    assert answers_of(connections) == [(200, b"fast")] * 20
    assert running.wait_gone() == 0
    assert "listener closed (quiet period)" in running.log


def test_accept_queue_beyond_the_connection_limit(live: Starter) -> None:
    """The limit on connections does not keep the accept queue of a stop from being served."""
    running = live.serve("waitress", "--connection-limit", "8")
    connections = fill_accept_queue(running, [running.address] * 20)
    assert answers_of(connections) == [(200, b"fast")] * 20
    assert running.wait_gone() == 0


@each_lossless_server
def test_answer_is_not_cut_by_what_the_client_sends_on(live: Starter, lossless_server: str) -> None:
    """A client that sends on while it reads an answer that said "close" gets that answer to its last byte."""
    running = live.serve(lossless_server)
    with Connection(running.address, slow=True) as connection:
        connection.ask("/gated-big/a")
        running.wait_event("begin live a")
        running.begin_stop()
        running.open_gate("a")
        status, headers = connection.head()
        assert headers["connection"] == "close"
        connection.ask("/fast")
        assert not running.gone.wait(0.5)
        body = connection.body(headers)
    assert status == 200
    assert body == BIG
    assert running.wait_gone() == 0


def test_small_answer_is_not_reset_by_what_the_client_sent_on(live: Starter, lossless_server: str) -> None:
    """Bytes that the server never read do not turn the end of an answer into a reset."""
    running = live.serve(lossless_server)
    with hung_request(running, "a") as connection:
        running.begin_stop()
        connection.send(b"GET /fa")
        running.open_gate("a")
        answer = connection.answer()
        assert answer.body == b"passed a"
        if not answer.says_close:  # the server waits for the request that has begun
            connection.send(b"st HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.answer().body == b"fast"
        assert connection.rest() == b""
    assert running.wait_gone() == 0


def test_many_idle_connections(live: Starter) -> None:
    """More idle connections than ``select`` can wait for are served, and hung up without a reset after one linger."""
    many = 1100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * many + 200  # the process inherits the limit
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        settings = {"LIFECYCLE_KEEPALIVE_LINGER": 0.25, "LIFECYCLE_GRACE_PERIOD": 60.0}
        running = live.serve("waitress", "--connection-limit", "2000", settings=settings)
        connections = [stack.enter_context(Connection(running.address)) for _ in range(many)]
        for connection in connections:
            connection.ask("/fast")
        assert all(connection.answer().body == b"fast" for connection in connections)
        assert running.stop() == 0
        assert all(connection.rest() == b"" for connection in connections)


# Werkzeug keeps no connection.
@pytest.mark.parametrize("lossless_server", ["waitress", "waitress-serve", "cheroot", "gevent"])
def test_idle_connections_have_all_descriptors(live: Starter, lossless_server: str) -> None:
    """Where idle connections have all descriptors, they give way, and the clients that wait are answered."""
    limit = 80
    options = ["-o", "keep_alive_conn_limit=1000"] if lossless_server == "cheroot" else []
    prefix = ("prlimit", f"--nofile={limit}")
    running = live.serve(lossless_server, *options, prefix=prefix, excuse="Traceback")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(running.address)) for _ in range(limit + 20)]
        for connection in connections:
            connection.ask("/fast")
        running.wait_for(lambda: running.resources().descriptors == limit, "no descriptor is left")
        running.send(signal.SIGTERM)
        assert all(connection.answer().body == b"fast" for connection in connections)
    assert running.wait_gone() == 0, running.log_tail
    assert sorted(running.hooks()) == ["first", "last"]


# waitress by itself takes no Unix socket beside others.
@pytest.mark.parametrize(
    ("server", "families"),
    [*((server, "46u") for server in ("waitress", "werkzeug", "cheroot", "gevent")),
     ("waitress-serve", "46"), ("waitress-serve", "u")],
)  # fmt: skip
def test_listeners_of_all_families(live: Starter, server: str, families: str, tmp_path: Path) -> None:
    """One stop drains the accept queues of all listeners, v4, v6 and Unix, and removes the path."""
    path = str(tmp_path / "socket")
    options = {"4": ("--listen", "127.0.0.1:0"), "6": ("--listen", "[::1]:0"), "u": ("--unix-socket", path)}
    hosts = {"4": "127.0.0.1", "6": "::1", "u": path}
    listen = [option for family in families for option in options[family]]
    settings = {"LIFECYCLE_GRACE_PERIOD": 60.0}
    running = live.serve(server, *listen, listeners=len(families), settings=settings)
    addresses = running.addresses
    assert {a if isinstance(a, str) else a[0] for a in addresses} == {hosts[family] for family in families}
    with contextlib.ExitStack() as stack, in_flight(running, address=addresses[-1]):
        # On cheroot a silent client holds a worker, and of a Unix socket the kernel does not say that it is silent.
        quiet = [a for a in addresses if server != "cheroot" or not isinstance(a, str)]
        silent = [stack.enter_context(Connection(address)) for address in quiet]
        waiting = fill_accept_queue(running, addresses * 5)
        assert answers_of(waiting) == [(200, b"fast")] * len(waiting)
        running.wait_log("listener closed")
        running.wait_for(lambda: all(map(refuses, addresses)), "closed listeners")
        assert [connection.rest() for connection in silent] == [b""] * len(silent)
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert not os.path.exists(path)
