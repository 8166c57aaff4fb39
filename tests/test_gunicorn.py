"""The parts of gunicorn's master and workers that we bring, on fakes of gunicorn; what they do together is live."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.errors import HaltServer
from gunicorn.workers.sync import SyncWorker

from flask_lifecycle import gunicorn as hooks
from flask_lifecycle._config import Settings
from flask_lifecycle._deadline import Clock, Deadline
from flask_lifecycle._hooks import HookRecord
from flask_lifecycle._parties import STARTED
from flask_lifecycle._process import Process
from flask_lifecycle.servers import _arbiter
from flask_lifecycle.servers import gunicorn as carriers
from flask_lifecycle.servers._arbiter import Listener, Master
from flask_lifecycle.servers._board import ABSENT, CLEAN, DELAYED, DELAYING, GONE, SERVING, UNCLEAN, Board
from flask_lifecycle.servers.found.gunicorn import find
from flask_lifecycle.servers.gunicorn import Worker, closing_answers, warn_of_timeout
from tests._fakes import BOUND, FakeMember, running, until, whole

# The file by whose time a worker of gunicorn shows that it lives.
with tempfile.TemporaryFile() as _file:
    _LIFE = os.dup(_file.fileno())
LIFE = SimpleNamespace(fileno=lambda: _LIFE)


class FakeArbiter:
    """gunicorn's master, as far as we touch it."""

    def __init__(self, *listeners: socket.socket, ages: tuple[int, ...] = ()) -> None:
        self.LISTENERS = [FakeListener(sock) for sock in listeners]
        self.WORKERS = {100 + age: SimpleNamespace(age=age) for age in ages}
        self.cfg = SimpleNamespace(address=[("127.0.0.1", 8000)], graceful_timeout=30, set=self._set)
        self.halts = 0  # how often a worker is found that could not start
        self.log = SimpleNamespace(info=self._note)
        self.systemd = False
        self.reexec_pid = self.master_pid = 0
        self.queued: list[int] = []
        self.calls: list[Any] = []

    def _note(self, text: str, *arguments: Any) -> None:
        self.calls.append(text % arguments)

    def _set(self, name: str, value: Any) -> None:
        setattr(self.cfg, name, value)

    def reap_workers(self) -> None:
        if self.halts:
            raise HaltServer("Worker failed to boot.", 3)

    def signal(self, signum: int, frame: Any) -> None:
        self.queued.append(signum)

    def handle_term(self) -> None:
        self.calls.append("halt")

    def kill_worker(self, pid: int, signum: int) -> None:
        self.calls.append((pid, signum))

    def kill_workers(self, signum: int) -> None:
        for pid in self.WORKERS:
            self.kill_worker(pid, signum)

    def stop(self, graceful: bool = True) -> None:
        self.calls.append(("stop", graceful))


class FakeListener:
    """gunicorn's wrapper of a listening socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def board() -> Board:
    """What master and workers share, with the numbers of some settings on it."""
    board = Board()
    board.publish([Settings(grace_period=10.0, hook_reserve=2.0, shutdown_delay=3.0)])
    return board


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP listener."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture(autouse=True)
def no_trace() -> Iterator[None]:
    """Give back the signals and what the hooks keep."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    for number, handler in before.items():
        signal.signal(number, handler)
    hooks._here.board = hooks._here.master = hooks._here.part = None


def worker_of(board: Board, age: int = 1, **more: Any) -> Worker:
    return Worker(SimpleNamespace(age=age, sockets=[], tmp=LIFE, **more), board, lambda: 1)


# -- what is shared ---------------------------------------------------------------------------------------------------


def test_the_board_tells_children(board: Board) -> None:
    """What one process writes another reads, and all hear of the one byte, which stays."""
    assert (board.limits, board.told_at, board.get(7)) == ((3.0, 8.0, 10.0), 0.0, 0)
    child = os.fork()
    if not child:
        board.set(7, SERVING)
        board.tell()
        board.tell()
        os._exit(0)
    os.waitpid(child, 0)
    assert (board.get(7), board.get(8), board.wait(0.0), board.wait(0.0)) == (SERVING, 0, True, True)
    assert 0.0 < board.told_at <= time.monotonic()
    assert len(os.read(board.fileno(), 2)) == 1


