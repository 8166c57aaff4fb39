"""cheroot and gevent, ours and found, in this process: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import gevent
import pytest
from cheroot.wsgi import Server as CherootServer
from gevent.pywsgi import WSGIServer

from flask_lifecycle import _sockets
from flask_lifecycle.servers import found
from flask_lifecycle.servers.found.cheroot import find as find_cheroot
from flask_lifecycle.servers.found.gevent import find as find_gevent
from tests._fakes import BOUND, Served, run_python, served, until
from tests.live._client import Connection, get, head_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SMUGGLED = head_of("GET", "/smuggled", {}, 0)
FAST = head_of("GET", "/whole", {}, 0)
asked: list[str] = []


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the path says; only some of these answers end where they say that they do."""
    path = environ["PATH_INFO"]
    asked.append(path)
    if path == "/gone":
        raise ConnectionError("the database has gone")
    if path == "/exits":
        raise SystemExit(3)
    lengths = {"/whole": "4", "/smuggled": "4", "/short": "5", "/long": "3", "/none": "0"}
    headers = [("Content-Length", lengths[path])] if path in lengths else []
    if path == "/closes":
        headers.append(("Connection", "close"))
    start_response("200 OK", headers)
    if path == "/body-exits":
        return exits()
    return [] if environ["REQUEST_METHOD"] == "HEAD" or path == "/none" else iter([b"bo", b"dy"])


def exits() -> Iterator[bytes]:
    """Give one chunk, then leave."""
    yield b"one"
    raise SystemExit(3)


@pytest.fixture(params=["cheroot", "gevent"])
def ours(request: pytest.FixtureRequest) -> Iterator[Served]:
    """The application above on a server of ours."""
    asked.clear()
    with served(request.param, app) as subject:
        yield subject


def post(*fields: str) -> bytes:
    """A POST with fields as they are, and a smuggled request for its body."""
    return "\r\n".join(["POST /whole HTTP/1.1", "Host: localhost", *fields, "", ""]).encode() + SMUGGLED


