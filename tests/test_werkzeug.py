"""Our Werkzeug, served in this process: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from flask_lifecycle import _sockets
from flask_lifecycle.servers import _closing
from flask_lifecycle.servers.werkzeug import _Answer
from tests._fakes import BOUND, Served, running, served, until
from tests.live._client import Connection, LostError, get

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# More than a small client takes at once, and less than our kernel takes from us.
LARGE = b"x" * 60_000
NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n"


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the path says; only some of these answers end where they say that they do."""
    path = environ["PATH_INFO"]
    if path == "/large":
        start_response("200 OK", [("Content-Length", str(len(LARGE)))])
        return [LARGE]
    if path == "/raises":
        raise ConnectionError("the database has gone")  # Werkzeug takes it for the client's
    if path == "/fails":
        raise LookupError("an error like any other")
    if path == "/exits":
        raise SystemExit(3)
    if path == "/nothing":
        start_response("204 No Content", [])
        return []
    lengths = {"/whole": "4", "/next": "4", "/short": "5", "/long": "3"}
    start_response("200 OK", [("Content-Length", lengths[path])] if path in lengths else [])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"bo", b"dy"]


@pytest.fixture
def werkzeug() -> Iterator[Served]:
    """The application above."""
    with served("werkzeug", app) as subject:
        yield subject


@contextlib.contextmanager
def held_up(subject: Served) -> Iterator[None]:
    """Keep the server's loop from accepting until what is inside has been done."""
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(BOUND)

    subject.runner._post(hold)
    assert busy.wait(BOUND)
    try:
        yield
    finally:
        free.set()


@pytest.mark.parametrize(("path", "body"), [("/whole", b"body"), ("/chunks", b"body"), ("/nothing", b"")])
def test_pipelined_behind_an_answer_that_ends(werkzeug: Served, path: str, body: bytes) -> None:
    """A request that is pipelined behind an answer whose end can be told is answered too, and the last closes."""
    with Connection(werkzeug.address) as client:
        client.send(NEXT.replace(b"/next", path.encode()) + NEXT)
        status, headers = client.head()
        assert (client.body(headers) if status != 204 else b"", headers.get("connection")) == (body, None)
        last = client.answer()
        assert (last.status, last.body, last.says_close) == (200, b"body", True)
        assert client.rest() == b""


def test_pipelined_behind_a_head(werkzeug: Served) -> None:
    """The answer to HEAD ends with its head, whatever length it tells, and the request behind it is answered."""
    with Connection(werkzeug.address) as client:
        client.send(NEXT.replace(b"GET /next", b"HEAD /whole") + NEXT)
        assert client.head()[1]["content-length"] == "4"
        assert client.answer().body == b"body"


@pytest.mark.parametrize(
    ("path", "said"),
    [("/short", b"body"), ("/long", b"body")],
)
def test_pipelined_behind_an_answer_that_does_not_end(werkzeug: Served, path: str, said: bytes) -> None:
    """Behind an answer that never came, or not as long as it said, nothing is sent that would be taken for it."""
    with Connection(werkzeug.address) as client:
        client.send(NEXT.replace(b"/next", path.encode()) + NEXT)
        assert client.rest().rpartition(b"\r\n\r\n")[2] == said


def test_an_answer_that_never_began() -> None:
    """An answer of which the client has got nothing, as it has gone, did not end well."""
    assert not _Answer(io.BytesIO(), "GET").complete


@pytest.mark.parametrize("path", ["/raises", "/exits", "/fails"])
def test_what_werkzeug_would_misread_is_answered(werkzeug: Served, path: str) -> None:
    """A lost database is not a lost client, and SystemExit no reason for silence: the request is answered 500."""
    assert get(werkzeug.address, path).status == 500


def test_empty_lines_before_a_request(werkzeug: Served) -> None:
    """Empty lines that some clients send before a request are no request, and no harm."""
    with Connection(werkzeug.address) as client:
        client.send(b"\r\n\r\n" + NEXT)
        assert client.answer().body == b"body"


