"""The parts of gunicorn's master and workers that we bring, on fakes of gunicorn; what they do together is live."""

from __future__ import annotations

import functools
import os
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from gunicorn import util
from gunicorn.workers.base import Worker as GunicornWorker
from gunicorn.workers.sync import SyncWorker

from flask_lifecycle._config import Settings
from flask_lifecycle._core.process import Process
from flask_lifecycle._servers import gunicorn
from flask_lifecycle._servers.serving import Serving
from tests._fakes import BOUND, FakeMember, in_child, until

hooks: Any = gunicorn
states = hooks.shared
# The file by whose time a worker of gunicorn shows that it lives.
with tempfile.TemporaryFile() as _file:
    _LIFE = os.dup(_file.fileno())


class FakeArbiter:
    """gunicorn's master, as far as we touch it."""

    def __init__(self, *listeners: socket.socket, ages: tuple[int, ...] = ()) -> None:
        self.LISTENERS = [SimpleNamespace(sock=sock, close=sock.close) for sock in listeners]
        self.WORKERS: Any = {100 + age: SimpleNamespace(age=age) for age in ages}
        self.cfg: Any = Mock(address=[("127.0.0.1", 8000)], graceful_timeout=30)
        self.cfg.set = functools.partial(setattr, self.cfg)
        self.worker_class: type = SyncWorker
        self.systemd = False
        self.reexec_pid = self.master_pid = 0
        self.log, self.signal, self.stop, self.handle_term = Mock(), Mock(), Mock(), Mock()
        self.kill_worker, self.kill_workers, self.reap_workers = Mock(), Mock(), Mock()


class FakeWorker(SimpleNamespace):
    """gunicorn's worker, as far as we touch it."""

    def __init__(self, age: int = 2, **more: Any) -> None:
        values: dict[str, Any] = {
            "age": age, "sockets": [], "cfg": SimpleNamespace(graceful_timeout=30), "alive": True,
            "tmp": SimpleNamespace(fileno=lambda: _LIFE),
            "wsgi": lambda environ, start: [], "handle": lambda *arguments: None,
        }  # fmt: skip
        super().__init__(**{**values, **more})

    def handle_exit(self, signum: int, frame: Any) -> None:
        self.alive = False


@pytest.fixture
def shared() -> Any:
    """What master and workers share, with the numbers of some settings on it."""
    shared = states.SharedMemory()
    shared.publish([Settings(grace_period=10.0, hook_reserve=2.0, shutdown_delay=3.0)])
    return shared


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP listener."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Give back the signals and what the hooks keep."""
    taken = (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in taken}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    for number, handler in before.items():
        signal.signal(number, handler)
    hooks.here.shared = hooks.here.master = hooks.here.worker = None


def adapter_of(worker: FakeWorker, shared: Any) -> Any:
    serving: Any = SimpleNamespace(process=SimpleNamespace(shutdown=SimpleNamespace(in_flight=1)))
    return hooks.HookedWorker(worker, shared, serving)


