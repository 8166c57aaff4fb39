"""Websockets, by Flask-Sock on Werkzeug, with a real client: each is a request until it ends."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from simple_websocket import Client, ConnectionClosed  # type: ignore[import-untyped]  # it has no types

from ._client import PATIENCE, Connection, get
from ._process import Running, Starter, wait_until

HANDSHAKE = (
    "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def serve(live: Starter, excuse: str = "", **settings: Any) -> Running:
    """Serve the websockets."""
    return live.serve("werkzeug", app="websocket_app.py", excuse=excuse, settings=settings)


@contextlib.contextmanager
def connected(running: Running, path: str) -> Iterator[Client]:
    """A websocket's client, which has had an echo."""
    host, port = running.address
    daemon = functools.partial(threading.Thread, daemon=True)  # a failure is not to hold the tests
    client = Client.connect(f"ws://{host}:{port}{path}", thread_class=daemon)
    try:
        client.send("hello")
        assert client.receive(timeout=PATIENCE) == "hello"
        yield client
    finally:
        client.connected = False
        with contextlib.suppress(OSError):
            client.sock.shutdown(socket.SHUT_RDWR)  # a close alone would not end its thread's recv
        client.sock.close()
        client.thread.join(PATIENCE)


def switch(client: Connection, path: str) -> None:
    """Ask for a websocket, as a client whose bytes are looked at, and read until it is there."""
    client.send((HANDSHAKE % path).encode())
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += client.receive(1)
    assert received.startswith(b"HTTP/1.1 101 ")


def closed_with(client: Client) -> tuple[int, str]:
    """The code and the reason that a client finds its websocket closed with."""
    with pytest.raises(ConnectionClosed) as caught:
        client.receive(timeout=PATIENCE)
    return caught.value.reason, caught.value.message


def test_a_websocket_that_notices_the_drain(live: Starter) -> None:
    """A websocket is in flight until it ends; one that looks at `draining` ends with code 1001, before the hooks."""
    running = serve(live)
    with connected(running, "/polite") as client:
        assert json.loads(get(running.address, "/paths").body) == ["/polite", "/paths"]
        running.send(signal.SIGTERM)
        assert client.receive(timeout=PATIENCE) == "bye"
        assert closed_with(client) == (1001, "going away")
    assert running.wait_gone() == 0
    assert "clean, exit 0" in running.log
    assert running.told("ended") < running.told("shutdown last")


def test_a_close_frame_that_is_not_answered(live: Starter) -> None:
    """A client that never answers the close frame delays the stop no longer than an idle connection."""
    running = serve(live)
    with Connection(running.address) as client:
        switch(client, "/polite")
        running.send(signal.SIGTERM)
        assert client.rest().startswith(b"\x81\x03bye\x88\x0c\x03\xe9going away")
        assert running.wait_gone() == 0
    assert "clean, exit 0" in running.log


def test_a_websocket_that_is_left_or_fails(live: Starter) -> None:
    """A closed websocket is in flight no more; one that raises ends without a close frame, and is logged."""
    running = serve(live, excuse="ValueError: boom")
    with Connection(running.address) as client:
        switch(client, "/raises")
        client.send(b"\x81\x82\0\0\0\0hi")  # masked with zeros
        assert client.rest().startswith(b"HTTP/1.1 500 ")  # for which Flask has its page
    with connected(running, "/deaf") as deaf:
        deaf.close(1000)
    running.wait_event("closed")
    wait_until(lambda: json.loads(get(running.address, "/paths").body) == ["/paths"], "the end of the request")
    with connected(running, "/deaf"):
        assert json.loads(get(running.address, "/daemons").body) == [True]
    running.wait_event("closed", 2)
    assert running.stop() == 0
    assert running.log.count("ValueError: boom") == 1


def test_a_websocket_that_ignores_the_drain(live: Starter) -> None:
    """A websocket that ignores the drain is cut off at the deadline: named in the log, the hooks run, and exit 1."""
    running = serve(live, LIFECYCLE_GRACE_PERIOD=2.0, LIFECYCLE_HOOK_RESERVE=0.5)
    with connected(running, "/deaf") as client:
        running.send(signal.SIGTERM)
        assert closed_with(client)[0] == 1005  # none received
    assert running.wait_gone() == 1
    assert running.log.count("abandoned GET /deaf after") == 1
    assert running.hooks() == ["last", "first"]


def test_pings_do_not_hold_the_exit(live: Starter) -> None:
    """The thread by which a websocket sends its pings does not hold the exit until the next of them."""
    running = serve(live, SOCK_SERVER_OPTIONS={"ping_interval": 300})
    with Connection(running.address) as client:
        switch(client, "/polite")
        running.send(signal.SIGTERM)
        client.rest()
        assert running.wait_gone() == 0
    assert "threads still run" not in running.log


def begin_event(
    live: Starter, *, disconnect: bool, kind: str = "import", grace_period: float = 25.0
) -> tuple[Running, Client]:
    """Serve Flask-SocketIO, created after the Lifecycle, and have a client's event under way."""
    running = live.serve(
        "werkzeug",
        app="socketio_app.py",
        plan={"logging": True, "disconnect": disconnect},
        settings={"LIFECYCLE_GRACE_PERIOD": grace_period},
    )
    host, port = running.address
    daemon = functools.partial(threading.Thread, daemon=True)
    client = Client.connect(f"ws://{host}:{port}/socket.io/?EIO=4&transport=websocket", thread_class=daemon)
    client.send("40")  # the client sees a frame that came with the handshake only when more has come
    assert str(client.receive(timeout=PATIENCE)).startswith("0{")  # engine.io: open
    assert client.receive(timeout=PATIENCE)[:2] == "40"  # connected to the namespace
    client.send(f'42["{kind}","file"]')
    running.wait_event("begin file")
    return running, client


@pytest.mark.parametrize("kind", ["import", "copy"], ids=["work", "bare"])
def test_an_event_of_flask_socketio_is_waited_for(live: Starter, kind: str) -> None:
    """Clients that on_drain disconnects hold up no stop, and an event under way ends before the hooks run."""
    running, _client = begin_event(live, disconnect=True, kind=kind)
    running.begin_stop()
    running.wait_log("listener closed")
    running.open_gate("file")
    assert running.wait_gone() == 0
    assert running.told("end file")[0] < running.told("shutdown last")[0]


def test_an_event_of_flask_socketio_that_hangs_is_no_clean_stop(live: Starter) -> None:
    """An event that does not end is reported by its name and its stack, though it is neither a request nor work."""
    running, _client = begin_event(live, disconnect=True, kind="copy", grace_period=2.0)
    assert running.stop() == 1
    assert "abandoned work 'Socket.IO event copy'" in running.log
    assert "in copy_file" in running.log


def test_a_client_of_flask_socketio_that_stays_is_no_clean_stop(live: Starter) -> None:
    """A client that nothing disconnects is in flight, though Flask-SocketIO stands around the application."""
    running, _client = begin_event(live, disconnect=False, grace_period=2.0)
    running.open_gate("file")
    running.wait_event("end file")
    assert running.stop() == 1
    assert "abandoned GET /socket.io/" in running.log
