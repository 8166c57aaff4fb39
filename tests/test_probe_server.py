"""The second listener: its socket, its threads, its bounds."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flask_lifecycle import Lifecycle, _probe_server
from flask_lifecycle._probe_server import ProbeServer
from flask_lifecycle.checks._engine import MOST_WAITING
from tests._fakes import BOUND, make_app, running, state_of, until, whole

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def alive(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "6")])
    return [b"alive\n"]


@pytest.fixture
def started() -> Iterator[Any]:
    """Start listeners; they are closed when the test is over."""
    servers: list[ProbeServer] = []

    def start(app: WSGIApplication = alive, host: str = "127.0.0.1") -> ProbeServer:
        servers.append(ProbeServer(app, host, 0))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_the_listener_of_another_process(started: Any) -> None:
    """One that has the address is used, port 0 being any; else another is bound, and that one is left alone."""
    before = started()
    for port, same in [(0, True), (before.port, True), (0, False)]:
        host = "127.0.0.1" if same else "127.0.0.2"
        handed = before.listener.dup()
        server = ProbeServer(alive, host, port, handed=handed)
        assert (server.port == before.port) == same
        server.close()
        assert (handed.fileno() == -1) == same
        handed.close()


def get(server: ProbeServer, path: str = "/livez") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=BOUND)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def open_connections(server: ProbeServer) -> int:
    return len(server._server._reading) + len(server._server._answering)


def connect(server: ProbeServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=BOUND)


def test_port_0_takes_a_free_one_and_logs_it(started: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Port 0 takes a free port, which the log tells, and the listener answers there."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    server = started()
    assert get(server) == (200, b"alive\n")
    assert server.url == f"http://127.0.0.1:{server.port}"
    [record] = caplog.records
    assert record.getMessage() == f"probe listener on {server.url}"
    assert record.__dict__["lifecycle_port"] == server.port


def test_ipv6(started: Any) -> None:
    """An IPv6 address works and is written with its brackets."""
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    try:
        server = started(host="::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    assert server.url == f"http://[::1]:{server.port}"
    assert get(server) == (200, b"alive\n")


def test_a_forked_child_keeps_it_not_open(started: Any) -> None:
    """A child that may outlive us keeps neither the listener nor a connection of a prober open."""
    server = started()
    with connect(server):
        until(lambda: len(server.sockets()) == 2)
        kept = server.sockets()
        child = os.fork()
        if not child:
            os._exit(sum(sock.fileno() >= 0 for sock in kept))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert all(sock.fileno() >= 0 for sock in kept)


def test_it_listens_from_the_moment_it_is_made() -> None:
    """The address is taken when the listener is made, before it answers."""
    server = ProbeServer(alive, "127.0.0.1", 0)
    with connect(server):
        pass
    server.close()


def test_a_taken_port_is_a_clear_error() -> None:
    """A port that is taken is refused with one sentence that names the key and the cure."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = (
            f"The probe listener cannot listen on 127.0.0.1:{port} (Address already in use);"
            " set 'LIFECYCLE_PROBE_PORT' to a free port, or to 0 for any."
        )
        with pytest.raises(OSError, match="cannot listen on") as caught:
            ProbeServer(alive, "127.0.0.1", port)
    assert caught.value.strerror == message
    assert caught.value.__suppress_context__


def test_workers_of_one_server_share_a_port() -> None:
    """Those that are told so listen on one port, and who connects gets to one of them."""
    one = ProbeServer(alive, "127.0.0.1", 0, shared=True)
    two = ProbeServer(alive, "127.0.0.1", one.port, shared=True)
    one.start()
    two.start()
    assert [get(one) for _ in range(10)] == [(200, b"alive\n")] * 10
    one.close()
    assert get(two) == (200, b"alive\n")
    two.close()


