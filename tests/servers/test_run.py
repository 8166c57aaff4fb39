"""The servers that ``run`` starts, served in this process: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import importlib
import selectors
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from waitress.task import ThreadedTaskDispatcher
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_lifecycle import Lifecycle, _servers
from flask_lifecycle._core.inflight import Load
from flask_lifecycle._servers import sockets
from tests._fakes import BOUND, Served, in_child, make_app, raiser, running, served, until
from tests.live._client import Connection, get, request_head

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

RUNNERS = ("waitress", "werkzeug", "cheroot", "gevent")
each_runner = pytest.mark.parametrize("server", RUNNERS)
# More than a small client takes at once, and less than our kernel takes from us.
LARGE = b"x" * 60_000
RAISED: dict[str, type[BaseException]] = {
    "/raises": ConnectionError,  # most take it for the client's
    "/late": TimeoutError,
    "/exits": SystemExit,
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the path says."""
    path = environ["PATH_INFO"]
    if path in RAISED:
        raise RAISED[path]
    if path == "/body-exits":
        start_response("200 OK", [])
        return exits()
    body = LARGE if path == "/large" else b"body"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def exits() -> Iterator[bytes]:
    """Give one chunk, then leave."""
    yield b"one"
    raise SystemExit(3)


def made(server: str, **options: Any) -> Any:
    return _servers.create(server, app, options.pop("host", None), options.pop("port", None), options)


@pytest.fixture
def werkzeug() -> Iterator[Served]:
    """The application above."""
    with served("werkzeug", app) as subject:
        yield subject


@each_runner
def test_a_server_is_bound_when_it_is_made(server: str) -> None:
    """A server listens from the moment it is made, says where, and lets go of it without having served."""
    runner = made(server, port=0)
    (address,) = runner.addresses()
    port = int(address.removeprefix("http://127.0.0.1:"))
    (listener,) = runner.listeners()
    listener.setblocking(True)
    with socket.create_connection(("127.0.0.1", port)) as client:
        listener.accept()[0].close()
        assert client.recv(1) == b""
    runner.close()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
    made(server, port=port).close()  # although the connection that was closed here lingers in the kernel


@pytest.mark.parametrize("listen", ["", "127.0.0.1:0 127.0.0.1:0"])
@each_runner
def test_several_listeners(server: str, listen: str, tmp_path: Path) -> None:
    """A Unix socket stands alone or beside TCP listeners, also where a killed process left one; its path is removed."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    runner = made(server, unix_socket=str(path), **({"listen": listen} if listen else {}))
    *tcp, unix = runner.addresses()
    assert len(set(tcp)) == len(listen.split())
    assert unix == f"unix:{path}"
    assert path.is_socket()
    runner.close()
    assert not path.exists()


@each_runner
def test_an_error_lets_the_others_go(server: str) -> None:
    """When one of several addresses is taken, none of them stays bound."""
    with socket.create_server(("127.0.0.1", 0)) as free, socket.create_server(("127.0.0.1", 0)) as listener:
        port, taken = free.getsockname()[1], listener.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match="it is in use by another program"):
            made(server, listen=f"127.0.0.1:{port} 127.0.0.1:{taken}")
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize(("server", "which"), [("waitress", "main"), ("werkzeug", "main"), ("waitress", "probe")])
def test_a_run_that_fails_gives_everything_back(server: str, which: str) -> None:
    """If a port is taken, ``run`` raises, and leaves no thread and the handlers of before, as ``given_back`` checks."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        probes = {"LIFECYCLE_PROBE_PORT": port, "LIFECYCLE_PROBE_HOST": "127.0.0.1"} if which == "probe" else {}
        lifecycle = Lifecycle(application := make_app(**probes))
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            lifecycle.run(application, server=server, port=port if which == "main" else 0)


def test_held_back_listeners_are_let_go_of(tmp_path: Path) -> None:
    """Who holds waitress back and closes it keeps the duplicates of its listeners, and the path of a Unix socket."""
    path = tmp_path / "s"
    runner = made("waitress", listen="127.0.0.1:0", unix_socket=str(path))
    copies = [sock.dup() for sock in runner.listeners()]
    runner.hold_back()
    runner.close()
    for copy in copies:
        with copy, socket.socket(copy.family) as client:
            client.connect(copy.getsockname())
            copy.accept()[0].close()
    assert path.exists()


