"""uvicorn, hypercorn and granian, as far as that needs no process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from multiprocessing import util
from typing import Any, cast
from unittest.mock import Mock

import pytest
from hypercorn.config import Config as HypercornConfig
from uvicorn import Config, Server

from flask_lifecycle._core.inflight import RequestInfo
from flask_lifecycle._core.server import STARTED
from flask_lifecycle._servers import asgi
from flask_lifecycle._servers.asgi import granian, hypercorn
from flask_lifecycle._servers.asgi import uvicorn as uvicorn_module
from flask_lifecycle._servers.asgi.uvicorn import Uvicorn
from tests._fakes import BOUND, until


class Transport:
    """Of a connection with so many bytes unsent."""

    def __init__(self, unsent: int = 0) -> None:
        self.unsent = unsent

    def get_write_buffer_size(self) -> int:
        return self.unsent


def connection(**attributes: Any) -> Any:
    """A connection of uvicorn, as far as one looks at it."""
    values = {"transport": Transport(), "cycle": None, "scope": None}
    return type("Connection", (), {**values, **attributes})()


def cycle(path: str = "/", *, complete: bool = False, more_body: bool = False) -> types.SimpleNamespace:
    scope = {"method": "GET", "path": path}
    return types.SimpleNamespace(scope=scope, response_complete=complete, more_body=more_body)


def uvicorn(*connections: Any, fd: int | None = None) -> Uvicorn:
    """One with these connections, whose loop nobody runs."""
    server = types.SimpleNamespace(
        config=types.SimpleNamespace(fd=fd),
        server_state=types.SimpleNamespace(connections=set(connections)),
        servers=[types.SimpleNamespace(get_loop=lambda: None, sockets=())],
    )
    return Uvicorn(server)


def test_what_uvicorn_is_busy_with() -> None:
    """Its connections tell what each is busy with, and an idle one nothing."""
    idle, half = cycle(complete=True), {"path": "half"}
    busy = [
        connection(cycle=cycle("/queued")),
        connection(cycle=cycle("/receiving", more_body=True)),
        connection(transport=Transport(5), cycle=cycle("/sent", complete=True)),
        connection(transport=Transport(5)),
        connection(cycle=idle, scope=half),
        connection(conn=types.SimpleNamespace(trailing_data=(b"GET / HT", False))),
        connection(cycle=idle, scope=idle.scope),
        connection(conn=types.SimpleNamespace(trailing_data=(b"", False))),
    ]
    subject = uvicorn(*busy)
    assert [[(info.path, info.stage) for info in subject.under_way(each)] for each in busy] == [
        [("/queued", "queued")],
        [("/receiving", "receiving")],
        [("/sent", "sending")],
        [("-", "sending")],
        [("-", "receiving")],
        [("-", "receiving")],
        [],
        [],
    ]
    assert len(subject.unfinished()) == 6


def test_what_the_application_runs_is_told_once() -> None:
    """A request that the application runs is the ledger's to tell, so it is left out of what the server holds."""
    subject = uvicorn(connection(cycle=cycle("/up", more_body=True)), connection(cycle=cycle("/running")))
    body = subject.wrapper.wrap(lambda environ, start_response: [b"x"])({}, cast("Any", None))
    assert [info.path for info in subject.unfinished()] == ["/up"]
    assert list(body) == [b"x"]
    assert len(subject.unfinished()) == 2


def test_a_listener_that_others_have_too_guarantees_less() -> None:
    """Of a listener that was passed on, or is a supervisor's, the accept queue is not ours to empty."""
    assert (uvicorn().guarantee, uvicorn(fd=3).guarantee) == ("all connections", "accepted requests")


class Looping(asgi.LoopAdapter):
    """A server in a loop of a thread, whose connections are made up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, servers: Any, there: dict[Any, bool], *, alone: bool) -> None:
        super().__init__(loop, servers, alone=alone)
        self.there = there

    def connections(self) -> Iterable[Any]:
        return list(self.there)

    def under_way(self, connection: Any) -> list[RequestInfo]:
        return [RequestInfo("GET", "/", 0.0, stage="queued")] if self.there[connection] else []

    def close_idle(self, connection: Any) -> None:
        del self.there[connection]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(BOUND)
    loop.close()


class Idle:
    """A connection with a socket of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.transport = types.SimpleNamespace(get_extra_info={"socket": sock}.get)


