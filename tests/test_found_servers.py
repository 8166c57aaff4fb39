"""What is done to servers that somebody else started, as far as it needs no process of its own."""

from __future__ import annotations

import asyncio
import importlib
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from multiprocessing import util
from typing import Any

import pytest

from flask_lifecycle._inflight import RequestInfo
from flask_lifecycle.servers import found
from flask_lifecycle.servers.found import Found, _asyncio, granian, hypercorn
from flask_lifecycle.servers.found.uvicorn import FoundUvicorn
from tests._fakes import run_python, running, until

BOUND = 10.0


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


def uvicorn(*connections: Any, fd: int | None = None) -> FoundUvicorn:
    """One with these connections, whose loop nobody runs."""
    server = types.SimpleNamespace(
        config=types.SimpleNamespace(fd=fd),
        server_state=types.SimpleNamespace(connections=set(connections)),
        servers=[types.SimpleNamespace(get_loop=lambda: None)],
    )
    return FoundUvicorn(server)


class Asked:
    """A lock that tells when so many have asked for it."""

    def __init__(self, parties: int) -> None:
        self._left = parties
        self._lock = threading.RLock()
        self.all = threading.Event()

    def __enter__(self) -> None:
        self._left -= 1
        if not self._left:
            self.all.set()
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


def test_two_that_search_find_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-out and the first request may search at once: the second waits for the first, and gets what it found.

    Without that both would have found nothing yet, and each would make an object; the one that is put in place would
    not be the one that is told to stop. The other interleaving, one after the other, never was a race.
    """
    searching, made = Asked(2), list[Found]()

    def find() -> Found:
        if not made:
            assert searching.all.wait(BOUND)
            made.append(Found())
        return made[-1]

    monkeypatch.setattr(found, "_searching", searching)
    monkeypatch.setattr(found, "listens", lambda: True)
    monkeypatch.setattr(found, "KINDS", (("sys", "uvicorn"),))
    monkeypatch.setattr(sys.modules[FoundUvicorn.__module__], "find", find)
    others: list[Found | None] = []
    with running(lambda: others.append(found.find())):
        mine = found.find()
    assert others == [mine]
    assert made == [mine]


FORKED_IN_A_SEARCH = """
import os, threading
from flask_lifecycle.servers import found
held = threading.Event()
def search():
    with found._searching:
        held.set()
        threading.Event().wait()
threading.Thread(target=search, daemon=True).start()
held.wait(10)
child = os.fork()
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    os._exit(0 if found._searching.acquire(timeout=10) else 1)
"""


def test_a_child_that_is_forked_in_a_search_can_search() -> None:
    """A thread that searches in the parent is not in the child, and nobody waits for it there."""
    done = run_python(FORKED_IN_A_SEARCH, python=("-W", "ignore"))
    assert done.stdout == "0\n", done.stderr


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
    assert [info and (info.path, info.stage) for info in map(subject.doing, busy)] == [
        ("/queued", "queued"),
        ("/receiving", "receiving"),
        ("/sent", "sending"),
        ("-", "sending"),
        ("-", "receiving"),
        ("-", "receiving"),
        None,
        None,
    ]
    assert len(subject.unfinished()) == 6


def test_what_the_application_runs_is_told_once() -> None:
    """A request that the application runs is the ledger's to tell, so it is left out of what the server holds."""
    subject = uvicorn(connection(cycle=cycle("/up", more_body=True)), connection(cycle=cycle("/running")))
    body = call(subject.attendance.attend(lambda environ, start_response: [b"x"]))
    assert [info.path for info in subject.unfinished()] == ["/up"]
    assert list(body) == [b"x"]
    assert len(subject.unfinished()) == 2


def test_a_listener_that_others_have_too_is_not_promised_in_full() -> None:
    """Of a listener that was passed on, or is a supervisor's, the accept queue is not ours to empty."""
    assert (uvicorn().promise, uvicorn(fd=3).promise) == ("full", "accepted requests")


def call(app: Any, start_response: Any = lambda *arguments: None) -> Any:
    """Ask an application for something."""
    return app({}, start_response)


