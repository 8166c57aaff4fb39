"""waitress that somebody else started, in this process: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import Task, WSGITask

from flask_lifecycle._servers import discovery, waitress
from tests._fakes import BOUND, running, served, until
from tests.live._client import Connection, get, refuses

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class App:
    """Answers ``ok``; under ``/wait`` when the gate is open."""

    def __init__(self) -> None:
        self.begun, self.gate = threading.Semaphore(0), threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/wait"):
            self.begun.release()
            assert self.gate.wait(BOUND)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


class Theirs:
    """A waitress with a map of its own, in a thread that is not ours."""

    def __init__(self, app: App, **options: Any) -> None:
        self.map: dict[int, Any] = {}
        where = {} if "sockets" in options else {"listen": "127.0.0.1:0"}
        made = create_server(app, map=self.map, **{**where, "threads": 1, **options})
        self.run = made.run
        self.servers = [each for each in self.map.values() if hasattr(each, "task_dispatcher")]
        self.addresses = [("127.0.0.1", each.socket.getsockname()[1]) for each in self.servers]
        self.address = self.addresses[0]


def attached(servers: list[Any]) -> Any:
    """An adapter for these servers."""
    adapter = waitress.Waitress()
    adapter.adopt(servers, [sock for server in servers for sock in server.adj.sockets])
    return adapter


@contextlib.contextmanager
def turning(theirs: Theirs) -> Iterator[threading.Thread]:
    """Turn its loop until the test is over, and let go of it."""
    with running(theirs.run) as thread:
        until(lambda: bool(discovery.inside(wasyncore.loop, map=theirs.map)))
        try:
            yield thread
        finally:
            left = dict(theirs.map)
            theirs.servers[0].trigger.pull_trigger(theirs.map.clear)
    for server in theirs.servers:
        server.task_dispatcher.shutdown(timeout=BOUND)
    wasyncore.close_all(left, ignore_all=True)


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    yield app
    app.gate.set()


def test_a_connection_from_before_is_taken_along(app: App) -> None:
    """A stop also tells connections to close that there were before the server was found."""
    theirs = Theirs(app)
    with turning(theirs), Connection(theirs.address) as before:
        assert not before.get("/").says_close
        subject = attached(theirs.servers)
        assert not before.get("/").says_close
        subject.announce()
        assert subject.ours
        assert before.get("/").says_close
        assert before.rest() == b""
        subject.stop_accepting(BOUND)
        assert refuses(theirs.address)
        assert subject.wait_idle(BOUND, 0.0)


def test_before_a_stop_the_loop_is_waitress_own(app: App) -> None:
    """What only a stop needs costs neither a turn of the loop nor a request before: the methods are waitress' own."""
    with served("waitress", app) as ours:
        theirs = Theirs(app)
        attached(theirs.servers)
        for server in (*ours.runner._servers(), *theirs.servers):
            kind = server.channel_class
            for name in ("__init__", "readable", "writable", "handle_read", "handle_write", "received", "service"):
                assert getattr(kind, name) is getattr(HTTPChannel, name)
            for task in (kind.task_class, kind.error_task_class):
                assert task.build_response_header is Task.build_response_header
            assert not {"handle_read", "readable"} & vars(server.trigger).keys()
    theirs.servers[0].task_dispatcher.shutdown(timeout=BOUND)
    wasyncore.close_all(theirs.map, ignore_all=True)


def test_two_loops(app: App) -> None:
    """Servers in two maps have two loops, and a stop closes and empties both."""
    both = [Theirs(app, listen="127.0.0.1:0 127.0.0.1:0"), Theirs(app)]
    subject = attached([server for theirs in both for server in theirs.servers])
    with turning(both[0]), turning(both[1]):
        assert subject.serving()
        connections = [Connection(address) for theirs in both for address in theirs.addresses]
        for connection in connections:
            connection.ask("/wait")
        subject.announce()
        subject.stop_accepting(BOUND)
        assert all(app.begun.acquire(timeout=BOUND) for _ in both)
        until(lambda: bool(subject.unfinished()))
        assert len(subject.unfinished()) == 1  # one runs in each loop, and the last one waits
        app.gate.set()
        assert [connection.answer().says_close for connection in connections] == [True] * 3
        assert subject.wait_idle(BOUND, 0.0)
        assert all(refuses(address) for theirs in both for address in theirs.addresses)
        for connection in connections:
            connection.sock.close()


def test_a_loop_of_the_main_thread_is_not(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop in the main thread goes on until the process ends, which sends its SystemExit there."""
    theirs = Theirs(app)
    subject = attached(theirs.servers)
    with turning(theirs) as thread:
        subject.announce()
        monkeypatch.setattr(threading, "main_thread", lambda: thread)
        subject.stop()
        assert get(theirs.address, "/").status == 200


def test_a_loop_that_does_not_run(app: App) -> None:
    """A server whose loop does not run is not waited for, its listener is not touched, and the guard is to refuse."""
    theirs = Theirs(app)
    subject = attached(theirs.servers)
    assert not subject.serving()
    subject.announce()
    assert not subject.ours
    subject.stop_accepting(BOUND)
    subject.stop()
    assert subject.wait_idle(BOUND, 0.0)
    assert not refuses(theirs.address)
    theirs.servers[0].task_dispatcher.shutdown(timeout=BOUND)
    wasyncore.close_all(theirs.map)


def test_a_loop_that_is_stuck(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that somebody holds up is waited for a moment, and not taken over."""
    monkeypatch.setattr(waitress, "PATIENCE", 0.01)
    theirs = Theirs(app)
    subject = attached(theirs.servers)
    held, free = threading.Event(), threading.Event()

    def hang() -> None:
        held.set()
        assert free.wait(BOUND)

    with turning(theirs):
        theirs.servers[0].trigger.pull_trigger(hang)
        assert held.wait(BOUND)
        monkeypatch.setattr("flask_lifecycle._servers.waitress.pool.NEXT_PATIENCE", 0.01)
        subject.announce()
        assert not subject.ours
        free.set()
        until(lambda: get(theirs.address, "/").status == 200)
        subject.announce()
        assert subject.ours
        subject.announce()  # twice is harmless
        assert subject.ours


def test_classes_of_the_user_s_own(app: App) -> None:
    """Channels and tasks of the user's own go on being what they are."""
    made: list[str] = []

    class Counting(WSGITask):  # type: ignore[misc]
        def execute(self) -> None:
            made.append("task")
            super().execute()

    class Channel(HTTPChannel):  # type: ignore[misc]
        task_class = Counting

        def received(self, data: bytes) -> bool:
            made.append("channel")
            return bool(super().received(data))

    theirs = Theirs(app)
    theirs.servers[0].channel_class = Channel
    subject = attached(theirs.servers)
    with turning(theirs), Connection(theirs.address) as connection:
        subject.announce()
        assert connection.get("/").says_close
    assert made == ["channel", "task"]