def test_an_idle_connection_is_hung_up_unless_a_request_comes(loop: asyncio.AbstractEventLoop) -> None:
    """An idle connection is hung up, one with bytes that were not read yet stays, and so does a busy one."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        quiet, asked, busy = Idle(ours), Idle(ours), Idle(ours)
        subject = Looping(loop, [], {quiet: False, busy: True}, alone=True)
        assert not subject.wait_idle(0.2, 0.0)
        assert list(subject.there) == [busy]
        assert subject.unfinished()[0].age > 0.1
        theirs.send(b"G")
        subject.there = {asked: False}
        assert not subject.wait_idle(0.1, 0.0)
        assert list(subject.there) == [asked]
        ours.recv(1)
        assert subject.wait_idle(BOUND, 0.0)
        assert not subject.there


def test_an_idle_connection_whose_client_has_gone_is_hung_up(loop: asyncio.AbstractEventLoop) -> None:
    """The end of what a client sends is no request that would have to be waited for, nor is a socket that is closed."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        subject = Looping(loop, [], {Idle(ours): False}, alone=True)
        assert subject.wait_idle(BOUND, 0.0)
        assert not subject.there
    subject.there = {Idle(ours): False}
    assert subject.wait_idle(BOUND, 0.0)
    assert not subject.there


# -- granian ------------------------------------------------------------------------------------------------------


class Carrier:
    """The process, as a server sees it."""

    def __init__(self) -> None:
        self.shutdown = types.SimpleNamespace(in_flight=0)
        self.signals: list[int] = []
        self.relay = types.SimpleNamespace(pass_on=self.signals.append)
        self.finished = 0
        self.exit = types.SimpleNamespace(finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1

    def applications(self) -> list[Any]:
        return [types.SimpleNamespace(settings=types.SimpleNamespace(grace_period=25.0))]


def handler_of(event: Any) -> Any:
    """granian's, as it is made."""
    signal_event = event

    def signal_handler(signum: int, frame: object) -> None:
        signal_event.set()

    return signal_handler


def cell_of(handler: Any) -> Any:
    """Where granian's handler has its event."""
    return handler.__closure__[0]


def test_granians_handler_tells_us_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler's event is ours until the delay is over, then granian is told; it is waited for until it returns."""
    event = threading.Event()
    handler, process = handler_of(event), Carrier()
    subject = granian.Granian(cell_of(handler))
    finalizers: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda thing, callback, exitpriority: finalizers.append(callback))
    subject.begin(cast("Any", process))
    handler(signal.SIGTERM, None)
    assert (process.signals, event.is_set(), subject.guarantee) == ([signal.SIGTERM], False, "accepted requests")
    assert not subject.unfinished()
    subject.stop_accepting(BOUND)
    assert event.is_set()
    assert [info.stage for info in subject.unfinished()] == ["receiving"]
    assert not subject.wait_idle(0.0, 0.0)
    finalizers[0]()
    assert (process.finished, subject.wait_idle(0.0, 0.0), list(subject.unfinished())) == (1, True, [])
    assert subject.end()