def test_one_acts_for_all(board: Board) -> None:
    """The first that ends waits for the end of all others, and no other one, nor twice; who leaves alone does not."""
    settings = [Settings()]
    assert (board.last(1, BOUND), board.claim()) == (False, False)  # nobody stops, nothing is wanted
    board.publish(settings, True)
    board.stops([])
    assert not board.last(1, BOUND)
    board.set(2, GONE)
    board.stops([3, 1])
    board.set(3, GONE)
    fcntl.lockf(board._claim, fcntl.LOCK_EX)
    child = os.fork()
    if not child:  # another worker, while this one has the lock
        os._exit(int(board.last(3, BOUND)))
    assert os.waitpid(child, 0)[1] == 0
    assert board.last(1, BOUND)
    board.publish(settings, True)  # by a worker that comes late
    assert not board.claim()


def test_one_acts_for_all_in_time(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that does not end does not keep another from acting for all."""
    board.publish([Settings()], True)
    board.stops([1, 2])
    assert board.last(1, 0.02)
    assert caplog.messages == ["workers are left, and the on_shutdown functions of the process group run all the same"]


# -- the worker -------------------------------------------------------------------------------------------------------


def test_a_worker_waits_for_the_master(board: Board) -> None:
    """It tells when it delays and no longer does, stops accepting when the master says so, and is idle at the end."""
    worker = worker_of(board)
    worker.announce()
    assert (worker.closing, board.get(1)) == (True, DELAYING)
    board.tell()
    with running(lambda: worker.stop_accepting(BOUND)):
        until(lambda: board.get(1) == DELAYED)
        worker.leaving()
    assert not worker.wait_idle(0.0, 0.0)
    sock = socket.socket()
    worker._worker.sockets.append(sock)
    worker.left()
    assert worker.wait_idle(0.0, 0.0)
    assert sock.fileno() == -1
    worker.stop()  # nothing: it has left
    assert (worker.load(), worker.canary(lambda: None)) == (None, None)


def test_a_worker_that_stops_by_itself_ends_its_loop(board: Board) -> None:
    """Where no master has spoken it sends itself what the master would send; when it is over, once more."""
    worker, got = worker_of(board), list[int]()

    def handle_exit(signum: int, frame: Any) -> None:
        got.append(signum)
        worker.leaving()

    signal.signal(signal.SIGTERM, handle_exit)
    worker.stop_accepting(BOUND)
    assert got == [signal.SIGTERM]
    worker.stop()
    assert got == [signal.SIGTERM] * 2


def test_what_a_leaving_worker_has_accepted(board: Board) -> None:
    """Connections that are neither idle nor in the application count while it leaves, and at no other time."""
    worker = worker_of(board, nr_conns=4, keepalived_conns=[object()])
    assert worker.unfinished() == ()
    worker.leaving()
    assert [info.stage for info in worker.unfinished()] == ["receiving"] * 2
    worker.left()
    assert worker.unfinished() == ()


class FakeServerSocket:
    """gunicorn's wrapper of a listening socket, as workers have it."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def close(self) -> None:
        self.sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def test_the_last_to_come_are_accepted(board: Board, listener: socket.socket) -> None:
    """When all stop a worker takes what still waits, closes the listener, and serves it only then."""
    worker, served = worker_of(board), list[Any]()
    worker._worker.sockets = [FakeServerSocket(listener)]

    def serve(accepted: Any) -> None:
        assert listener.fileno() == -1
        served.append(accepted.getsockname())
        accepted.accept()[0].close()

    worker._worker.accept = serve
    name = listener.getsockname()
    board.tell()
    with socket.create_connection(name), socket.create_connection(name):
        worker.left()
        worker.left()
    assert served == [name] * 2
    with pytest.raises(BlockingIOError, match="closed"):
        worker._worker.sockets[0].accept()


def test_the_last_to_come_are_accepted_by_a_loop(board: Board, listener: socket.socket) -> None:
    """A worker with threads does so in its loop, and leaves it then, also if nothing can be accepted."""
    calls, deferred = list[Any](), list[Any]()
    worker = worker_of(
        board,
        method_queue=SimpleNamespace(defer=lambda *call: deferred.append(call)),
        set_accept_enabled=calls.append,
        handle_exit=lambda *signal: calls.append("exit"),
        accept=lambda accepted: accepted.accept()[0].close(),
        tpool=None,
    )
    worker._worker.sockets = [FakeServerSocket(listener)]
    worker.leave(signal.SIGTERM, None)
    assert (calls, deferred) == (["exit"], [])  # others go on accepting
    board.tell()
    with socket.create_connection(listener.getsockname()):
        worker.leave(signal.SIGTERM, None)
        for function, *arguments in deferred:
            function(*arguments)
    assert calls == ["exit", False, "exit"]


def test_a_sign_of_life(board: Board) -> None:
    """A worker that runs its hooks shows that it lives, although gunicorn has closed its own file for that."""
    worker = worker_of(board)
    os.utime(LIFE.fileno(), (0, 0))
    worker.live()
    assert os.fstat(LIFE.fileno()).st_mtime > 0.0


def test_answers_tell_connections_to_close(board: Board) -> None:
    """From the announcement on an answer is closed by gunicorn's own means, where the protocol has such."""
    worker, forced, status = worker_of(board), list[bool](), list[str]()

    class Response:
        def force_close(self) -> None:
            forced.append(True)

        def start_response(self, text: str, headers: Any) -> None:
            status.append(text)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return [b""]

    wrapped: Any = closing_answers(app, worker)
    wrapped({}, Response().start_response)
    assert forced == []
    worker.announce()
    wrapped({}, Response().start_response)
    wrapped({}, lambda text, headers: status.append(text))
    assert (forced, status) == ([True], ["200 OK"] * 3)


# -- the master -------------------------------------------------------------------------------------------------------


def test_without_our_applications_gunicorn_stops_at_once() -> None:
    """Where no worker has ever taken part SIGTERM does what it does without us."""
    server, board = FakeArbiter(ages=(1,)), Board()
    board.set(1, ABSENT)
    master = Master(server, board)
    master.install()
    server.handle_term()
    until(lambda: server.queued == [signal.SIGTERM])
    server.handle_term()
    server.stop()
    assert server.calls == ["halt", ("stop", True)]
    assert master.exit_code == 0


def test_a_stop_from_signal_to_end(board: Board, listener: socket.socket) -> None:
    """The signal tells the workers; the master ticks until none delays and nothing waits, and stops then."""
    server = FakeArbiter(listener, ages=(1, 2))
    for age in (1, 2):
        board.set(age, SERVING)
    master = Master(server, board)
    master.install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (server.queued, board.wait(0.0)) == ([signal.SIGTERM], True)
    server.handle_term()
    server.handle_term()  # a second one
    assert server.calls == []
    for age in (1, 2):
        board.set(age, DELAYED)
    until(lambda: server.queued == [signal.SIGTERM] * 2)
    server.handle_term()
    server.stop()
    assert server.calls[0] in ("listener closed (no device)", "listener closed (quiet period)")
    assert server.calls[1:] == ["halt", (101, signal.SIGTERM), (102, signal.SIGTERM), ("stop", True)]
    assert master.exit_code == 1
    for age in (1, 2):
        board.set(age, CLEAN)
    assert master.exit_code == 0
    board.set(2, UNCLEAN)
    assert master.exit_code == 1


def test_workers_that_end_at_once(board: Board, listener: socket.socket) -> None:
    """Their end is seen before gunicorn looks, when the listener is closed, and none is told twice."""
    server = FakeArbiter(listener, ages=(1,))
    master = Master(server, board)
    master.install()
    board.set(1, CLEAN)
    assert not master._step(0.0)
    master._finished = True
    looks = []

    def look() -> None:
        looks.append(listener.fileno())
        if len(looks) == 3:
            server.WORKERS.clear()

    server.reap_workers = look  # type: ignore[method-assign]  # a fake's
    server.stop()
    server.kill_worker(101, signal.SIGTERM)
    server.kill_worker(101, signal.SIGKILL)
    master._tick(signal.SIGALRM, None)  # one that was due when the stop began
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    assert looks == [-1] * 3
    assert (server.LISTENERS, server.calls) == ([], [(101, signal.SIGTERM), ("stop", True), (101, signal.SIGKILL)])


def test_the_master_does_not_wait_for_ever(board: Board, listener: socket.socket) -> None:
    """A worker that never ends its delay, and a queue that nobody serves, hold the master for as long as they may."""
    server = FakeArbiter(listener, ages=(1,))
    board.set(1, DELAYING)
    master = Master(server, board)
    with socket.create_connection(listener.getsockname()):
        assert not master._step(8.9)
        assert master._step(9.1)
        board.set(1, DELAYED)
        assert not master._step(7.9)


def test_workers_that_are_all_being_replaced(board: Board, listener: socket.socket) -> None:
    """Where a signal finds none but new workers what waits is waited for all the same."""
    server = FakeArbiter(listener, ages=(1,))
    master = Master(server, board)
    master.install()
    with socket.create_connection(listener.getsockname()):
        master.term()
        assert server.calls == []
        assert not master._step(1.0)


def test_a_tick_that_fails_stops(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in a tick neither ends the master's loop nor holds it: gunicorn stops as ever."""
    server = FakeArbiter()
    master = Master(server, board)
    signal.signal(signal.SIGALRM, lambda signum, frame: None)
    monkeypatch.setattr(master, "_step", lambda now: 1 / 0)
    master._tick(signal.SIGALRM, None)
    master._tick(signal.SIGALRM, None)  # until gunicorn has heard it
    assert server.queued == [signal.SIGTERM] * 2
    master.stop()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    "shared", [{"systemd": True}, {"reexec_pid": 1}, {"master_pid": os.getppid()}, {"address": [3]}]
)
def test_listeners_of_others_are_left_alone(board: Board, listener: socket.socket, shared: dict[str, Any]) -> None:
    """Given sockets, and those that another master has as well, are neither filtered nor waited for."""
    server = FakeArbiter(listener)
    server.cfg.address = shared.pop("address", server.cfg.address)
    vars(server).update(shared)
    with socket.create_connection(listener.getsockname()):
        assert Master(server, board)._step(0.0)


def test_the_listeners_of_a_master_that_has_gone_are_ours(board: Board, listener: socket.socket) -> None:
    """The new master has them for itself as soon as the one before it has gone, whenever gunicorn notes that."""
    server = FakeArbiter(listener)
    server.master_pid = 1 << 30
    with socket.create_connection(listener.getsockname()):
        assert not Master(server, board)._step(0.0)


def test_a_stop_before_anything_is_loaded(listener: socket.socket) -> None:
    """Nobody has to notice; what waits is waited for as long as gunicorn waits for a worker."""
    server = FakeArbiter(listener, ages=(1,))
    master = Master(server, Board())
    with socket.create_connection(listener.getsockname()):  # from now on nobody can
        assert [master._step(0.0), master._step(29.0), master._step(30.0)] == [False, False, True]
        listener.accept()[0].close()
    assert master._step(29.0)


def test_a_signal_in_a_child_that_has_no_handlers_yet(board: Board) -> None:
    """A worker that is signalled as soon as it is forked leaves, and tells nobody to stop."""
    master = Master(FakeArbiter(), board)
    child = os.fork()
    if not child:
        master._signalled(signal.SIGTERM, None)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert not board.wait(0.0)


def test_a_tick_is_not_interrupted_by_the_next(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is wound up when a tick is over: on a busy machine ticks would nest otherwise, without end."""
    master = Master(FakeArbiter(), board)
    running = []

    def step(now: float) -> bool:
        running.append(signal.getitimer(signal.ITIMER_REAL))
        return False

    monkeypatch.setattr(master, "_step", step)
    monkeypatch.setattr(_arbiter, "_TICK", BOUND)
    master._begin()
    signal.setitimer(signal.ITIMER_REAL, 0.0)  # it has gone off
    master._tick(signal.SIGALRM, None)
    assert running == [(0.0, 0.0)]
    assert 0.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= BOUND
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.0


def test_a_worker_that_cannot_start(board: Board, listener: socket.socket) -> None:
    """All stop, in the way of every stop while others serve, and with gunicorn's own exit code."""
    server = FakeArbiter(listener, ages=(1,))
    board.set(1, SERVING)
    master = Master(server, board)
    master.install()
    server.halts = 1
    server.reap_workers()
    server.reap_workers()  # another one, meanwhile
    assert board.wait(0.0)
    assert not master._step(board.told_at)
    board.set(1, 0)  # and only such come now
    until(lambda: server.queued == [signal.SIGTERM])
    with pytest.raises(HaltServer, match="Worker failed to boot"):
        server.handle_term()
    server.stop()
    board.set(1, UNCLEAN)
    assert master.exit_code == 0  # gunicorn has its own


def test_a_worker_that_cannot_start_while_all_stop(board: Board) -> None:
    """That is no reason of its own then."""
    server = FakeArbiter()
    Master(server, board).install()
    server.halts = 1
    server.stop(False)
    server.reap_workers()
    assert not board.wait(0.0)


@pytest.mark.parametrize(("age", "timeout"), [(3.2, 7), (60.0, 1), (-25.0, 30)])
def test_the_master_waits_no_longer_than_the_grace_period(board: Board, age: float, timeout: int) -> None:
    """A worker that hangs is killed by then, whatever gunicorn would give it."""
    server = FakeArbiter()
    master = Master(server, board)
    master._finished, master._began = True, time.monotonic() - age
    master.stop()
    assert server.cfg.graceful_timeout == timeout


def test_a_unix_listener(board: Board, tmp_path: Path) -> None:
    """Its path is removed first, its queue is waited for, and gunicorn is not to remove the path once more."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as client:
        sock.bind(path)
        sock.listen()
        client.connect(path)
        server = FakeArbiter(sock)
        master = Master(server, board)
        assert not master._step(0.0)
        assert not os.path.exists(path)
        sock.accept()[0].close()
        assert master._step(0.0)
        master.stop(False)
        assert (server.LISTENERS, server.calls) == ([], [("stop", False)])
        assert sock.fileno() == -1


def test_an_abstract_unix_listener_has_no_path() -> None:
    """There is nothing to remove."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0lifecycle-test-{os.getpid()}")
        sock.listen()
        found = Listener(FakeListener(sock), 0.0)
        assert (found.path, found.method, found.done(0.0)) == (None, "unix", True)


def test_a_listener_that_is_not_deaf(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done when nothing has waited for the quiet period, has emptied after a second, or does not in two."""
    monkeypatch.setattr(_arbiter, "deafen", lambda sock: None)
    closing = Listener(FakeListener(listener), 0.0)
    assert [closing.done(0.05), closing.done(0.11)] == [False, True]
    with socket.create_connection(listener.getsockname()):
        assert [closing.done(0.2), closing.done(1.0), closing.done(2.0)] == [False, False, True]  # a storm
        listener.accept()[0].close()
    assert [closing.done(2.05), closing.done(2.15)] == [True, True]


def test_a_listener_that_is_deaf(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done when twice in a row nobody was seen connecting, or after a second."""
    monkeypatch.setattr(_arbiter, "deafen", lambda sock: "no device")
    seen = [True, False, False, True]
    monkeypatch.setattr(_arbiter, "handshakes", lambda sock: seen.pop(0))
    closing = Listener(FakeListener(listener), 0.0)
    assert [closing.done(0.1), closing.done(0.1), closing.done(0.1)] == [False, False, True]
    assert Listener(FakeListener(listener), 0.0).done(1.0)


# -- the warning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "timeout", "needed"), [(3.0, 22.0, None), (3.0, 21.5, 22), ("auto", 24.0, 25), ("auto", 25.0, None)]
)
def test_the_warning_names_the_number(
    delay: Any, timeout: float, needed: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """gunicorn waits from the end of the delay on; one that ends when it may may end at once."""
    warn_of_timeout(timeout, [Settings(grace_period=25.0, shutdown_delay=delay)])
    expected = (
        f"gunicorn's graceful_timeout is {timeout:g} s, and a worker may need {needed} s after the delay; set"
        f" 'graceful_timeout' to {needed}, or a shorter 'LIFECYCLE_GRACE_PERIOD'."
    )
    assert caplog.messages == ([] if needed is None else [expected])


# -- the hooks --------------------------------------------------------------------------------------------------------


class FakeGunicornWorker(SimpleNamespace):
    """gunicorn's worker, as far as we touch it."""

    def __init__(self, age: int = 2) -> None:
        cfg = SimpleNamespace(graceful_timeout=30)
        super().__init__(age=age, sockets=[], cfg=cfg, wsgi=lambda environ, start: [], alive=True, tmp=LIFE)

    def handle_exit(self, signum: int, frame: Any) -> None:
        self.alive = False


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> tuple[Process, FakeMember]:
    """A process that touches no signals, with one application, in the place of this one."""
    process, member = Process(signals=False), FakeMember(grace_period=20.0, hook_reserve=1.0)
    process.join(member, ())
    monkeypatch.setattr(hooks, "this_process", process)
    return process, member


def test_hooks_without_a_master_do_nothing() -> None:
    """Whoever calls them where no master was made, or in a worker without an application, loses nothing."""
    worker = FakeGunicornWorker()
    hooks.pre_fork(None, worker)
    hooks.post_worker_init(worker)
    hooks.post_request(worker, None, {}, None)
    hooks.worker_exit(None, worker)
    hooks.on_exit(None)
    assert hooks._here.part is None


def test_threads_of_the_master_alone_are_named(
    process: tuple[Process, FakeMember], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One warning names the threads that an application has started in the master; ours and those of none are none."""
    free = threading.Event()
    threads = [threading.Thread(target=free.wait, args=(BOUND,), name=name) for name in ("poller", "lifecycle-lookout")]
    for thread in threads:
        thread.start()
    hooks.when_ready(FakeArbiter())
    monkeypatch.setattr(process[0], "_members", [])
    hooks.when_ready(FakeArbiter())
    free.set()
    for thread in threads:
        thread.join(BOUND)
    assert [record.getMessage() for record in caplog.records] == [
        "threads that were started before the fork are in no worker: poller; start them in an on_startup function, or"
        " load the application without --preload."
    ]


def test_the_master_takes_over(process: tuple[Process, FakeMember], monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes what is shared, clears the byte of each new worker, and leaves with what its workers say."""
    server = FakeArbiter()
    hooks.when_ready(server)
    board, master = hooks._here.board, hooks._here.master
    assert board is not None
    assert master is not None
    board.set(5, CLEAN)
    board.dismiss(5)
    hooks.pre_fork(server, FakeGunicornWorker(5))
    assert (board.get(5), board.dismissed(5)) == (0, False)
    hooks.on_exit(server)
    monkeypatch.setattr(Master, "exit_code", 1)
    with pytest.raises(SystemExit, match=whole("1")):
        hooks.on_exit(server)
    hooks.post_fork(server, None)
    assert (hooks._here.master, signal.getsignal(signal.SIGALRM)) == (None, signal.SIG_DFL)


def test_a_worker_from_load_to_exit(process: tuple[Process, FakeMember], board: Board) -> None:
    """It is ready without a request, begins by the master's byte with a delay, and holds the main thread at its end."""
    carried, member = process
    hooks._here.board = board
    worker = FakeGunicornWorker(1)
    hooks.post_worker_init(worker)
    until(lambda: member.machine.reached_ready)
    assert board.get(1) == SERVING
    hooks.post_request(worker, None, {}, None)  # no end: it goes on
    board.tell()
    until(lambda: board.get(1) == DELAYED)
    assert (carried.coordinator.signal, carried.coordinator.delayed) == (signal.SIGTERM, True)
    os.kill(os.getpid(), signal.SIGTERM)  # by somebody who signals all processes
    assert worker.alive
    board.dismiss(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert not worker.alive
    hooks.worker_exit(None, FakeGunicornWorker())  # of another
    hooks.worker_exit(None, worker)
    assert board.get(1) == CLEAN
    assert [report.exit_code for report in member.reports] == [0]


@pytest.mark.parametrize("told", [False, True])
def test_a_worker_that_somebody_else_signals(process: tuple[Process, FakeMember], board: Board, told: bool) -> None:
    """It waits a moment for the master; without its word it leaves alone, with it it stays through the delay."""
    carried, _member = process
    hooks._here.board = board
    worker = FakeGunicornWorker()
    hooks.post_worker_init(worker)
    os.kill(os.getpid(), signal.SIGTERM)
    assert worker.alive
    assert hooks._here.part is not None
    woken = hooks._here.part._wake_read
    until(lambda: not select.select([woken], [], [], 0.0)[0])  # the watcher has heard it, and waits for the master
    if told:
        board.tell()
    until(lambda: carried.coordinator.begun)
    assert carried.coordinator.delayed is told
    assert worker.alive is told
    board.dismiss(2)
    hooks.worker_exit(None, worker)
    os.kill(os.getpid(), signal.SIGTERM)
    until(lambda: not any(thread.name == "lifecycle-gunicorn" for thread in threading.enumerate()))


def test_the_master_marks_whom_it_dismisses(board: Board) -> None:
    """A worker is to know a SIGTERM of its master's; other signals, and workers that are gone, are no such."""
    server = FakeArbiter(ages=(1, 2))
    Master(server, board).install()
    server.kill_worker(101, signal.SIGTERM)
    server.kill_worker(102, signal.SIGUSR1)
    server.kill_worker(103, signal.SIGTERM)
    assert [board.dismissed(age) for age in (1, 2, 3)] == [True, False, False]
    assert server.calls == [(101, signal.SIGTERM), (102, signal.SIGUSR1), (103, signal.SIGTERM)]


def test_a_worker_that_is_signalled_while_it_loads(process: tuple[Process, FakeMember], board: Board) -> None:
    """It has begun nothing if the master has dismissed it alone; if all stop it serves what waits; else it goes on."""
    carried, _member = process
    hooks._here.board = board
    worker = FakeGunicornWorker(3)
    worker.alive = False
    board.dismiss(3)
    hooks.post_worker_init(worker)
    assert (hooks._here.part, board.get(3), worker.alive) == (None, 0, False)
    board.clear(3)
    board.tell()
    hooks.post_worker_init(worker)
    assert worker.alive
    until(lambda: carried.coordinator.begun)
    board.dismiss(3)
    os.kill(os.getpid(), signal.SIGTERM)
    assert not worker.alive
    hooks.worker_exit(None, worker)


def test_a_worker_whose_start_fails(process: tuple[Process, FakeMember], board: Board) -> None:
    """gunicorn is told that it could not boot, because the next one could not either."""
    _carried, member = process
    member.hooks.records.append(HookRecord("open", "startup", "failed", 0.0))
    hooks._here.board = board
    worker = FakeGunicornWorker()
    hooks.post_worker_init(worker)
    worker.alive = False
    with pytest.raises(SystemExit, match=whole("3")):
        hooks.worker_exit(SimpleNamespace(WORKER_BOOT_ERROR=3), worker)
    until(lambda: not any(thread.name == "lifecycle-gunicorn" for thread in threading.enumerate()))


def test_the_master_acts_for_all(process: tuple[Process, FakeMember]) -> None:
    """If no worker has it does, where it has loaded the application; else it says so; both within what is left."""
    carried, member = process
    calls, server = list[str](), FakeArbiter()
    server.log.error = calls.append
    hooks.when_ready(server)
    board = hooks._here.board
    assert board is not None
    member.hooks.add("shutdown", lambda: calls.append("once"), "once", None).group = True
    board.publish([member.settings], True)
    assert member.hooks.for_group
    hooks.on_exit(server)
    hooks.on_exit(server)
    assert calls == ["once"]
    assert not carried.coordinator.last_of_group(Deadline(Clock(), 0.0))
    hooks.when_ready(server)
    assert hooks._here.board is not None
    hooks._here.board.publish([member.settings], True)
    carried._members.clear()
    with pytest.raises(SystemExit, match=whole("1")):
        hooks.on_exit(server)
    assert calls == ["once", "No worker was left to run the on_shutdown functions of the process group."]


def test_the_workers_that_end_are_noted(board: Board) -> None:
    """The master notes who has ended, however it was found, and keeps what it said."""
    server = FakeArbiter(ages=(1, 2))
    master = Master(server, board)
    master.install()
    board.set(1, CLEAN)
    board.set(2, UNCLEAN)
    master._stopped = [1, 2]
    master._reap = lambda: server.WORKERS.pop(101)
    server.reap_workers()
    master._kill = lambda pid, signum: server.WORKERS.pop(pid)
    server.kill_worker(102, signal.SIGKILL)
    assert (board.get(1), board.get(2), master.exit_code) == (GONE, GONE, 1)
    master._ended[2] = CLEAN
    assert master.exit_code == 0


def test_a_worker_that_comes_late(process: tuple[Process, FakeMember], board: Board) -> None:
    """One that is forked when the others have been stopping for a while has what is left of the grace period."""
    carried, _member = process
    carried.stop("SIGTERM", signal.SIGTERM, delay=True, late=15.0)
    remaining = carried.coordinator.remaining()
    assert remaining is not None
    assert remaining <= 5.0
    carried.coordinator.wait()


def test_a_worker_that_is_recycled(process: tuple[Process, FakeMember], board: Board) -> None:
    """After its last request it begins by itself, without a delay."""
    carried, _member = process
    hooks._here.board = board
    worker = FakeGunicornWorker()
    hooks.post_worker_init(worker)
    worker.alive = False
    hooks.post_request(worker, None, {}, None)
    until(lambda: carried.coordinator.begun)
    hooks.worker_exit(None, worker)
    assert (carried.coordinator.reason, carried.coordinator.delayed) == ("gunicorn ends this worker", False)
    until(lambda: not any(thread.name == "lifecycle-gunicorn" for thread in threading.enumerate()))


def test_a_worker_that_has_been_stopped_before_it_serves(process: tuple[Process, FakeMember], board: Board) -> None:
    """A shutdown that has begun while the application was loaded is over before anything is carried."""
    carried, member = process
    carried.shutdown("early", wait=True)
    assert not carried.carry(worker_of(board))
    assert not member.machine.reached_ready


def test_a_probe_port_that_is_taken(
    process: tuple[Process, FakeMember], board: Board, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot listen for probes says so, and serves all the same."""
    carried, member = process

    def refuse() -> None:
        raise OSError(98, "taken")

    monkeypatch.setattr(member, "open_probe_listener", refuse)
    assert carried.carry(worker_of(board))
    until(lambda: member.machine.reached_ready)
    assert caplog.messages == ["[Errno 98] taken"]


def test_a_worker_without_our_hooks_is_found() -> None:
    """It is the one whose process this is, from when it loads the application, and serves when it has; neither its
    master is one, nor a worker that could not load it.
    """
    mine, other = (SyncWorker.__new__(SyncWorker) for _ in range(2))
    mine.pid, mine.booted = "[booting]", False
    other.pid = os.getppid()
    assert find() is None
    mine.pid = os.getpid()
    assert find() is None
    mine.app = SimpleNamespace(wsgi=find)
    mine.load_wsgi()
    found = mine.wsgi
    assert (found.name, found.promise, found.serving()) == ("gunicorn", STARTED, False)
    mine.booted = True
    assert found.serving()
    assert find() is not None


# -- gevent workers ---------------------------------------------------------------------------------------------------


def test_connections_that_wait_are_hung_up(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a gevent worker leaves, connections without a request are read no more once they have had their patience."""
    now = [100.0]
    monkeypatch.setattr(carriers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    seen: list[Any] = []
    ours, theirs = socket.socketpair()

    def look(patience: float) -> bool:
        """Whether the connection is at its end, so long after this."""
        now[0] += patience
        carrier._waiting.hang_up()  # type: ignore[union-attr]  # it is one of gevent
        ours.setblocking(False)
        try:
            return ours.recv(1) == b""
        except BlockingIOError:
            return False

    def handle(listener: Any, client: Any, addr: Any) -> None:
        seen.append(look(1.9))
        worker.handle_request(None, None, client, None)
        seen.append(look(1.9))
        worker.handle_http2(None, client, None)
        worker.handle_request(None, None, client, None)
        seen.append(look(2.1))

    worker = SimpleNamespace(
        age=1, sockets=[], tmp=LIFE, timeout_ctx=None, handle=handle,
        handle_request=lambda *_: seen.append(look(9.0)), handle_http2=lambda *_: seen.append(look(9.0)),
    )  # fmt: skip
    carrier = Worker(worker, board, lambda: 1)
    with ours, theirs:
        worker.handle(None, ours, None)
        assert seen == [False, False, False, False, False, True]
        carrier._waiting._since[ours] = 0.0  # type: ignore[union-attr]
        ours.close()
        carrier._waiting.hang_up()  # type: ignore[union-attr]  # harmless


def test_who_waits_holds_no_loop(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait are looked at until gunicorn's loop has ended; a worker that is not gevent's has none."""
    monkeypatch.setattr(carriers, "_PATIENCE", 0.0)
    worker_of(board).hang_up_waiting()
    carrier = worker_of(board, timeout_ctx=None, handle=None, handle_request=None)
    assert carrier._waiting is not None
    monkeypatch.setattr(carrier._waiting, "hang_up", carrier._left.set)
    carrier.hang_up_waiting()