def test_a_hand_over_that_comes_too_late() -> None:
    """What is closed already cannot be handed over, and that changes nothing."""
    with served("waitress", app) as subject:
        subject.begin_drain()
        subject.runner.hand_over()


@each_runner
def test_a_given_listener_is_left_to_its_giver(server: str) -> None:
    """A stop leaves a listener that was given, and its queue, to the process that opened it."""
    with socket.create_server(("127.0.0.1", 0)) as giver:
        subject = Served(made(server, sockets=[giver]))
        with running(subject.runner.serve):
            assert get(subject.address, "/whole").body == b"body"
            subject.begin_drain()
            with socket.create_connection(subject.address):
                until(lambda: sockets.has_input(giver))
            assert subject.runner.wait_idle(BOUND, 0.0)
            subject.runner.stop()


@each_runner
def test_a_forked_child_keeps_nothing_open(server: str) -> None:
    """A child that may outlive us keeps neither the listener nor a connection open; the parent goes on serving."""
    with served(server, app) as subject, Connection(subject.address) as client:
        until(lambda: len(list(subject.runner.sockets())) == 2)
        kept = list(subject.runner.sockets())
        assert in_child(lambda: sum(sock.fileno() >= 0 for sock in kept)) == 0
        assert client.get("/whole").body == b"body"


def test_a_child_of_a_process_that_stops() -> None:
    """A child that is forked when some sockets are closed already closes the others all the same."""
    closed, left = socket.socketpair()
    closed.close()
    owner = Mock(sockets=[closed, left].copy)
    with left:
        sockets.close_in_children(owner)
        assert in_child(lambda: left.fileno()) == 255  # -1
        assert left.fileno() >= 0


def test_a_listener_that_another_process_has_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's copy of a listener is seen, and takes connections after Werkzeug's stop; one of systemd is assumed."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert not sockets.has_other_owners(sock)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()]):  # it ends with its input
            assert sockets.has_other_owners(sock)
            server = make_server("127.0.0.1", 0, app, threaded=True, fd=sock.fileno())
            with running(server.serve_forever):
                found: Any = importlib.import_module("flask_lifecycle._servers.werkzeug").find()
                until(lambda: bool(found.accepting()))
                found.stop_accepting(BOUND)
                with socket.create_connection(sock.getsockname()):
                    until(lambda: sockets.has_input(sock))
                server.shutdown()
            server.server_close()
        monkeypatch.setenv("LISTEN_FDS", "1")
        assert sockets.has_other_owners(sock)


@pytest.mark.parametrize("path", RAISED)
@each_runner
def test_what_the_application_raises_is_answered(server: str, path: str) -> None:
    """What a server would take for the client's going, or for its own end, is answered with 500, and it serves on."""
    with served(server, app) as subject:
        assert get(subject.address, path).status == 500
        assert get(subject.address, "/whole").body == b"body"


@pytest.mark.parametrize("server", ["cheroot", "gevent"])
def test_a_body_that_exits(server: str) -> None:
    """A body that raises SystemExit ends its answer, and nothing else."""
    with served(server, app) as subject:
        with Connection(subject.address) as connection:
            connection.send(request_head("/body-exits") + request_head("/whole"))
            connection.head()
            assert connection.rest() == b"3\r\none\r\n"
        assert get(subject.address, "/whole").body == b"body"


@each_runner
def test_a_ping_comes_through_all_listeners(server: str) -> None:
    """A ping goes the way of a request through the loop or pool of each listener; a stop ends all of them."""
    threads = {"threads": 1} if server in ("waitress", "cheroot") else {}
    with served(server, app, listen="127.0.0.1:0 127.0.0.1:0", **threads) as subject:
        come = threading.Event()
        assert subject.runner.ping(come.set) is True
        assert come.wait(BOUND)
        if server == "cheroot":  # and is no load there
            until(lambda: subject.runner.load() == Load(0, 2, 0))


def test_a_ping_does_not_wait_for_a_lock_of_cheroot() -> None:
    """Where the lock of the queue is held, the ping is not sent."""
    with served("cheroot", app) as subject, subject.runner._servers[0].requests._queue.mutex:
        assert subject.runner.ping(lambda: None) is False


NEEDS = [
    (name, number)
    for name in RUNNERS
    for number in range(len(importlib.import_module(f"flask_lifecycle._servers.{name}").NEEDS))
]


