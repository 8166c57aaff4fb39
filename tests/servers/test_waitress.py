"""Our waitress, served in this process: what the live tests cannot force."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flask_lifecycle._servers import sockets
from tests._fakes import BOUND, Served, served, until
from tests.live._client import Connection, get

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# More than a small client takes at once, and less than our kernel takes from us.
LARGE = b"x" * 60_000


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    body = LARGE if environ["PATH_INFO"] == "/large" else b"ok"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def waitress() -> Iterator[Served]:
    """The application above, served by a single thread."""
    with served("waitress", app, threads=1) as subject:
        yield subject


def channel_of(subject: Served) -> Any:
    """Its only connection."""
    until(lambda: len(subject.runner.connections()) == 1)
    return subject.runner.connections()[0]


def test_a_half_closed_client_reads_its_answer_in_a_drain(waitress: Served) -> None:
    """Who has said that nothing more comes, and still reads, is waited for until the last byte of the answer."""
    with Connection(waitress.address, slow=True) as client:
        client.ask("/large")
        channel = channel_of(waitress)
        until(lambda: channel.last_request and not channel.requests and not channel.total_outbufs_len)
        assert sockets.unsent(channel.socket) > 0
        waitress.begin_drain()
        client.sock.shutdown(socket.SHUT_WR)
        until(lambda: channel.heard_all)
        assert [(info.path, info.stage) for info in waitress.runner.unfinished()] == [("/large", "sending")]
        assert not waitress.runner.wait_idle(0.0, 0.0)
        assert client.answer().body == LARGE
        assert waitress.runner.wait_idle(BOUND, 0.0)
        assert client.rest() == b""


def test_a_client_that_resets_in_a_drain_holds_up_nobody(waitress: Served) -> None:
    """Who has said that nothing more comes, and then goes with a part of its answer unread, is not waited for."""
    with Connection(waitress.address, slow=True) as client:
        client.ask("/large")
        channel = channel_of(waitress)
        until(lambda: channel.last_request and not channel.requests and not channel.total_outbufs_len)
        waitress.begin_drain()
        client.sock.shutdown(socket.SHUT_WR)
        until(lambda: channel.heard_all)
        client.reset()
        until(lambda: waitress.runner.wait_idle(0.0, 0.0))
    assert waitress.runner.unfinished() == []


def test_a_network_that_fails_during_the_lingering_close(waitress: Served) -> None:
    """A connection that cannot be read any more is closed although its client has said nothing of the sort."""

    def fail(size: int) -> bytes:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    with Connection(waitress.address) as client:
        client.send(b"GET / HTTP/1.1\r\nnot a header\r\n\r\n")
        channel = channel_of(waitress)
        assert client.answer().status == 400
        until(lambda: channel.lingering)
        channel.recv = fail
        client.send(b"more")
        until(lambda: not waitress.runner.connections())
    assert get(waitress.address, "/").body == b"ok"


class Slow:
    """The application above, held back until the test says so."""

    def __init__(self) -> None:
        self.entered, self.free = threading.Event(), threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.entered.set()
        assert self.free.wait(BOUND)
        return app(environ, start_response)


def let_go(subject: Served) -> None:
    """Let go of what a worker was left with, now that it is through."""

    def gone() -> bool:
        subject.runner._release()
        return not subject.runner._map

    until(gone)
    [listener] = [each.server for each in subject.runner._listeners]
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.pull_trigger()


def test_a_request_that_outlasts_the_loop() -> None:
    """A request that still runs when the loop has ended keeps all that its worker uses, and is answered."""
    slow = Slow()
    with served("waitress", slow, threads=1) as subject:
        client = Connection(subject.address)
        client.ask("/")
        assert slow.entered.wait(BOUND)
        channel = channel_of(subject)
        subject.all_end = False
    with client:
        slow.free.set()
        assert client.answer().body == b"ok"
        until(lambda: not channel.requests)
        channel.hang_up()
    let_go(subject)


def test_a_worker_that_outlasts_the_loop() -> None:
    """A worker whose client has gone, and that still runs when the loop has ended, keeps what it wakes the loop by."""
    slow = Slow()
    # With a lookahead waitress reads while a request runs, and so notices that the client has gone.
    with served("waitress", slow, threads=1, channel_request_lookahead=1) as subject:
        with Connection(subject.address) as client:
            client.ask("/")
            assert slow.entered.wait(BOUND)
        until(lambda: not subject.runner.connections())
    [listener] = [each.server for each in subject.runner._listeners]
    listener.pull_trigger()  # an error if its pipe were closed
    slow.free.set()
    let_go(subject)
