"""waitress in this process, started by ``run`` or by others: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.trigger import trigger

from flask_lifecycle._core.inflight import Load
from flask_lifecycle._servers import discovery, sockets, waitress
from tests._fakes import BOUND, Served, raiser, running, served, until
from tests.live._client import Connection, get, refuses, request_head
from tests.servers.test_run import LARGE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class App:
    """Answers ``ok``, or much under ``/large``; under ``/wait`` when the gate is opened once for it."""

    def __init__(self) -> None:
        self.begun, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/wait"):
            self.begun.release()
            assert self.gate.acquire(timeout=BOUND)
        body = LARGE if environ["PATH_INFO"] == "/large" else b"ok"
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture
def app() -> Iterator[App]:
    app = App()
    yield app
    app.gate.release(10)


@pytest.fixture
def ours(app: App) -> Iterator[Served]:
    """The application on our waitress, with a single worker."""
    with served("waitress", app, threads=1) as subject:
        yield subject


class Theirs:
    """A waitress with a map of its own, in a thread that is not ours."""

    def __init__(self, app: App, listen: str = "127.0.0.1:0") -> None:
        self.map: dict[int, Any] = {}
        self.run = create_server(app, map=self.map, listen=listen, threads=1).run
        self.servers = [each for each in self.map.values() if hasattr(each, "task_dispatcher")]
        self.addresses = [("127.0.0.1", each.socket.getsockname()[1]) for each in self.servers]
        self.address = self.addresses[0]

    @contextlib.contextmanager
    def turning(self) -> Iterator[threading.Thread]:
        """Turn its loop until the test is over, and let go of it."""
        with running(self.run) as thread:
            until(lambda: bool(discovery.inside(wasyncore.loop, map=self.map)))
            try:
                yield thread
            finally:
                left = dict(self.map)
                self.servers[0].trigger.pull_trigger(self.map.clear)
        self.close(left)

    def close(self, left: dict[int, Any]) -> None:
        for server in self.servers:
            server.task_dispatcher.shutdown(timeout=BOUND)
        wasyncore.close_all(left, ignore_all=True)


def attached(*each: Theirs) -> Any:
    """An adapter for these servers."""
    adapter = waitress.Waitress()
    adapter.adopt([server for theirs in each for server in theirs.servers], [])
    return adapter


def channel_of(subject: Served) -> Any:
    """Its only connection."""
    until(lambda: len(subject.runner.connections()) == 1)
    return subject.runner.connections()[0]


@pytest.mark.parametrize("resets", [False, True])
def test_a_half_closed_client_in_a_drain(ours: Served, resets: bool) -> None:
    """Who has said that nothing more comes is waited for until it has the last byte of its answer, or goes."""
    with Connection(ours.address, slow=True) as client:
        client.ask("/large")
        channel = channel_of(ours)
        until(lambda: channel.last_request and not channel.requests and not channel.total_outbufs_len)
        assert sockets.unsent(channel.socket) > 0
        ours.begin_drain()
        client.sock.shutdown(socket.SHUT_WR)
        until(lambda: channel.heard_all)
        assert [(info.path, info.stage) for info in ours.runner.unfinished()] == [("/large", "sending")]
        assert not ours.runner.wait_idle(0.0, 0.0)
        if resets:
            client.reset()
        else:
            assert client.answer().body == LARGE
        assert ours.runner.wait_idle(BOUND, 0.0)
        assert resets or client.rest() == b""
    assert ours.runner.unfinished() == []


def test_a_network_that_fails_during_the_lingering_close(ours: Served) -> None:
    """A connection that cannot be read any more is closed although its client has said nothing of the sort."""
    with Connection(ours.address) as client:
        client.send(b"GET / HTTP/1.1\r\nnot a header\r\n\r\n")
        channel = channel_of(ours)
        assert client.answer().status == 400
        until(lambda: channel.lingering)
        channel.recv = raiser(OSError(errno.ETIMEDOUT, "Connection timed out"))
        client.send(b"more")
        until(lambda: not ours.runner.connections())
    assert get(ours.address, "/").body == b"ok"


@pytest.mark.parametrize("stays", [True, False])
def test_a_worker_that_outlasts_the_loop(app: App, stays: bool) -> None:
    """A worker that still runs when the loop has ended keeps all that it uses; its client is answered if it stays."""
    # With a lookahead waitress reads while a request runs, and so notices that the client has gone.
    with served("waitress", app, threads=1, channel_request_lookahead=int(not stays)) as subject:
        client = Connection(subject.address)
        client.ask("/wait")
        assert app.begun.acquire(timeout=BOUND)
        channel = channel_of(subject)
        subject.all_end = not stays
        if not stays:
            client.close()
            until(lambda: not subject.runner.connections())
    [listener] = [each.server for each in subject.runner._listeners]
    listener.pull_trigger()  # an error if its pipe were closed
    app.gate.release()
    if stays:
        with client:
            assert client.answer().body == b"ok"
            until(lambda: not channel.requests)
            channel.hang_up()

    def gone() -> bool:
        subject.runner._release()
        return not subject.runner._map

    until(gone)
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.pull_trigger()


def test_a_connection_from_before_is_taken_along(app: App) -> None:
    """A stop also tells connections to close that there were before the server was found."""
    theirs = Theirs(app)
    with theirs.turning(), Connection(theirs.address) as before:
        assert not before.get("/").says_close
        subject = attached(theirs)
        assert not before.get("/").says_close
        subject.announce()
        assert subject.ours
        assert before.get("/").says_close
        assert before.rest() == b""
        subject.stop_accepting(BOUND)
        assert refuses(theirs.address)
        assert subject.wait_idle(BOUND, 0.0)


def test_two_loops(app: App) -> None:
    """Servers in two maps have two loops, and a stop closes and empties both."""
    one, two = both = Theirs(app, "127.0.0.1:0 127.0.0.1:0"), Theirs(app)
    subject = attached(*both)
    with one.turning(), two.turning(), contextlib.ExitStack() as stack:
        assert subject.serving()
        addresses = [*one.addresses, *two.addresses]
        connections = [stack.enter_context(Connection(address)) for address in addresses]
        for connection in connections:
            connection.ask("/wait")
        subject.announce()
        subject.stop_accepting(BOUND)
        assert all(app.begun.acquire(timeout=BOUND) for _ in both)
        # One runs in each loop, and the last one waits.
        stages = sorted(["running", "running", "queued"])
        until(lambda: sorted(info.stage for info in subject.unfinished()) == stages)
        app.gate.release(3)
        assert [connection.answer().says_close for connection in connections] == [True] * 3
        assert subject.wait_idle(BOUND, 0.0)
        assert all(map(refuses, addresses))


def test_a_loop_of_the_main_thread_is_not_ended(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop in the main thread goes on until the process ends, which sends its SystemExit there."""
    theirs = Theirs(app)
    subject = attached(theirs)
    with theirs.turning() as thread:
        subject.announce()
        monkeypatch.setattr(threading, "main_thread", lambda: thread)
        subject.stop()
        assert get(theirs.address, "/").status == 200