@pytest.mark.parametrize(("name", "lacks"), NEEDS, ids=[f"{name}-{number}" for name, number in NEEDS])
def test_a_server_that_lacks_what_its_adapter_uses(name: str, lacks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version without something that the adapter uses has the lowest guarantee, and the log says what is missing."""
    module = importlib.import_module(f"flask_lifecycle._servers.{name}")
    names = module.NEEDS[lacks][1]
    needs = [(object() if number == lacks else thing, each) for number, (thing, each) in enumerate(module.NEEDS)]
    server = types.SimpleNamespace(
        **dict.fromkeys(("accepting", "ready", "started", "_connections"), True),
        closed=False,
        socket=types.SimpleNamespace(fileno=lambda: 3),
        task_dispatcher=ThreadedTaskDispatcher(),
        trigger=types.SimpleNamespace(lock=None, thunks=[], _closed=False),
    )
    monkeypatch.setattr(module, "instances", lambda kind: [server])
    monkeypatch.setattr(module, "NEEDS", needs)
    adapter = module.find()
    assert (adapter.name, adapter.guarantee, adapter.ours) == (name, "started requests", False)
    assert all(repr(each) in adapter.advice for each in names)


def test_what_wakes_cheroot_is_no_harm_to_a_loop_that_is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bad interleaving: the loop looks for connections to expire before it selects what a stop has registered."""
    raised: list[Exception | None] = []
    with served("cheroot", app) as subject:
        (server,) = subject.runner._servers
        selector = server._connections._selector

        def register(descriptor: int, events: int, data: Any) -> None:
            with monkeypatch.context() as patch:
                held = types.SimpleNamespace(connections=[(descriptor, data)])
                patch.setattr(server._connections, "_selector", held)
                try:
                    raised.append(server._connections._expire(0.0))
                except TypeError as error:
                    raised.append(error)
            monkeypatch.undo()
            selector.register(descriptor, events, data=data)

        monkeypatch.setattr(selector, "register", register)
    assert raised == [None]


def test_cheroot_sends_at_once() -> None:
    """Connections of cheroot under run wait for no acknowledgement before they send, as under its own bind."""
    with served("cheroot", app) as subject:
        assert subject.runner.listeners()[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_stop_does_not_wait_for_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is woken by the end of its listener, and then by the stop, however long it polls."""
    # The bad interleaving is the usual one: the loop polls its listener when that is closed.
    turn, select = BaseServer.serve_forever, selectors.PollSelector.select.__code__
    monkeypatch.setattr(BaseServer, "serve_forever", lambda server, poll_interval: turn(server, 10 * BOUND))
    with served("werkzeug", app) as subject:
        assert get(subject.address, "/").body == b"body"
        until(lambda: any(frame.f_code is select for frame in list(sys._current_frames().values())))


def test_no_answer_where_the_application_wants_none(werkzeug: Served) -> None:
    """By a ConnectionError an application that has taken its connection over, for a websocket, asks for silence."""
    with Connection(werkzeug.address) as client:
        client.ask("/raises", Upgrade="websocket", Connection="Upgrade")
        assert client.rest() == b""


def test_a_websocket_that_has_not_ended_is_hung_up() -> None:
    """A websocket that has not ended by the end of the shutdown finds its connection hung up then."""
    taken = threading.Event()

    def taking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        taken.set()
        while environ["werkzeug.socket"].recv(100):
            pass
        raise ConnectionError

    with served("werkzeug", taking) as subject, Connection(subject.address) as client:
        client.ask("/", Upgrade="websocket", Connection="Upgrade")
        assert taken.wait(BOUND)
        subject.begin_drain()
        assert not subject.runner.wait_idle(0.0, 0.0)
        assert subject.runner.load().busy == 1
        subject.runner.stop()
        assert client.rest() == b""


def test_a_client_that_resets_in_the_accept_queue(werkzeug: Served, capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that is reset before it is accepted is let go without a word, and the next is answered."""
    # loop: is held up | client: connects, resets | loop: accepts, starts the thread | thread: its first read fails
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(BOUND)

    werkzeug.runner.ping(hold)
    assert busy.wait(BOUND)
    Connection(werkzeug.address).reset()
    free.set()
    assert get(werkzeug.address, "/whole").body == b"body"
    assert "Traceback" not in capfd.readouterr().err


def test_no_thread_to_be_had(
    werkzeug: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no thread can be started a connection is closed, and the next is answered."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", raiser(RuntimeError("can't start new thread")))
        with Connection(werkzeug.address) as client:
            assert client.rest() == b""
    assert get(werkzeug.address, "/whole").body == b"body"
    assert "RuntimeError: can't start new thread" in capfd.readouterr().err


def test_an_answered_request_is_sending(werkzeug: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is answered no longer runs: while the server reads what else comes, and when its handler ended."""
    # server: writes the answer, reads the rest | look | handler: finishes | look | client: has not read the answer yet
    looked, finished = threading.Event(), threading.Event()
    finish = WSGIRequestHandler.finish

    def read_nothing(selector: selectors.DefaultSelector, timeout: float | None = None) -> list[object]:
        assert looked.wait(BOUND)
        return []

    def finish_and_note(handler: WSGIRequestHandler) -> None:
        finish(handler)
        finished.set()

    monkeypatch.setattr(selectors.DefaultSelector, "select", read_nothing)
    monkeypatch.setattr(WSGIRequestHandler, "finish", finish_and_note)
    with Connection(werkzeug.address, slow=True) as client:
        werkzeug.runner.announce()
        client.ask("/large")
        until(lambda: [info.stage for info in werkzeug.runner.unfinished()] == ["sending"])
        looked.set()
        assert finished.wait(BOUND)
        assert [info.stage for info in werkzeug.runner.unfinished()] == ["sending"]
        assert client.answer().body == LARGE


@pytest.mark.parametrize("begun", [False, True])
def test_a_stop_before_the_loop(begun: bool) -> None:
    """A server that has been stopped does not begin to serve; one that still accepts can be stopped as well."""
    runner = made("werkzeug", port=0)
    with running(runner.serve) if begun else contextlib.nullcontext():
        if begun:
            until(lambda: runner.ping(lambda: None))
        runner.stop()
    if not begun:
        began = time.monotonic()
        runner.serve()
        assert time.monotonic() - began < BOUND


@pytest.mark.parametrize("kept", [False, True])
@each_runner
def test_a_request_that_arrives_before_the_hang_up(server: str, kept: bool) -> None:
    """The bad interleaving: the drain sees an idle connection, its request is read, and the drain comes to hang up."""
    begun, released = threading.Event(), threading.Event()

    def hold(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hold":
            begun.set()
            released.wait(BOUND)
        return app(environ, start_response)

    with served(server, hold) as subject, Connection(subject.address) as client:
        if kept and server != "werkzeug":  # which keeps none
            client.get("/")
        subject.runner.announce()
        until(lambda: [list(requests) for _, requests in subject.runner.requests()] == [[]])
        ((connection, _requests),) = subject.runner.requests()
        client.send(request_head("/hold"))
        assert begun.wait(BOUND)
        subject.runner.hang_up(connection)
        released.set()
        assert client.response().body == b"body"


def test_a_hub_that_the_application_holds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is held up for longer than the listener waits for it, what the kernel has accepted is answered."""
    monkeypatch.setattr(importlib.import_module("flask_lifecycle._servers.gevent"), "HUB_PATIENCE", 0.01)
    begun, released = threading.Event(), threading.Event()

    def hold(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun.set()
        released.wait(BOUND)
        return app(environ, start_response)

    with served("gevent", hold) as subject, Connection(subject.address) as one, Connection(subject.address) as two:
        one.send(request_head("/"))
        assert begun.wait(BOUND)
        two.send(request_head("/"))
        subject.begin_drain()
        assert not subject.runner.wait_idle(0.0, 0.0)
        released.set()
        assert one.response().body == two.response().body == b"body"


@pytest.mark.parametrize(("line", "goes_on"), [(b"", False), (b"POST / HTTP/1.1", True)])
def test_what_a_process_of_werkzeug_releases(line: bytes, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection, and not a request that has begun where the kernel does not count its bytes."""
    module = importlib.import_module("flask_lifecycle._servers.werkzeug")
    ours, theirs = socket.socketpair()
    handlers = {ours: types.SimpleNamespace(raw_requestline=line)}
    monkeypatch.setattr(module, "_trackers", [types.SimpleNamespace(handlers=handlers)])
    with ours, theirs:
        module._release_own(0, None)
        theirs.send(b"x") if goes_on else None
        assert ours.recv(1) == (b"x" if goes_on else b"")
