"""The second listener: its socket, its threads, its bounds."""

from __future__ import annotations

import errno
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug import Request, Response

from flask_lifecycle import State
from flask_lifecycle._probes import http_server
from tests._fakes import BOUND, in_child, running, serve, until
from tests.probes.test_listener import ask


def alive(_request: Request) -> Response:
    return Response("alive\n")


@pytest.fixture
def started() -> Iterator[Any]:
    """Start listeners; they are closed when the test is over."""
    servers: list[http_server.ProbeServer] = []

    def start(
        answer: Callable[[Request], Response] = alive, host: str = "127.0.0.1", **options: Any
    ) -> http_server.ProbeServer:
        servers.append(http_server.ProbeServer(answer, host, options.pop("port", 0), **options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Blocked:
    """An application whose answers, of readiness or of all, wait until the test frees them."""

    def __init__(self, *paths: str) -> None:
        self.paths = paths
        self.entered, self.free = threading.Event(), threading.Event()

    def __call__(self, request: Request) -> Response:
        if not self.paths or request.path in self.paths:
            self.entered.set()
            assert self.free.wait(BOUND)
        return alive(request)


def test_the_listener_of_another_process(started: Any) -> None:
    """One that has the address is used, port 0 being any; else another is bound, and that one is left alone."""
    # Workers of one server listen on the same port, and a client reaches any of them.
    one = started(shared=True)
    started(port=one.port, shared=True)
    assert [get(one) for _ in range(10)] == [(200, b"alive\n")] * 10
    before = started()
    for port, same in [(0, True), (before.port, True), (0, False)]:
        host = "127.0.0.1" if same else "127.0.0.2"
        handed = before.socket.dup()
        server = http_server.ProbeServer(alive, host, port, handed=handed)
        assert (server.port == before.port) == same
        server.close()
        assert (handed.fileno() == -1) == same
        handed.close()


def get(server: http_server.ProbeServer, path: str = "/livez") -> tuple[int, bytes]:
    return ask(server.port, path, host=server.host)


def open_connections(server: http_server.ProbeServer) -> int:
    return len(server.sockets()) - 1


def connect(server: http_server.ProbeServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=BOUND)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_port_0_takes_a_free_one_and_logs_it(
    started: Any, caplog: pytest.LogCaptureFixture, host: str, shown: str
) -> None:
    """Port 0 takes a free port, which the log tells; an address of IPv6 is written with its brackets."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    try:
        server = started(host=host)
    except OSError:
        assert host == "::1"
        pytest.skip("there is no IPv6 here")
    assert get(server) == (200, b"alive\n")
    assert server.url == f"http://{shown}:{server.port}"
    [record] = caplog.records
    assert record.getMessage() == f"probe listener on {server.url}"
    assert record.__dict__["lifecycle_port"] == server.port


def test_a_forked_child_keeps_it_not_open(started: Any) -> None:
    """A child that may outlive us keeps neither the listener nor a connection of a prober open."""
    server = started()
    with connect(server):
        until(lambda: len(server.sockets()) == 2)
        kept = server.sockets()
        assert in_child(lambda: sum(sock.fileno() >= 0 for sock in kept)) == 0
        assert all(sock.fileno() >= 0 for sock in kept)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "nowhere"])
def test_addresses_that_cannot_be_listened_on(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """A host that does not resolve is one sentence that names the key and the cure, without a traceback of it."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if host == "nowhere":
        monkeypatch.setattr(socket, "getaddrinfo", fail)
    message = f"The probe listener cannot listen on {host}:0 (Name or service not known); set 'LIFECYCLE_PROBE_HOST' to"
    message += " an address of this machine, or to '0.0.0.0' for all."
    with pytest.raises(OSError, match=re.escape(message)) as caught:
        http_server.ProbeServer(alive, host, 0)
    assert (caught.value.strerror, caught.value.__suppress_context__) == (message, True)


@pytest.mark.parametrize("answers", [True, False])
def test_after_close_nobody_listens(answers: bool) -> None:
    """After close nobody listens there any more, also where the listener never answered."""
    server = http_server.ProbeServer(alive, "127.0.0.1", 0)
    if answers:
        server.start()
        assert get(server)[0] == 200
    server.close()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        connect(server)


def test_the_oldest_silent_connection_makes_room(started: Any) -> None:
    """Beyond the bound the connection that has kept silent longest is hung up: what comes is more likely a prober."""
    server = started(limits=http_server.Limits(connections=2))
    before = threading.active_count()
    with connect(server) as first:
        until(lambda: open_connections(server) == 1)
        (pushed_out,) = server.sockets()[1:]
        with connect(server) as second:
            until(lambda: open_connections(server) == 2)
            assert get(server) == (200, b"alive\n")
            assert first.recv(1) == b""
            # Where its thread comes to its next stage only now, it is not answered.
            assert not server.enter(server.answering, pushed_out)
            assert threading.active_count() <= before + 3
            second.setblocking(False)
            with pytest.raises(BlockingIOError, match="unavailable"):
                second.recv(1)


def test_the_oldest_answer_makes_room(started: Any) -> None:
    """Where as many probes as the bound wait for slow checks, the one that has waited longest is hung up."""
    slow = Blocked("/readyz")
    server = started(slow, limits=http_server.Limits(answers=1))
    with connect(server) as first:
        first.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert slow.entered.wait(BOUND)
        assert get(server) == (200, b"alive\n")
        assert first.recv(1) == b""
        slow.free.set()
    until(lambda: open_connections(server) == 0)


def test_who_has_its_answer_makes_room_first(started: Any) -> None:
    """A connection that is answered and goes on sending makes room before one that still waits for its answer."""
    slow = Blocked("/readyz")
    server = started(slow, limits=http_server.Limits(answers=2, lingering=BOUND))
    with connect(server) as waiting, connect(server) as lingering:
        waiting.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert slow.entered.wait(BOUND)
        lingering.sendall(b"GET /livez HTTP/1.1\r\n\r\n" + b"x" * 10_000)
        assert lingering.recv(15) == b"HTTP/1.1 200 OK"
        until(lambda: len(server.lingering) == 1)
        assert get(server) == (200, b"alive\n")
        until(lambda: open_connections(server) == 1)
        slow.free.set()
        assert waiting.recv(15) == b"HTTP/1.1 200 OK"


def test_an_answer_has_a_time_limit(started: Any) -> None:
    """A connection whose answer takes longer than the application may take for one is hung up."""
    slow = Blocked()
    server = started(slow, timeout=0.05, limits=http_server.Limits(reading=0.05, sending=0.05))
    with connect(server) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert client.recv(1) == b""
    slow.free.set()
    until(lambda: open_connections(server) == 0)


@pytest.mark.parametrize(
    "said", [b"GET /livez HTTP/1.1\r\n", b"POST /livez HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", b""]
)
def test_a_connection_is_read_to_a_bound(started: Any, said: bytes) -> None:
    """Of a connection 64 KB are read at most, whether it is one request without an end, or what comes behind one."""

    def reads(request: Request) -> Response:
        assert len(request.environ["wsgi.input"].read()) < 65536
        assert request.environ["wsgi.input"].read(1) == b""
        return alive(request)

    server = started(reads, limits=http_server.Limits(reading=BOUND, lingering=BOUND))
    with connect(server) as client:
        client.sendall(said)
        with pytest.raises(ConnectionError, match=r"Broken pipe|Connection reset by peer"):
            client.sendall(b"x" * 32_000_000)  # the kernel takes some megabytes
    until(lambda: open_connections(server) == 0)


def test_a_client_that_resets_before_its_answer(started: Any) -> None:
    """An answer is closed also where the client has reset the connection meanwhile: a drain may begin then."""
    closed = threading.Event()

    def answers(_request: Request) -> Response:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        rude.close()
        response = Response("alive\n" * 100_000)
        response.call_on_close(closed.set)
        return response

    server = started(answers)
    rude = connect(server)
    rude.sendall(b"GET /livez HTTP/1.1\r\n\r\n" + b"x" * 10_000)
    assert closed.wait(BOUND)
    until(lambda: open_connections(server) == 0)


def test_an_application_that_raises(started: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What raises in place of an answer is logged, and answered with 500."""

    def raises(_request: Request) -> Response:
        raise ValueError("boom")

    server = started(raises)
    assert get(server)[0] == 500
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "a request to the probe listener failed"


# The third is a line that is well formed, of an address that is not: Werkzeug raises where it takes it apart.
@pytest.mark.parametrize("said", ["GET /livez HTTP/1.1", "rubbish", "GET http://[livez HTTP/1.1", "GET / HTTP/x.y"])
def test_no_answer_is_logged_or_names_what_answers(
    started: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], said: str
) -> None:
    """Neither an answer nor a broken request is printed or logged above debug, and none names the server's version."""
    caplog.set_level(logging.DEBUG)
    server = started()
    with connect(server) as client:
        client.sendall(f"{said}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert bool(answer) == ("[" not in said)
    for name in (b"server:", b"werkzeug", b"python"):
        assert name not in answer.lower()
    until(lambda: open_connections(server) == 0)
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG] == [f"probe listener on {server.url}"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("said", [b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nHost: here\r\nX-M"])
def test_a_request_that_is_cut_off_is_none(started: Any, said: bytes) -> None:
    """Where a connection ends before the headers do, nothing is done and nobody answered."""
    # A bare carriage return in a head is a blank, and not the end of a line that a header of its own comes behind. No
    # body in chunks is read.
    asked = []

    def note(request: Request) -> Response:
        asked.append((request.path, request.headers.get("X-A"), "HTTP_TRANSFER_ENCODING" in request.environ))
        return alive(request)

    server = started(note)
    with connect(server) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    with connect(server) as client:
        client.sendall(b"GET /whole HTTP/1.1\r\nX-A: 1\rX-B: 2\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(12) == b"HTTP/1.1 200"
    assert asked == [("/whole", "1 X-B: 2", False)]


@pytest.mark.parametrize(("length", "status"), [(8190, b"200"), (8191, b"414")])
def test_a_request_line_has_a_length(started: Any, length: int, status: bytes) -> None:
    """A request line of more than 8,190 bytes is refused."""
    with connect(started()) as client:
        client.sendall(b" HTTP/1.1\r\n".rjust(length, b"a").replace(b"aaaaa", b"GET /", 1) + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 " + status


def test_threads_that_do_not_end_are_not_added_to(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where code of the application holds as many threads as there may be, a connection waits until one has ended."""
    slow, waits = Blocked(), threading.Event()
    server = started(slow, limits=http_server.Limits(threads=1, pause=0.001))
    accept = server.accept_one

    def accept_one() -> bool:
        accepted: bool = accept()
        if not accepted:
            waits.set()
        return accepted

    monkeypatch.setattr(server, "accept_one", accept_one)
    answers: list[tuple[int, bytes]] = []
    with running(lambda: answers.append(get(server))):
        assert slow.entered.wait(BOUND)
        with running(lambda: answers.append(get(server))):
            assert waits.wait(BOUND)
            assert open_connections(server) == 1
            slow.free.set()
    assert answers == [(200, b"alive\n")] * 2


def test_a_client_that_left_before_it_was_accepted(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accept that fails does not end the listener, and where no thread can be started a connection is hung up."""
    server = started()
    real = server.get_request
    failures = [ConnectionAbortedError()]

    def get_request() -> Any:
        if failures:
            raise failures.pop()
        return real()

    def refuse(request: Any, address: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server, "get_request", get_request)
    assert get(server) == (200, b"alive\n")
    assert failures == []
    with monkeypatch.context() as patch:
        patch.setattr(server, "process_request", refuse)
        with connect(server) as refused:
            assert refused.recv(1) == b""
    until(lambda: open_connections(server) == 0)
    assert get(server) == (200, b"alive\n")


def test_no_descriptor_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process has no descriptors left its listener waits for one, and does not try again and again."""
    server = http_server.ProbeServer(alive, "127.0.0.1", 0, limits=http_server.Limits(pause=60.0))
    tried = []

    def refuse() -> None:
        tried.append(threading.current_thread())
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(server, "get_request", refuse)
    server.start()
    with connect(server):
        until(lambda: bool(tried))
        server.close()
    assert len(tried) == 1


@pytest.mark.parametrize("path", ["/work", "/livez"])
def test_a_taken_port_where_nothing_serves(caplog: pytest.LogCaptureFixture, path: str) -> None:
    """Where no server runs, as in a test suite, a probe port that is taken is one warning."""
    # The request or probe that began the start-up is answered.
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        app, lifecycle = serve(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=port)
        assert app.test_client().get(path, buffered=True).status_code == 200
    assert (lifecycle.state, lifecycle.probe_address) == (State.READY, None)
    assert caplog.messages == [
        f"The probe listener cannot listen on 127.0.0.1:{port} (Address already in use); set 'LIFECYCLE_PROBE_PORT' to"
        " a free port, or to 0 for any. No server runs in this process, so it continues without the probe listener."
    ]