def test_a_loop_that_does_not_run(app: App) -> None:
    """A server whose loop does not run is not waited for, its listener is not touched, and the guard is to refuse."""
    # What only a stop needs costs neither a turn of the loop nor a request before: the methods are waitress' own.
    theirs = Theirs(app)
    subject = attached(theirs)
    assert not subject.serving()
    for name in ("readable", "writable", "handle_read", "handle_write", "received", "service"):
        assert getattr(theirs.servers[0].channel_class, name) is getattr(HTTPChannel, name)
    subject.announce()
    assert not subject.ours
    subject.stop_accepting(BOUND)
    subject.stop()
    assert subject.wait_idle(BOUND, 0.0)
    assert not refuses(theirs.address)
    theirs.close(theirs.map)


def test_a_loop_that_is_stuck(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is held up for longer than we wait for it closes its listener later, and the drain waits for that."""
    monkeypatch.setattr(waitress, "PATIENCE", 0.01)
    held, free = threading.Event(), threading.Event()
    theirs = Theirs(app)
    subject = attached(theirs)
    accept = theirs.servers[0].handle_accept

    def hold() -> None:
        held.set()
        assert free.wait(BOUND)
        accept()

    theirs.servers[0].handle_accept = hold
    with theirs.turning(), Connection(theirs.address) as client:
        client.send(request_head("/"))
        assert held.wait(BOUND)
        for _ in range(2):  # twice is harmless
            subject.announce()
            subject.stop_accepting(0.0)
        assert not subject.wait_idle(0.0, 0.0)
        free.set()
        assert client.response().status == 200
        assert subject.wait_idle(BOUND, 0.0)
        assert refuses(theirs.address)


def test_a_loop_that_cannot_be_told(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a loop whose trigger is held, as it will never close its listener."""
    monkeypatch.setattr(waitress.pool, "NEXT_PATIENCE", 0.01)
    theirs = Theirs(app)
    subject = attached(theirs)
    with theirs.turning():
        subject.announce()
        with theirs.servers[0].trigger.lock:
            subject.stop_accepting(0.0)
        assert subject.wait_idle(BOUND, 0.0)


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
    subject = attached(theirs)
    with theirs.turning(), Connection(theirs.address) as connection:
        subject.announce()
        assert connection.get("/").says_close
    assert made == ["channel", "task"]


def test_a_ping_is_ahead_of_all_that_waits(app: App, ours: Served) -> None:
    """The next worker that is free takes the ping, however much waits, and until then it is no part of the load."""
    back = threading.Event()
    with Connection(ours.address) as one, Connection(ours.address) as two:
        one.ask("/wait/one")
        assert app.begun.acquire(timeout=BOUND)
        two.ask("/wait/two")
        until(lambda: ours.runner.load().queued == 1)
        assert ours.runner.ping(back.set) is True
        assert ours.runner.load()._replace(oldest=0.0) == Load(1, 1, 1)
        assert not back.is_set()
        app.gate.release()
        assert back.wait(BOUND)  # and the second request still waits at its gate, or in the queue
        app.gate.release()
        assert (one.answer().status, two.answer().status) == (200, 200)


def test_a_lock_that_is_not_to_be_had(ours: Served) -> None:
    """Whoever sends a ping is not held up by a lock of the pool that nobody gives back."""
    with ours.runner._servers[0].task_dispatcher.lock:
        assert ours.runner.ping(lambda: None) is False
    back = threading.Event()
    assert ours.runner.ping(back.set) is True
    assert back.wait(BOUND)


def test_a_pool_that_is_emptied() -> None:
    """A ping that is still there when waitress ends its pool is given up in silence."""
    pool = ThreadedTaskDispatcher()
    assert waitress.pool.send_ahead(pool, waitress.pool.Ping(lambda: pytest.fail("it came back")))
    pool.shutdown(timeout=0)
    assert not pool.queue


def test_a_ping_through_two_pools_and_two_loops(app: App) -> None:
    """A waitress that somebody else runs sends the ping through each pool and each loop of its listeners."""
    one, two = Theirs(app), Theirs(app)
    subject = attached(one, two)
    back, gate = threading.Event(), threading.Event()
    (server,) = two.servers
    assert waitress.pool.send_ahead(server.task_dispatcher, waitress.pool.Ping(gate.wait))
    until(lambda: not server.task_dispatcher.queue)
    with one.turning():
        assert subject.ping(back.set) is True
        until(lambda: bool(server.task_dispatcher.queue))
        assert not back.is_set()  # the other pool has no worker that is free
        gate.set()
        until(lambda: bool(server.trigger.thunks))
        assert not back.is_set()  # and its loop does not turn yet
        with two.turning():
            assert back.wait(BOUND)
    assert subject.ping(lambda: None) is None


def test_a_trigger_that_cannot_be_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is held up by a full pipe or a held lock, and nothing is written to the number of a closed pipe."""
    monkeypatch.setattr(waitress.pool, "NEXT_PATIENCE", 0.01)
    pulled: Any = trigger({})
    called: list[str] = []
    waitress.pool.through_loop(pulled, lambda: called.append("back"))
    pulled.handle_read()  # an open one wakes its loop by a byte
    assert called == ["back"]
    with pulled.lock:
        waitress.pool.through_loop(pulled, lambda: None)
    assert pulled.thunks == []
    os.set_blocking(pulled.trigger, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pulled.trigger, b"x" * 4096)
    os.set_blocking(pulled.trigger, True)
    with running(lambda: waitress.pool.through_loop(pulled, lambda: None)):
        pass
    assert len(pulled.thunks) == 1
    pulled.close()
    waitress.pool.through_loop(pulled, lambda: None)
    assert len(pulled.thunks) == 1