class Result:
    """A body that says how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0
        self.left = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return b"x"

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("end", ["iterated", "closed", "both", "dropped"])
def test_a_body_is_closed_once(end: str) -> None:
    """However a server treats a body, it is closed, and once."""
    subject, result = uvicorn(), Result()
    body = call(subject.attendance.attend(lambda environ, start_response: result))
    assert len(subject.attendance.running) == 1
    if end == "dropped":
        result.left = 2
        begun = iter(body)
        next(begun)
        del begun
    if end in ("iterated", "both"):
        assert list(body) == []
    if end in ("closed", "both"):
        body.close()
    assert (result.closed, len(subject.attendance.running)) == (1, 0)


def test_an_application_that_raises_has_ended() -> None:
    """A request whose application raises before it returns a body is not running any more."""

    def fails(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise ValueError("boom")

    subject = uvicorn()
    with pytest.raises(ValueError, match="boom"):
        call(subject.attendance.attend(fails))
    assert not subject.attendance.running


def test_answers_close_once_it_is_announced() -> None:
    """From the announcement on answers tell their connections to close, and not before."""
    headers: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("A", "b")])
        return ()

    subject = uvicorn()
    attended = subject.attendance.attend(app)
    call(attended, lambda status, given: headers.append(given))
    subject.announce()
    call(attended, lambda status, given: headers.append(given))
    assert headers == [[("A", "b")], [("A", "b"), ("Connection", "close")]]


class Looping(_asyncio.Loop):
    """A server in a loop of a thread, whose connections are made up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, servers: Any, there: dict[Any, bool], *, alone: bool) -> None:
        super().__init__(loop, servers, alone=alone)
        self.there = there

    def connections(self) -> Iterable[Any]:
        return list(self.there)

    def doing(self, connection: Any) -> RequestInfo | None:
        return RequestInfo("GET", "/", 0.0, stage="queued") if self.there[connection] else None

    def hang_up(self, connection: Any) -> None:
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
        assert subject.wait_idle(0.1, 0.0)  # nothing is unfinished that is known
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


@pytest.mark.parametrize("alone", [True, False])
def test_a_listener_of_a_loop_is_closed_when_nobody_comes(loop: asyncio.AbstractEventLoop, alone: bool) -> None:
    """Who waits in the accept queue is let in before the listener of a loop is closed, with the filter and without."""
    got = threading.Event()

    def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set()
        writer.close()

    async def serve() -> asyncio.Server:
        return await asyncio.start_server(let_in, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(BOUND)
    with socket.create_connection(server.sockets[0].getsockname()):
        Looping(loop, [server], {}, alone=alone).stop_accepting(BOUND)
        assert got.wait(BOUND)
    assert not server.is_serving()


def test_a_listener_that_is_never_quiet_is_closed_in_the_end() -> None:
    """Clients that never stop to come do not hold a listener past the bound, nor does one that has gone meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        began = time.monotonic()
        _asyncio._wait_quiet([listener], 0.1, began + 0.15)
        assert time.monotonic() - began >= 0.15
    _asyncio._wait_quiet([listener], 0.0, time.monotonic() + BOUND)


# -- uWSGI --------------------------------------------------------------------------------------------------------

WHOLE = {
    "master": True,
    "enable-threads": True,
    "lazy-apps": True,
    "hook-master-start": b"unix_signal:15 gracefully_kill_them_all",
}


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """uWSGI's module, as far as it is used, in the first of its workers; and ours for it."""
    module = types.SimpleNamespace(
        opt=dict(WHOLE), worker_id=lambda: 1, listen_queue=lambda: 0, workers=lambda: ({"id": 1, "status": b"idle"},)
    )
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    monkeypatch.delitem(sys.modules, "flask_lifecycle.servers.found.uwsgi", raising=False)
    yield importlib.import_module("flask_lifecycle.servers.found.uwsgi")
    del sys.modules["flask_lifecycle.servers.found.uwsgi"]


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({}, []),
        ({"enable-threads": None, "threads": b"4", "lazy-apps": None, "py-call-osafterfork": True}, []),
        ({"master": None}, ["'master = true'"]),
        ({"enable-threads": None}, ["'enable-threads = true'"]),
        ({"lazy-apps": None}, ["'lazy-apps = true'"]),
        ({"hook-master-start": b"x"}, ["'hook-master-start = unix_signal:15 gracefully_kill_them_all'"]),
        ({"die-on-term": True}, ["no 'die-on-term'"]),
    ],
)
def test_what_a_configuration_of_uwsgi_lacks(uwsgi: Any, change: dict[str, Any], lacking: list[str]) -> None:
    """Each option without which a stop loses what runs is named."""
    assert uwsgi.missing({**WHOLE, **change}) == lacking