def test_a_host_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not resolve is refused with one sentence that names its key; the resolver has no traceback."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(OSError, match="cannot listen on") as caught:
            ProbeServer(alive, "nowhere", 9000)
    assert caught.value.strerror == (
        "The probe listener cannot listen on nowhere:9000 (Name or service not known);"
        " set 'LIFECYCLE_PROBE_HOST' to an address of this machine, or to '0.0.0.0' for all."
    )
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_a_host_that_could_be_none(host: str) -> None:
    """A name that no host can have is refused as one that does not resolve."""
    with pytest.raises(OSError, match=r"\(Name or service not known\); set 'LIFECYCLE_PROBE_HOST' to an address"):
        ProbeServer(alive, host, 0)


def test_closing_gives_everything_back(started: Any) -> None:
    """After close nobody listens there any more and the thread has ended."""
    server = started()
    assert get(server)[0] == 200
    thread = server._thread
    server.close()
    assert not thread.is_alive()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        connect(server)
    # The fixture closes what is open.
    server.close = lambda: None


def test_closing_what_was_never_started() -> None:
    """A listener that never answered is closed as well."""
    server = ProbeServer(alive, "127.0.0.1", 0)
    server.close()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        connect(server)


def test_connections_have_threads_of_their_own(started: Any) -> None:
    """One connection that says nothing keeps no other from being answered."""
    server = started()
    with connect(server):
        assert get(server) == (200, b"alive\n")


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\nHost:"])
def test_a_slow_request_is_hung_up(started: Any, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Whoever has not sent a request in time is hung up, and the connection forgotten."""
    assert (_probe_server._REQUEST_TIMEOUT, _probe_server._Handler.timeout) == (5.0, 5.0)
    monkeypatch.setattr(_probe_server, "_REQUEST_TIMEOUT", 0.05)
    server = started()
    with connect(server) as silent:
        silent.sendall(said)
        assert silent.recv(1) == b""
    until(lambda: open_connections(server) == 0)


@pytest.mark.parametrize("said", [b"GET /livez HTTP/1.1\r\n", b"GET /livez HTTP/1.1\r\nHost: here\r\nX-M"])
def test_a_request_that_is_cut_off_is_none(started: Any, said: bytes) -> None:
    """Where a connection ends before the headers do, nothing is done and nobody answered."""
    asked = []

    def note(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked.append(environ["PATH_INFO"])
        return alive(environ, start_response)

    server = started(note)
    with connect(server) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    with connect(server) as client:
        client.sendall(b"GET /whole HTTP/1.1\r\nHost: here\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(12) == b"HTTP/1.1 200"
    assert asked == ["/whole"]


def test_the_oldest_silent_connection_makes_room(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the connection that has kept silent longest is hung up: what comes is more likely a prober."""
    assert _probe_server._CONNECTIONS == 64
    monkeypatch.setattr(_probe_server, "_CONNECTIONS", 2)
    server = started()
    before = threading.active_count()
    with connect(server) as first:
        until(lambda: open_connections(server) == 1)
        with connect(server) as second:
            until(lambda: open_connections(server) == 2)
            assert get(server) == (200, b"alive\n")
            assert first.recv(1) == b""
            assert threading.active_count() <= before + 3
            second.setblocking(False)
            with pytest.raises(BlockingIOError, match="unavailable"):
                second.recv(1)


def test_no_more_answers_at_once_than_so_many(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many probes as the bound wait for slow checks, a further connection is hung up at once."""
    assert _probe_server._ANSWERS > MOST_WAITING
    monkeypatch.setattr(_probe_server, "_ANSWERS", 1)
    entered, free = threading.Event(), threading.Event()

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.set()
        assert free.wait(BOUND)
        return alive(environ, start_response)

    server = started(slow)
    answers: list[tuple[int, bytes]] = []
    with running(lambda: answers.append(get(server))):
        assert entered.wait(BOUND)
        with connect(server) as refused:
            assert refused.recv(1) == b""
        free.set()
    assert answers == [(200, b"alive\n")]


def test_no_thread_to_be_had(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started a connection is hung up, and the next is answered."""
    server = started()

    def refuse(request: Any, address: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(server._server, "process_request", refuse)
        with connect(server) as refused:
            assert refused.recv(1) == b""
    until(lambda: open_connections(server) == 0)
    assert get(server) == (200, b"alive\n")


def test_no_descriptor_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process has no descriptors left its listener waits for one, and does not try again and again."""
    server = ProbeServer(alive, "127.0.0.1", 0)
    monkeypatch.setattr(_probe_server, "_BREATH", 60_000)
    tried = []

    def refuse() -> None:
        tried.append(threading.current_thread())
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(server._server, "get_request", refuse)
    server.start()
    with connect(server):
        until(lambda: bool(tried))
        server.close()
    assert not server._thread.is_alive()
    assert len(tried) == 1


def test_a_client_that_left_before_it_was_accepted(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accept that fails does not end the listener."""
    server = started()
    failed = threading.Event()
    real = server._server.get_request

    def get_request() -> Any:
        if not failed.is_set():
            failed.set()
            raise ConnectionAbortedError
        return real()

    monkeypatch.setattr(server._server, "get_request", get_request)
    assert get(server) == (200, b"alive\n")
    assert failed.is_set()


# The second is a line that is well formed, of an address that is not: Werkzeug raises where it takes it apart.
@pytest.mark.parametrize("said", [b"rubbish\r\n\r\n", b"GET http://[livez HTTP/1.1\r\n\r\n"])
def test_a_probe_is_never_logged(
    started: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], said: bytes
) -> None:
    """Neither an answer nor a broken request is printed or logged above debug."""
    caplog.set_level(logging.DEBUG)

    server = started()
    get(server)
    with connect(server) as rubbish:
        rubbish.sendall(said)
        rubbish.recv(1000)
    until(lambda: open_connections(server) == 0)
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG] == [f"probe listener on {server.url}"]
    assert capfd.readouterr() == ("", "")


def test_a_client_that_resets(started: Any) -> None:
    """A client that resets its connection harms nobody."""
    server = started()
    rude = connect(server)
    rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    rude.sendall(b"GET /livez HTTP/1.1\r\n")
    rude.close()
    until(lambda: open_connections(server) == 0)
    assert get(server) == (200, b"alive\n")


# -- the listener of an application -------------------------------------------------------------------------------


def test_it_serves_the_probes_and_nothing_else() -> None:
    """On the probe port the probes are answered as on the main one, and work gets 404."""
    app = make_app(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=0)
    Lifecycle(app)
    state = state_of(app)
    with app.test_client() as client:
        client.get("/work", buffered=True)
    server = state._probe_server
    assert server is not None
    try:
        assert get(server, "/livez") == (200, b'{"status": "pass"}\n')
        assert get(server, "/readyz/?x=1") == (200, b'{"status": "pass"}\n')
        assert get(server, "/work") == (404, b"not found: only probes are answered here\n")
    finally:
        state.end()
    state.end()


def test_it_answers_until_the_hooks_have_run() -> None:
    """The probe listener answers while the hooks run and is closed after them."""
    app = make_app(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=0)
    lifecycle = Lifecycle(app)
    state = state_of(app)
    answers: list[tuple[int, bytes]] = []
    with app.test_client() as client:
        client.get("/work", buffered=True)
    server = state._probe_server
    assert server is not None

    @lifecycle.on_shutdown
    def asks() -> None:
        answers.extend((get(server, "/livez"), get(server, "/readyz")))

    lifecycle.shutdown()
    assert answers == [(200, b'{"status": "pass"}\n'), (503, b'{"status": "fail"}\n')]
    thread = state.process.coordinator.thread
    assert thread is not None
    thread.join(BOUND)
    with pytest.raises(ConnectionRefusedError, match="refused"):
        connect(server)


def test_a_taken_port_stops_the_start() -> None:
    """A probe port that is taken begins the shutdown and is told to whoever began the start-up."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        app = make_app(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=port)
        lifecycle = Lifecycle(app)
        message = (
            f"[Errno 98] The probe listener cannot listen on 127.0.0.1:{port} (Address already in use);"
            " set 'LIFECYCLE_PROBE_PORT' to a free port, or to 0 for any."
        )
        with pytest.raises(OSError, match=whole(message)):
            app.test_client().get("/work", buffered=True)
        assert lifecycle.shutdown().reason == "the probe listener could not start"
