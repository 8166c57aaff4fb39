"""cheroot and gevent, ours and found, in this process: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import threading
import types
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from cheroot.wsgi import Server as CherootServer
from waitress.task import ThreadedTaskDispatcher

from flask_lifecycle._core.inflight import Load
from flask_lifecycle._servers import discovery, sockets
from tests._fakes import BOUND, Served, run_python, served, until
from tests.live._client import Connection, get, request_head

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

FAST = request_head("/whole")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the path says."""
    path = environ["PATH_INFO"]
    if path == "/gone":
        raise ConnectionError("the database has gone")
    if path == "/exits":
        raise SystemExit(3)
    start_response("200 OK", [("Content-Length", "4")] if path == "/whole" else [])
    return exits() if path == "/body-exits" else iter([b"bo", b"dy"])


def exits() -> Iterator[bytes]:
    """Give one chunk, then leave."""
    yield b"one"
    raise SystemExit(3)


@pytest.fixture(params=["cheroot", "gevent"])
def ours(request: pytest.FixtureRequest) -> Iterator[Served]:
    """The application above on a server that run starts."""
    with served(request.param, app) as subject:
        yield subject


@pytest.mark.parametrize("path", ["/gone", "/exits"])
def test_what_the_application_raises_is_answered(ours: Served, path: str) -> None:
    """What a server would take for the client's going, or for its own end, is answered with 500, and it serves on."""
    assert get(ours.address, path).status == 500
    assert get(ours.address, "/whole").body == b"body"


def test_a_body_that_exits(ours: Served) -> None:
    """A body that raises SystemExit ends its answer, and nothing else."""
    with Connection(ours.address) as connection:
        connection.send(request_head("/body-exits") + FAST)
        connection.head()
        assert connection.rest() == b"3\r\none\r\n"
    assert get(ours.address, "/whole").body == b"body"


def test_a_ping_comes_through_the_hub_of_gevent() -> None:
    """A task that does nothing goes the way of a request."""
    with served("gevent", app) as subject:
        come = threading.Event()
        assert subject.runner.ping(come.set) is True
        assert come.wait(BOUND)


def test_a_ping_comes_through_the_workers_of_cheroot() -> None:
    """A task that does nothing comes to a worker of each listener's pool, ahead of all that waits, and is no load."""
    with served("cheroot", app, listen="127.0.0.1:0 127.0.0.1:0", threads=1) as subject:
        come = threading.Event()
        assert subject.runner.ping(come.set) is True
        assert come.wait(BOUND)
        until(lambda: subject.runner.load() == Load(0, 2, 0))


def test_a_ping_does_not_wait_for_a_lock_of_cheroot() -> None:
    """Where the lock of the queue is held, the ping is not sent."""
    with served("cheroot", app) as subject:
        (server,) = subject.runner._servers
        with server.requests._queue.mutex:
            assert subject.runner.ping(lambda: None) is False


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
        (listener,) = subject.runner.listeners()
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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


def test_a_listener_of_others_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd has passed the listener on, only our copy of it is closed."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    with running_cheroot() as server:
        subject = discovery.find("cheroot")  # another test may have left a server of another kind
        assert subject is not None
        copy = server.socket.dup()
        subject.announce()
        subject.stop_accepting(BOUND)
        with copy, socket.create_connection(copy.getsockname()):
            until(lambda: sockets.has_input(copy))
        assert subject.wait_idle(BOUND, 0.0)


def test_werkzeug_leaves_what_another_process_has_as_well() -> None:
    """A listener that came by ``fd=`` and that another process serves as well goes on taking connections there."""
    code = """
import os, socket, threading
from werkzeug.serving import make_server
from flask_lifecycle._servers import werkzeug
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
while not found.accepting():
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
        assert not sockets.has_other_owners(sock)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
        try:
            assert sockets.has_other_owners(sock)
        finally:
            os.write(write, b"x")
            os.waitpid(child, 0)
            os.close(read)
            os.close(write)


NEEDS = [
    (name, number)
    for name in ("waitress", "werkzeug", "cheroot", "gevent")
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