LENGTH = len(SMUGGLED)
SMUGGLERS = {
    "two lengths": post("Content-Length: 0", f"Content-Length: {LENGTH}"),
    "list of lengths": post(f"Content-Length: 0, {LENGTH}"),
    "signed length": post(f"Content-Length: +{LENGTH}"),
    "blank before the colon": post(f"Content-Length : {LENGTH}"),
    "line without a colon": post("Foo", f"Content-Length: {LENGTH}"),
    "empty encoding": post("Transfer-Encoding: ", "Transfer-Encoding: chunked"),
    "length and encoding": post(f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked"),
    "unknown encoding": post("Transfer-Encoding: xchunked"),
    "unread chunks": post("Transfer-Encoding: chunked"),
    "trailer": post("Transfer-Encoding: chunked").replace(SMUGGLED, b"0\r\n" + SMUGGLED),
}


@pytest.mark.parametrize("request_bytes", SMUGGLERS.values(), ids=SMUGGLERS)
def test_a_body_is_never_run_as_a_request(ours: Served, request_bytes: bytes) -> None:
    """Where a head leaves room for two readings, or its body is not read, its body is not run as a second request."""
    with Connection(ours.address) as connection:
        connection.send(request_bytes)
        connection.sock.shutdown(socket.SHUT_WR)
        assert connection.rest().count(b"HTTP/1.1 ") <= 1
    assert "/smuggled" not in asked


@pytest.mark.parametrize("path", ["/gone", "/exits"])
def test_what_the_application_raises_is_answered(ours: Served, path: str) -> None:
    """What a server would take for the client's going, or for its own end, is answered with 500, and it serves on."""
    assert get(ours.address, path).status == 500
    assert get(ours.address, "/whole").body == b"body"


def test_a_body_that_exits(ours: Served) -> None:
    """A body that raises SystemExit ends its answer, and nothing else."""
    with Connection(ours.address) as connection:
        connection.send(head_of("GET", "/body-exits", {}, 0) + FAST)
        connection.head()
        assert connection.rest() == b"3\r\none\r\n"
    assert get(ours.address, "/whole").body == b"body"


def test_a_short_answer_is_the_last(ours: Served) -> None:
    """An answer that is shorter than it said ends its connection."""
    with Connection(ours.address) as connection:
        connection.send(head_of("GET", "/short", {}, 0) + FAST)
        connection.head()
        assert connection.rest() == b"body"


def test_a_long_answer_is_cut_off(ours: Served) -> None:
    """Of an answer that is longer than it said what is too much is not sent."""
    with Connection(ours.address) as connection:
        connection.send(head_of("GET", "/long", {}, 0) + head_of("GET", "/whole", {"Connection": "close"}, 0))
        assert connection.answer().body == b"bod"
        assert connection.answer().body == b"body"


def test_answers_without_a_body_keep_the_connection(ours: Served) -> None:
    """HEAD, an empty answer and line ends between requests leave the connection as it is."""
    with Connection(ours.address) as connection:
        connection.send(b"\r\n\r\n" + head_of("HEAD", "/whole", {}, 0))
        assert connection.head()[0] == 200
        assert connection.get("/none").body == b""
        connection.send(b"\r\n" + FAST + b"\r\n")
        assert connection.answer().body == b"body"


def test_the_application_may_say_close(ours: Served) -> None:
    """The header is sent once, and is true."""
    with Connection(ours.address) as connection:
        connection.ask("/closes")
        status, headers = connection.head()
        assert (status, headers["connection"]) == (200, "close")
        assert b"body" in connection.rest().replace(b"bo\r\n2\r\ndy", b"body")


def test_a_canary_comes_through(ours: Served) -> None:
    """A task that does nothing goes the way of a request, and the load of an idle server is nothing."""
    come = threading.Event()
    assert ours.runner.canary(come.set) is True
    assert come.wait(BOUND)
    until(lambda: ours.runner.load().busy == 0)
    assert ours.runner.load().queued == 0


def test_an_idle_connection_of_cheroot_expires() -> None:
    """A silent connection is hung up after cheroot's own timeout, and not more than the limit are kept."""
    with (
        served("cheroot", app, timeout="1", keep_alive_conn_limit=1) as subject,
        Connection(subject.address) as connection,
        Connection(subject.address) as other,
    ):
        assert connection.get("/whole").says_close is False
        until(lambda: any(each.stage == "idle" for each in subject.runner._connections.copy()))
        assert other.get("/whole").says_close is True
        assert connection.rest() == b""


@contextlib.contextmanager
def running_cheroot(**options: Any) -> Iterator[Any]:
    """A cheroot that we did not start."""
    server = CherootServer(("127.0.0.1", 0), app, numthreads=2, **options)
    server.prepare()
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    until(lambda: server._connections._serving)
    try:
        yield server
    finally:
        server.stop()
        thread.join(BOUND)


def test_cheroot_is_found_and_drained() -> None:
    """What it holds is seen; silent and kept connections are hung up, and a half head is waited for."""
    with running_cheroot() as server:
        subject = find_cheroot()
        assert subject is not None
        assert subject.serving()
        address = server.bind_addr
        with Connection(address) as kept, Connection(address) as silent, Connection(address) as half:
            assert kept.get("/whole").body == b"body"
            until(lambda: subject.load().busy == 2)  # cheroot's own threads wait with the silent ones
            half.send(FAST[:10])
            until(lambda: [info.stage for info in subject.unfinished()] == ["receiving"])
            queued = Connection(address)
            until(lambda: [info.stage for info in subject.unfinished()] == ["queued", "receiving"])
            queued.sock.close()
            subject.announce()
            subject.stop_accepting(BOUND)
            assert not subject.wait_idle(0.1, 0.0)
            assert silent.rest() == kept.rest() == b""
            half.send(FAST[10:])
            assert half.answer().says_close
            assert subject.wait_idle(BOUND, 0.0)
        subject.stop()
        until(lambda: not server.ready)
    assert find_cheroot() is None


def test_a_listener_of_others_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd has passed the listener on, only our copy of it is closed."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    with running_cheroot() as server:
        subject = find_cheroot()
        assert subject is not None
        copy = server.socket.dup()
        subject.announce()
        subject.stop_accepting(BOUND)
        with copy, socket.create_connection(copy.getsockname()):
            until(lambda: _sockets.has_input(copy))
        assert subject.wait_idle(BOUND, 0.0)


def test_werkzeug_leaves_what_another_process_has_as_well() -> None:
    """A listener that came by ``fd=`` and that another process serves as well goes on taking connections there."""
    code = """
import os, socket, threading
from werkzeug.serving import make_server
from flask_lifecycle.servers.found import werkzeug
shared = socket.create_server(("127.0.0.1", 0))
asked, ask = os.pipe()
if os.fork() == 0:
    os.close(ask)
    os.read(asked, 1)
    shared.settimeout(10)
    shared.accept()[0].sendall(b"served")
    os._exit(0)
server = make_server("127.0.0.1", 0, lambda environ, start: [], threaded=True, fd=shared.fileno())
address = shared.getsockname()
shared.close()
threading.Thread(target=server.serve_forever, daemon=True).start()
found = werkzeug.find()
while not found._looping():
    pass
found.stop_accepting(10)
os.write(ask, b"x")
print(socket.create_connection(address, 10).recv(6).decode(), flush=True)
os._exit(0)
"""
    result = run_python(code)
    assert result.stdout == "served\n", result.stderr


def test_a_listener_that_a_fork_has_as_well() -> None:
    """Another process that has the listener is seen."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert not found.has_other_owners(sock)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
        try:
            assert found.has_other_owners(sock)
        finally:
            os.write(write, b"x")
            os.waitpid(child, 0)
            os.close(read)
            os.close(write)


def test_gevent_is_found_and_drained() -> None:
    """One that has connections already is tracked: what runs is waited for, and idle ones are hung up."""
    outcome: dict[str, Any] = {}
    ready, go = threading.Event(), threading.Event()

    def gated(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/gate":
            ready.set()
            while not go.is_set():
                gevent.sleep(0.01)
        return app(environ, start_response)

    def serve() -> None:
        server = WSGIServer(("127.0.0.1", 0), gated, log=None, spawn=10)
        server.start()
        outcome["server"] = server
        while "end" not in outcome:
            gevent.sleep(0.01)
        server.stop(0)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    until(lambda: "server" in outcome)
    address = ("127.0.0.1", outcome["server"].server_port)
    try:
        with Connection(address) as idle, Connection(address) as runs:
            assert idle.get("/whole").body == b"body"
            runs.ask("/gate")
            assert ready.wait(BOUND)
            subject = find_gevent()
            assert subject is not None
            assert find_gevent()._conductor is subject._conductor  # type: ignore[union-attr]
            assert subject.load().busy == 1
            subject.announce()
            subject.stop_accepting(BOUND)
            assert not subject.wait_idle(0.1, 0.0)
            assert idle.rest() == b""
            assert subject.unfinished() == []
            go.set()
            assert runs.answer().says_close
            assert subject.wait_idle(BOUND, 0.0)
        assert find_gevent() is None
    finally:
        outcome["end"] = True
        thread.join(BOUND)