def test_empty_lines_alone_are_silence(werkzeug: Served) -> None:
    """Who has sent nothing but empty lines is as silent as who has sent nothing, and is hung up by a drain."""
    with Connection(werkzeug.address) as client:
        client.send(b"\r\n")
        until(lambda: len(werkzeug.runner.sockets()) == 2)
        werkzeug.begin_drain()
        assert werkzeug.runner.unfinished() == []
        with pytest.raises(LostError, match="end of file in the status line"):
            client.answer()


def test_a_client_that_resets_in_the_accept_queue(werkzeug: Served, capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that is reset before it is accepted is let go without a word, and the next is answered."""
    # loop: is held up | client: connects, resets | loop: accepts, starts the thread | thread: its first read fails
    with held_up(werkzeug):
        Connection(werkzeug.address).reset()
    assert get(werkzeug.address, "/whole").body == b"body"
    until(lambda: len(werkzeug.runner.sockets()) == 1)
    assert "Traceback" not in capfd.readouterr().err


def test_no_thread_to_be_had(
    werkzeug: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no thread can be started a connection is closed and forgotten, and the next is answered."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with Connection(werkzeug.address) as client:
            assert client.rest() == b""
    until(lambda: len(werkzeug.runner.sockets()) == 1)
    assert get(werkzeug.address, "/whole").body == b"body"
    assert "RuntimeError: can't start new thread" in capfd.readouterr().err


def test_a_client_that_sends_for_ever(werkzeug: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on sending after the answer is read from for so long, and then closed."""
    assert _sockets.FAREWELL_IN_ALL == 30.0
    monkeypatch.setattr(_sockets, "FAREWELL_IN_ALL", 0.05)
    with Connection(werkzeug.address) as client:
        assert client.get("/whole").body == b"body"

        def closed() -> bool:
            try:
                client.send(b"x" * 1000)
            except LostError:
                return True
            return False

        until(closed)


def test_an_answer_is_acknowledged_in_a_drain(werkzeug: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a drain a client that still reads its answer is waited for until it has acknowledged the last byte."""
    asked, unsent = threading.Event(), _sockets.unsent

    def ask(sock: socket.socket) -> int:
        left = unsent(sock)
        if left:
            asked.set()
        return left

    monkeypatch.setattr(_sockets, "unsent", ask)
    with Connection(werkzeug.address, small=True) as client:
        client.ask("/large")
        until(lambda: [info.stage for info in werkzeug.runner.unfinished()] == ["sending"])
        werkzeug.begin_drain()
        assert asked.wait(BOUND)
        assert not werkzeug.runner.wait_idle(0.0, 0.0)
        assert client.answer().body == LARGE
        assert client.rest() == b""


def test_the_last_pass_is_answered_behind_the_listener(werkzeug: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is accepted in the last pass over the queue is answered too, once the listener is closed."""
    # loop: is held up | clients: connect and ask | loop: accepts the one, its bound is over, accepts and holds the
    # other, closes the listener, answers
    monkeypatch.setattr(_closing, "_AT_ONCE", 1)
    monkeypatch.setattr(_closing, "CLOSING_BOUND", 0.0)
    [listener] = werkzeug.runner._listeners
    seen: list[int] = []
    release = listener.close_and_release

    def close_and_release() -> None:
        seen.append(len(listener._held))
        release()

    monkeypatch.setattr(listener, "close_and_release", close_and_release)
    with contextlib.ExitStack() as stack:
        with held_up(werkzeug):
            clients = [stack.enter_context(Connection(werkzeug.address)) for _ in range(2)]
            for client in clients:
                client.ask("/whole")
            stack.enter_context(running(werkzeug.begin_drain))
            until(lambda: len(werkzeug.runner._posted) == 1)
        assert [client.answer().body for client in clients] == [b"body", b"body"]
    assert seen == [1]


def test_a_request_that_outlasts_the_loop() -> None:
    """A request that still runs when the loop has ended keeps all that its thread uses, and is answered."""
    entered, free = threading.Event(), threading.Event()

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.set()
        assert free.wait(BOUND)
        return app(environ, start_response)

    with served("werkzeug", slow) as subject:
        client = Connection(subject.address)
        client.ask("/whole")
        assert entered.wait(BOUND)
        subject.all_end = False
    with client:
        free.set()
        assert client.answer().body == b"body"
        assert client.rest() == b""
    until(lambda: not subject.runner._connections)
    subject.runner._release()
