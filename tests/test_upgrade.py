"""Connections that the application takes over, on our Werkzeug: what is on the wire, and what it is noticed by."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from flask_lifecycle.servers._upgrade import LentSocket
from flask_lifecycle.servers.werkzeug import _is_over
from tests._fakes import Served, served, until
from tests.live._client import Connection

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: shout\r\nConnection: Upgrade\r\n\r\n"
WAYS: dict[str, Callable[[socket.socket], object]] = {
    "/send": lambda sock: sock.send(ANSWER),
    "/sendall": lambda sock: sock.sendall(ANSWER),
    "/sendmsg": lambda sock: sock.sendmsg([ANSWER]),
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Take the connection over, or not, and end as the query says."""
    path = environ["PATH_INFO"]
    if path == "/without":
        assert "werkzeug.socket" not in environ
        raise RuntimeError("cannot obtain the socket")
    if path in WAYS:
        sock = environ["werkzeug.socket"]
        WAYS[path](sock)
        sock.sendall(sock.recv(100).upper())
        sock.close()
    raised: dict[str, type[BaseException]] = {"left": ConnectionError, "slow": TimeoutError, "exits": SystemExit}
    if environ["QUERY_STRING"] in raised:
        raise raised[environ["QUERY_STRING"]]
    if environ["QUERY_STRING"] == "fails":
        raise LookupError("an error like any other")
    start_response("200 OK", [("Content-Length", "4")] if environ["QUERY_STRING"] == "sized" else [])
    return [b"body"]


@pytest.fixture
def werkzeug() -> Iterator[Served]:
    """The application above."""
    with served("werkzeug", app) as subject:
        yield subject


def upgrade(client: Connection, path: str) -> None:
    """Ask for another protocol."""
    client.ask(path, Upgrade="shout", Connection="Upgrade")


@pytest.mark.parametrize("end", ["", "?sized", "?fails", "?left", "?slow", "?exits"])
def test_nothing_of_http_behind_the_last_frame(werkzeug: Served, end: str) -> None:
    """Whatever the application returns or raises when it has taken a connection over, nothing of it is sent there."""
    with Connection(werkzeug.address) as client:
        upgrade(client, f"/sendall{end}")
        assert client.exactly(len(ANSWER)) == ANSWER
        client.send(b"hello")
        assert client.rest() == b"HELLO"


@pytest.mark.parametrize("path", WAYS)
def test_every_way_to_send_is_noticed(werkzeug: Served, path: str) -> None:
    """It is the first byte that counts, however it is sent."""
    with Connection(werkzeug.address) as client:
        upgrade(client, path)
        assert client.exactly(len(ANSWER)) == ANSWER
        client.send(b"hello")
        assert client.rest() == b"HELLO"


@pytest.mark.parametrize(("end", "status"), [("", 200), ("?sized", 200), ("?fails", 500), ("?left", 500)])
def test_an_upgrade_that_is_not_taken_is_answered(werkzeug: Served, end: str, status: int) -> None:
    """A request for an upgrade that the application ignores is answered like any other, and is the last."""
    with Connection(werkzeug.address) as client:
        upgrade(client, f"/elsewhere{end}")
        answer = client.answer()
        assert (answer.status, answer.says_close) == (status, True)
        assert client.rest() == b""


def test_what_follows_is_no_request(werkzeug: Served) -> None:
    """What a client sends when its websocket is over is not taken for a request."""
    with Connection(werkzeug.address) as client:
        upgrade(client, "/sendall?left")
        client.exactly(len(ANSWER))
        client.send(b"hello")
        assert client.exactly(5) == b"HELLO"
        client.send(b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.rest() == b""


def test_without_a_descriptor(werkzeug: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor is to be had there is no socket in the environ, and the request is answered."""

    def refuse(_descriptor: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch, Connection(werkzeug.address) as client:
        patch.setattr("flask_lifecycle.servers._upgrade.os.dup", refuse)
        upgrade(client, "/without")
        assert client.answer().status == 500


def test_no_descriptor_is_left(werkzeug: Served) -> None:
    """Neither an upgrade that was taken nor one that was not leaves a descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    for path in ["/sendall", "/elsewhere"] * 3:
        with Connection(werkzeug.address) as client:
            upgrade(client, path)
            client.exactly(len(ANSWER))
            client.send(b"hello")
            client.rest()
    until(lambda: len(os.listdir("/proc/self/fd")) == before)


class Taking:
    """An application that takes the connection over and reads there until its end, as simple_websocket does."""

    def __init__(self) -> None:
        self.sock: LentSocket | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.sock = environ["werkzeug.socket"]
        assert self.sock is not None
        with self.sock as sock:
            sock.sendall(ANSWER)
            while sock.recv(100):
                pass
        start_response("200 OK", [])
        return []


def test_a_websocket_that_has_not_ended_is_hung_up() -> None:
    """Who has not ended by the end of the shutdown is held by the drain until then, and then finds the connection hung
    up, at both its ends.
    """
    taking = Taking()
    with Connection(("", 0), sock=socket.socket()) as client:
        with served("werkzeug", taking) as subject:
            client.sock.connect(subject.address)
            upgrade(client, "/")
            assert client.exactly(len(ANSWER)) == ANSWER
            assert set(subject.runner.sockets()) >= {taking.sock}  # a forked child is not to keep it
            subject.begin_drain()
            assert not subject.runner.wait_idle(0.0, 0.0)
            assert subject.runner.load().busy == 1
            subject.all_end = False
        assert client.rest() == b""
    until(lambda: not subject.runner._connections)
    subject.runner._release()


def test_the_other_reader_is_quicker() -> None:
    """Whoever reads in a thread of its own may take what the farewell was about to read, and does not hold it up."""
    # farewell: sees that there is something | the other: reads it | farewell: finds nothing, and goes on waiting
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not _is_over(ours)
        theirs.send(b"late")
        assert not _is_over(ours)
        theirs.shutdown(socket.SHUT_WR)
        assert _is_over(ours)