def test_granians_main_thread_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A main thread that waits without a timeout runs its handlers all the same, until granian has returned."""
    woken = threading.Event()
    finalizers: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda thing, callback, exitpriority: finalizers.append(callback))
    monkeypatch.setattr(granian, "_AWAKE", 0.01)
    before = signal.signal(signal.SIGURG, lambda signum, frame: woken.set())
    try:
        granian.Granian(cell_of(handler_of(threading.Event()))).begin(cast("Any", Carrier()))
        assert woken.wait(BOUND)
        finalizers[0]()
        until(lambda: "lifecycle-granian" not in [thread.name for thread in threading.enumerate()])
    finally:
        signal.signal(signal.SIGURG, before)


@pytest.mark.parametrize(
    ("arguments", "variable", "limit"),
    [
        ([], None, None),
        (["--workers-kill-timeout", "5", "app"], None, 5.0),
        (["--workers-kill-timeout=6.5"], "7", 6.5),
        ([], "7", 7.0),
        (["--workers-kill-timeout"], None, None),
        (["--workers-kill-timeout", "soon"], None, None),
    ],
)
def test_granians_kill_timeout_is_found(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None, limit: float | None
) -> None:
    """It is read from where granian has it: its arguments or the environment."""
    monkeypatch.setattr(sys, "argv", ["granian", *arguments])
    if variable is not None:
        monkeypatch.setenv("GRANIAN_WORKERS_KILL_TIMEOUT", variable)
    assert granian._kill_timeout() == limit


# -- hypercorn ----------------------------------------------------------------------------------------------------


def hypercorn_connection(unsent: int = 0, closing: bool = False, **protocol: Any) -> Any:
    """A connection of hypercorn, as far as one looks at it."""
    transport = types.SimpleNamespace(get_write_buffer_size=lambda: unsent, is_closing=lambda: closing)
    inner = types.SimpleNamespace(**protocol)
    connection = type("Connection", (), {})()
    connection.writer = types.SimpleNamespace(transport=transport)
    connection.protocol = types.SimpleNamespace(protocol=inner)
    return connection


def test_what_hypercorn_is_busy_with() -> None:
    """Its connections tell what each is busy with; one that is closed is none any more."""
    config = types.SimpleNamespace(bind=["fd://3"], insecure_bind=[])
    serving: dict[str, Any] = {"config": config, "loop": None, "servers": [], "shutdown_trigger": None}
    subject = hypercorn.Hypercorn(serving)
    half = types.SimpleNamespace(trailing_data=(b"GET / HT", False))
    scope = types.SimpleNamespace(scope={"method": "GET", "path": "/running"})
    connections = [
        hypercorn_connection(stream=scope),
        hypercorn_connection(streams={1: object()}),
        hypercorn_connection(unsent=5, closing=True),
        hypercorn_connection(stream=None, connection=half),
        hypercorn_connection(stream=None),
        hypercorn_connection(closing=True),
    ]
    subject._running.update(dict.fromkeys(connections))
    there = list(subject.connections())
    assert there == connections[:5]
    assert [[(info.path, info.stage) for info in subject.under_way(each)] for each in there] == [
        [("/running", "queued")],
        [("-", "queued")],
        [("-", "sending")],
        [("-", "receiving")],
        [],
    ]
    assert subject.guarantee == "accepted requests"


# -- versions that are not known ----------------------------------------------------------------------------------


def served_by_uvicorn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of uvicorn that has begun to serve."""
    server = Server(Config(lambda scope: None, interface="wsgi", http="h11"))
    server.config.load()
    server.started, server.servers = True, [Mock(sockets=())]
    monkeypatch.setattr(uvicorn_module, "instances", lambda kind: [server])
    return server


def served_by_hypercorn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A coroutine of hypercorn that serves."""
    names = {"servers": [Mock(sockets=())], "loop": Mock(), "shutdown_trigger": Mock(), "config": HypercornConfig()}
    serving = Mock(cr_frame=Mock(f_locals=names))
    monkeypatch.setattr(hypercorn, "made_from", lambda code: [serving])
    monkeypatch.setattr(hypercorn, "_adapter", None)


def served_by_granian(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker of granian."""
    monkeypatch.setattr(multiprocessing, "parent_process", Mock)
    monkeypatch.setattr(signal, "getsignal", lambda signum: handler_of(Mock()))
    monkeypatch.setattr(granian, "_adapter", None)


@pytest.mark.parametrize("lacks", [False, True])
@pytest.mark.parametrize(
    ("module", "serve", "used"),
    [
        (uvicorn_module, served_by_uvicorn, "_OF_SERVER"),
        (uvicorn_module, served_by_uvicorn, "_OF_CONNECTION"),
        (hypercorn, served_by_hypercorn, "_OF_SERVING"),
        (hypercorn, served_by_hypercorn, "_OF_CONNECTION"),
        (granian, served_by_granian, "_OF_RUNNER"),
    ],
)
def test_a_server_that_lacks_what_its_adapter_uses(
    module: Any, serve: Any, used: str, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a new version has changed lowers the guarantee, and the log says which it is."""
    serve(monkeypatch)
    if lacks:
        monkeypatch.setattr(module, used, (*getattr(module, used), "changed"))
    adapter = module.find()
    assert adapter is not None
    assert (adapter.guarantee == STARTED) is lacks
    assert ("'changed'" in adapter.advice) is lacks
    assert adapter.ours is not lacks