def test_one_worker_of_uwsgi_speaks_for_all(uwsgi: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong with the configuration is said by the first worker alone; the master is no server."""
    member = types.SimpleNamespace(settings=types.SimpleNamespace(grace_period=70.5))
    process = types.SimpleNamespace(members=lambda: [member], coordinator=types.SimpleNamespace(in_flight=0))
    uwsgi.uwsgi.opt["die-on-term"] = True
    for worker in (0, 1, 2):
        uwsgi.uwsgi.worker_id = lambda worker=worker: worker
        found = uwsgi.find()
        assert (found is None) == (worker == 0)
        if found is not None:
            found.begin(process)
    assert [record.getMessage() for record in caplog.records] == [
        "uWSGI is not configured for a stop that answers what it runs; set no 'die-on-term'.",
        "uWSGI's 'worker-reload-mercy' is 60 s, and a stop may take 70.5 s; set it to 71, or a shorter"
        " 'LIFECYCLE_GRACE_PERIOD'.",
    ]


def test_what_a_worker_of_uwsgi_holds(uwsgi: Any) -> None:
    """A busy worker whose application runs nothing is receiving a request; more is not to be seen."""
    coordinator = types.SimpleNamespace(in_flight=0)
    subject = uwsgi.FoundUwsgi()
    assert not subject.unfinished()
    uwsgi.uwsgi.workers = lambda: ({"id": 1, "status": b"busy"}, {"id": 2, "status": b"idle"})
    subject._process = types.SimpleNamespace(coordinator=coordinator)
    assert [info.stage for info in subject.unfinished()] == ["receiving"]
    coordinator.in_flight = 1
    assert not subject.unfinished()


def test_uwsgis_queue_is_waited_for(uwsgi: Any) -> None:
    """The drain goes on when nobody has waited in the queue for a while, or at its bound."""
    subject, looks = uwsgi.FoundUwsgi(), iter([1, 1])
    uwsgi.uwsgi.listen_queue = lambda: next(looks, 0)
    subject.stop_accepting(BOUND)
    assert next(looks, None) is None
    uwsgi.uwsgi.listen_queue = lambda: 1
    subject.stop_accepting(0.05)


# -- granian ------------------------------------------------------------------------------------------------------


class Carrier:
    """The process, as a server sees it."""

    def __init__(self) -> None:
        self.coordinator = types.SimpleNamespace(in_flight=0)
        self.signals: list[int] = []
        self.held = 0

    def take_signals(self) -> None:
        raise AssertionError("granian's signals cannot be taken")

    def signalled(self, signum: int) -> None:
        self.signals.append(signum)

    def stop(self, reason: str, signum: int | None = None, *, delay: bool) -> None:
        raise AssertionError("nobody asks for that")

    def hold(self) -> None:
        self.held += 1

    def members(self) -> list[Any]:
        return [types.SimpleNamespace(settings=types.SimpleNamespace(grace_period=25.0))]


def handler_of(event: Any) -> Any:
    """granian's, as it is made."""
    signal_event = event

    def signal_handler(signum: int, frame: object) -> None:
        signal_event.set()

    return signal_handler


def test_granians_handler_tells_us_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler's event is ours until the delay is over, then granian is told; it is waited for until it returns."""
    event = threading.Event()
    handler, process = handler_of(event), Carrier()
    subject = granian.FoundGranian(granian._cell(handler, "signal_event"))
    finalizers: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda thing, callback, exitpriority: finalizers.append(callback))
    subject.begin(process)
    handler(signal.SIGTERM, None)
    assert (process.signals, event.is_set(), subject.promise) == ([signal.SIGTERM], False, "accepted requests")
    assert not subject.unfinished()
    subject.stop_accepting(BOUND)
    assert event.is_set()
    assert [info.stage for info in subject.unfinished()] == ["receiving"]
    assert not subject.wait_idle(0.0, 0.0)
    finalizers[0]()
    assert (process.held, subject.wait_idle(0.0, 0.0), list(subject.unfinished())) == (1, True, [])
    assert subject.end()


def test_granians_main_thread_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A main thread that waits without a timeout runs its handlers all the same, until granian has returned."""
    woken = threading.Event()
    finalizers: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda thing, callback, exitpriority: finalizers.append(callback))
    monkeypatch.setattr(granian, "_AWAKE", 0.01)
    before = signal.signal(signal.SIGURG, lambda signum, frame: woken.set())
    try:
        granian.FoundGranian(granian._cell(handler_of(threading.Event()), "signal_event")).begin(Carrier())
        assert woken.wait(BOUND)
        finalizers[0]()
        until(lambda: "lifecycle-granian" not in [thread.name for thread in threading.enumerate()])
    finally:
        signal.signal(signal.SIGURG, before)


def test_a_granian_that_is_not_known_is_left_alone() -> None:
    """With another handler there is nothing to be replaced, and less is promised."""
    subject = granian.FoundGranian(granian._cell(signal.SIG_DFL, "signal_event"))
    subject.begin(Carrier())
    subject.stop_accepting(0.0)
    assert (subject.promise, subject.ours, subject.wait_idle(0.0, 0.0), subject.end()) == (
        "started requests", False, True, False,
    )  # fmt: skip


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
    subject = hypercorn.FoundHypercorn(serving)
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
    subject._open.update(dict.fromkeys(connections))
    there = list(subject.connections())
    assert there == connections[:5]
    assert [info and (info.path, info.stage) for info in map(subject.doing, there)] == [
        ("/running", "queued"),
        ("-", "queued"),
        ("-", "sending"),
        ("-", "receiving"),
        None,
    ]
    assert subject.promise == "accepted requests"


# -- mod_wsgi -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "promise"), [("shop", "accepted requests"), ("", "started requests")])
def test_mod_wsgi_outside_its_daemon_promises_less(monkeypatch: pytest.MonkeyPatch, group: str, promise: str) -> None:
    """What Apache's own processes hold may be ended with them at any time."""
    monkeypatch.setitem(sys.modules, "mod_wsgi", types.SimpleNamespace(process_group=group))
    monkeypatch.delitem(sys.modules, "flask_lifecycle.servers.found.mod_wsgi", raising=False)
    module = importlib.import_module("flask_lifecycle.servers.found.mod_wsgi")
    assert module.find().promise == promise
    del sys.modules["flask_lifecycle.servers.found.mod_wsgi"]