def test_one_acts_for_all_in_time(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that does not end does not keep another from acting for all."""
    shared.publish([Settings()], True)
    shared.set_last_workers([1, 2])
    assert shared.is_last(1, 0.02)
    assert caplog.messages == ["1 other workers have not ended; the on_shutdown functions of the process group run now"]


def test_what_a_leaving_worker_has_accepted(shared: Any) -> None:
    """Connections that are neither idle nor in the application count while it leaves, and at no other time."""
    subject = adapter_of(FakeWorker(nr_conns=4, keepalived_conns=[object()]), shared)
    assert subject.unfinished() == ()
    subject._leave()
    assert [info.stage for info in subject.unfinished()] == ["receiving"] * 2
    subject._leave_loop()
    assert subject.unfinished() == ()


def test_the_last_to_come_are_accepted_by_a_loop(shared: Any, listener: socket.socket) -> None:
    """A gthread worker accepts them in its loop, and leaves it then; while the others go on it leaves at once."""
    # Interleaving: the master finds the queue empty; the kernel completes a handshake; the master dismisses the worker.
    calls, deferred = list[Any](), list[Any]()
    worker = FakeWorker(
        sockets=[Mock(wraps=listener, sock=listener)],  # gunicorn's wrapper
        method_queue=SimpleNamespace(defer=lambda *call: deferred.append(call)),
        set_accept_enabled=calls.append,
        accept=lambda accepted: calls.append(accepted.accept()[0].close()),
        handle_exit=lambda *signal: calls.append("exit"),
    )
    subject = adapter_of(worker, shared)
    shared.dismiss(2)
    subject._signalled(signal.SIGTERM, None)
    assert (calls, deferred) == (["exit"], [])
    shared.request_stop()
    with socket.create_connection(listener.getsockname()):
        subject._signalled(signal.SIGTERM, None)
        for function, *arguments in deferred:
            function(*arguments)
    assert calls == ["exit", False, None, "exit"]


@pytest.mark.parametrize(
    ("delay", "timeout", "needed"), [(3.0, 22.0, None), (3.0, 21.5, 22), ("auto", 24.0, 25), ("auto", 25.0, None)]
)
def test_the_warning_names_the_number(
    delay: Any, timeout: float, needed: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """gunicorn waits from the end of the delay on; one that ends when it may may end at once."""
    hooks.worker.warn_of_timeout(timeout, [Settings(grace_period=25.0, shutdown_delay=delay)])
    expected = (
        f"gunicorn's graceful_timeout is {timeout:g} s, but a worker may need {needed} s after the delay; set"
        f" 'graceful_timeout' to {needed}, or a shorter 'LIFECYCLE_GRACE_PERIOD'."
    )
    assert caplog.messages == ([] if needed is None else [expected])


def test_no_worker_is_signalled_twice(shared: Any, listener: socket.socket) -> None:
    """Workers are dismissed when the listener is closed, and once: a second SIGTERM kills an interpreter that ends."""
    # Interleaving: the master dismisses a worker and sees it end; gunicorn, which goes through its list, signals it.
    server = FakeArbiter(listener, ages=(1,))
    kill, looks = server.kill_worker, list[int]()
    master = hooks.Master(server, shared)
    master.install()
    shared.set_state(1, states.CLEAN)
    assert not master._step(0.0)
    master._finished = True

    def look() -> None:
        looks.append(listener.fileno())
        if len(looks) == 3:
            server.WORKERS.clear()

    server.kill_workers.side_effect = lambda signum: server.kill_worker(101, signum)
    server.reap_workers = look  # type: ignore[assignment]  # a fake's
    server.stop()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        server.kill_worker(101, signum)
    assert looks == [-1] * 3
    assert [call.args for call in kill.call_args_list] == [(101, signal.SIGTERM), (101, signal.SIGKILL)]
    master._tick(signal.SIGALRM, None)  # one that was due when the stop began
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_how_long_the_master_waits(shared: Any, listener: socket.socket) -> None:
    """A worker that never ends its delay, and a queue that nobody serves, hold the master for as long as they may."""
    # Before anything is loaded nobody has to notice, and what waits is waited for as long as gunicorn waits for a
    # worker. Where no worker has ever taken part SIGTERM does what it does without us, and where none can start, no
    # client waits.
    server = FakeArbiter(listener, ages=(1,))
    with socket.create_connection(listener.getsockname()):  # from the first look on nobody else can
        shared.set_state(1, states.DELAYING)
        master = hooks.Master(server, shared)
        assert [master._step(now) for now in (8.9, 9.1)] == [False, True]
        shared.set_state(1, states.DELAYED)
        assert not master._step(7.9)
        absent = states.SharedMemory()
        absent.set_state(1, states.ABSENT)
        master = hooks.Master(server, absent)
        assert (master._step(0.0), master.exit_code) == (True, 0)
        master = hooks.Master(server, states.SharedMemory())
        assert [master._step(now) for now in (0.0, 29.0, 30.0)] == [False, False, True]
        master._failure = SystemExit()
        assert master._step(0.0)
        listener.accept()[0].close()
    assert master._step(29.0)


@pytest.mark.parametrize("more", [{"systemd": True}, {"reexec_pid": 1}, {"master_pid": os.getppid()}, {"address": [3]}])
def test_listeners_of_others_are_left_alone(shared: Any, listener: socket.socket, more: dict[str, Any]) -> None:
    """Given sockets, and those that another master has as well, are neither filtered nor waited for."""
    server = FakeArbiter(listener)
    server.cfg.address = more.get("address", server.cfg.address)
    vars(server).update(more)
    master = hooks.Master(server, shared)
    with socket.create_connection(listener.getsockname()):
        assert master._step(0.0)


def test_a_tick_is_not_interrupted_by_the_next(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine ticks do not nest without end; what goes wrong in one neither ends nor holds a stop."""
    timers, failure = list[tuple[float, float]](), list[Exception]()

    def values() -> list[Any]:
        timers.append(signal.getitimer(signal.ITIMER_REAL))
        if failure:
            raise failure[0]
        return [SimpleNamespace(age=1)]

    server = FakeArbiter()
    server.WORKERS = SimpleNamespace(values=values)
    shared.set_state(1, states.DELAYING)
    master = hooks.Master(server, shared)
    monkeypatch.setattr(hooks.master, "TICK", BOUND)
    master.install()
    master._begin()
    signal.setitimer(signal.ITIMER_REAL, 0.0)  # it has gone off
    master._tick(signal.SIGALRM, None)
    assert timers == [(0.0, 0.0)]
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert (0.0 < left <= BOUND, interval) == (True, 0.0)
    server.signal.reset_mock()
    failure.append(RuntimeError("boom"))
    for _ in range(2):  # until gunicorn has heard it
        master._tick(signal.SIGALRM, None)
    assert [call.args[0] for call in server.signal.call_args_list] == [signal.SIGTERM] * 2
    failure.clear()
    master.stop()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_in_a_child_that_has_no_handlers_yet(shared: Any) -> None:
    """A worker that is signalled as soon as it is forked leaves, and tells nobody to stop."""
    master = hooks.Master(FakeArbiter(), shared)
    assert in_child(lambda: master._signalled(signal.SIGTERM, None) or 1) == 0
    assert not shared.page.stop_requested


@pytest.mark.parametrize(("age", "timeout"), [(3.2, 7), (60.0, 1), (-25.0, 30)])
def test_the_master_waits_no_longer_than_the_grace_period(shared: Any, age: float, timeout: int) -> None:
    """A worker that hangs is killed by then, whatever gunicorn would give it."""
    server = FakeArbiter()
    master = hooks.Master(server, shared)
    master._finished, shared.page.stop_requested = True, time.monotonic() - age
    master.stop()
    assert server.cfg.graceful_timeout == timeout


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """A process that touches no signals, with one application, in the place of this one."""
    process, member = Process(signals=False), FakeMember(grace_period=20.0, hook_reserve=1.0)
    process.join(member, ())
    monkeypatch.setattr(hooks, "this_process", process)
    monkeypatch.setattr(hooks, "this_serving", Serving(process))
    yield process
    del member  # kept until now: the process refers to it weakly


def test_threads_of_the_master_alone_are_named(
    process: Process, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, free: threading.Event
) -> None:
    """One warning names the threads that an application has started in the master; ours and those of none are none."""
    for name in ("poller", "lifecycle-x"):
        threading.Thread(target=free.wait, args=(BOUND,), name=name).start()
    hooks.when_ready(FakeArbiter())
    monkeypatch.setattr(hooks, "this_process", Process(signals=False))
    hooks.when_ready(FakeArbiter())
    assert caplog.messages == [
        "threads that were started before the fork do not exist in the workers: poller; start them in an"
        " on_startup function, or load the application without --preload."
    ]


@pytest.mark.parametrize(
    ("worker_class", "lacks", "unknown"),
    [
        (type("Other", (GunicornWorker,), {}), None, "workers of class Other"),
        (SyncWorker, "kill_worker", "a gunicorn without 'kill_worker'"),
    ],
)
def test_a_gunicorn_that_is_not_known_is_left_alone(
    process: Process, worker_class: type, lacks: str | None, unknown: str
) -> None:
    """Where the hooks do not know the class of the workers, or gunicorn lacks what they use, they do nothing."""
    before = signal.getsignal(signal.SIGTERM)
    arbiter = FakeArbiter()
    arbiter.worker_class = worker_class
    if lacks:
        delattr(arbiter, lacks)
    hooks.when_ready(arbiter)
    assert signal.getsignal(signal.SIGTERM) == before
    (text, *arguments) = arbiter.log.info.call_args.args
    assert text % tuple(arguments) == (
        f"flask_lifecycle does not know {unknown}; each worker stops as with init_app alone"
    )
    worker = FakeWorker(age=1)
    for hook in (hooks.post_fork, hooks.worker_exit):
        hook(arbiter, worker)
    hooks.post_worker_init(worker)
    hooks.on_exit(arbiter)
    assert not process.shutdown.begun


def test_a_worker_that_is_signalled_while_it_loads(process: Process, shared: Any) -> None:
    """It begins nothing if the master has dismissed it alone; if all stop, it serves what waits until its turn."""
    # Interleaving: gunicorn's handler gets SIGTERM while the application is loaded; then our hook is called.
    hooks.here.shared = shared
    worker = FakeWorker(3, alive=False)
    shared.dismiss(3)
    hooks.post_worker_init(worker)
    assert (hooks.here.worker, shared.state(3), worker.alive) == (None, 0, False)
    shared.clear(3)
    shared.request_stop()
    hooks.post_worker_init(worker)
    assert worker.alive
    until(lambda: process.shutdown.begun)
    shared.dismiss(3)
    os.kill(os.getpid(), signal.SIGTERM)
    assert not worker.alive
    hooks.worker_exit(None, worker)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes when a test says so."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("flask_lifecycle._servers.gunicorn.connections.time", clock)
    return now


def at_end(sock: socket.socket) -> bool:
    """Whether a reader meets the end of this connection now."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_connections_of_gevent_that_wait_are_hung_up(now: list[float]) -> None:
    """When a gevent worker leaves, connections without a request are read no more once they have had their patience."""
    seen: list[Any] = []
    ours, theirs = socket.socketpair()

    def look(patience: float) -> bool:
        """Whether the connection is at its end, after this time."""
        now[0] += patience
        subject.hang_up(0.0, 0.0)
        return at_end(ours)

    def handle(listener: Any, client: Any, addr: Any) -> None:
        seen.append(look(1.9))
        worker.handle_request(None, None, client, None)
        seen.append(look(1.9))
        worker.handle_http2(None, client, None)
        worker.handle_request(None, None, client, None)
        seen.append(look(2.1))

    worker = FakeWorker(
        timeout_ctx=None, handle=handle,
        handle_request=lambda *_: seen.append(look(9.0)), handle_http2=lambda *_: seen.append(look(9.0)),
    )  # fmt: skip
    subject = hooks.worker.Connections(worker)
    with ours, theirs:
        worker.handle(None, ours, None)
        assert seen == [False, False, False, False, False, True]
        look(0.0)  # harmless


def test_a_connection_that_comes_to_a_leaving_worker_has_its_linger(listener: socket.socket, now: list[float]) -> None:
    """A gevent worker accepts for a second after it was asked to leave: its new connections are not hung up at once."""
    # Interleavings: if the request arrives between the accept and our look, the connection is not silent. If the look
    # comes first, the connection is silent; it was hung up as one that had waited since the worker was asked to leave.
    ended = list[bool]()

    def handle(_listener: Any, client: Any, _address: Any) -> None:
        for seconds in (0.0, 0.2, 0.1):
            now[0] += seconds
            subject.hang_up(0.25, closed=99.5)
            ended.append(at_end(client))

    worker = FakeWorker(timeout_ctx=None, handle=handle, handle_request=None, handle_http2=None)
    subject = hooks.worker.Connections(worker)
    with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        worker.handle(listener, accepted, None)
    assert ended == [False, False, True]


def test_a_request_that_begins_while_others_are_hung_up() -> None:
    """The bad interleaving: two connections are idle, and while the first is hung up the second gets a request."""
    (first, _), (second, client) = pairs = [socket.socketpair() for _ in range(2)]

    class Idle:
        fileno = first.fileno

        @property
        def _sock(self) -> socket.socket:
            client.send(b"G")
            return first

    worker = FakeWorker(keepalived_conns=deque(SimpleNamespace(sock=each) for each in (Idle(), second)))
    hooks.worker.Connections(worker).hang_up(0.0, 0.0)
    assert at_end(first)
    assert second.recv(1) == b"G"
    assert not at_end(second)
    for each in (*pairs[0], *pairs[1]):
        each.close()


@pytest.mark.parametrize("sends_on", [False, True])
def test_an_answered_connection_is_closed_when_its_client_has_the_answer(
    sends_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leaving worker waits neither for a client to close nor for two seconds, unless the client sends on."""
    closed = list[Any]()
    monkeypatch.setattr(util, "close_graceful", closed.append)
    subject = hooks.worker.Connections(FakeWorker())
    subject.leaving = True
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x" * sends_on)
        util.close_graceful(ours)
        assert (closed == [ours], ours.fileno() == -1) == (sends_on, not sends_on)
