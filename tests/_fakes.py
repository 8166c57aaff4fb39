"""What the unit tests put in the place of the clock, an application, a server and a process."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from werkzeug import Request
from werkzeug.test import TestResponse, create_environ

from flask_lifecycle import HealthCheckError, Lifecycle, RequestInfo, ShutdownReport, State, _servers
from flask_lifecycle._app import Application
from flask_lifecycle._config import Settings
from flask_lifecycle._core.deadline import Clock
from flask_lifecycle._core.feature import Feature
from flask_lifecycle._core.hooks import Hooks
from flask_lifecycle._core.inflight import Ledger, Load, count_requests
from flask_lifecycle._core.server import Server
from flask_lifecycle._core.shutdown import Shutdown, StopRequest
from flask_lifecycle._core.startup import StartupTasks
from flask_lifecycle._core.state import Event, StateMachine
from flask_lifecycle._core.work import WorkLedger
from flask_lifecycle._probes.listener import respond

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROOT = Path(__file__).parent.parent
# How long a test waits for what is about to happen, in seconds: what reaches it is a failure.
BOUND = 10.0


# What ``shutdown()`` says where it would wait for itself.
SELF_WAIT = (
    "shutdown() was called in a thread that the shutdown itself waits for (a request, a hook, a work item or the"
    " server's loop); call shutdown(wait=False) there."
)


def whole(text: str) -> str:
    """A pattern that matches this text and nothing around it."""
    return f"^{re.escape(text)}$"


def fails(check: Callable[[], Any], output: str) -> HealthCheckError:
    """Run a check that fails by raising, compare the whole public sentence, and return the error."""
    with pytest.raises(HealthCheckError, match=whole(output)) as caught:
        check()
    return caught.value


def until(condition: Callable[[], bool]) -> None:
    """Wait for what sends no wake-up; fail when it does not come."""
    deadline = time.monotonic() + BOUND
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        pause.wait(0.001)


class ManualClock(Clock):
    """Time passes only when a test says so. Whoever begins to wait says for how long in ``waits``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: queue.Queue[float] = queue.Queue()

    def monotonic(self) -> float:
        return self.now

    def wait(self, event: threading.Event, timeout: float) -> bool:
        until_then = self.now + timeout
        if timeout > 0 and not event.is_set():
            self.waits.put(timeout)
        bound = time.monotonic() + BOUND
        while not event.wait(0.001) and self.now < until_then:
            assert time.monotonic() < bound, f"nobody ended a wait of {timeout} s"
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def pass_wait(self) -> float:
        """Wait until somebody waits, let that time pass, and return it."""
        seconds = self.waits.get(timeout=BOUND)
        self.advance(seconds)
        return seconds


class StuckLedger(Ledger):
    """A ledger whose requests never end: waiting for them takes all the time there is."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock.monotonic)
        self._manual = clock

    def wait_idle(self, timeout: float) -> bool:
        self._manual.advance(timeout)
        return False


class FakeStartup:
    """A start-up that has succeeded."""

    succeeded = True
    runs_functions = False
    served_since: float | None = None

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine

    def begin(self) -> None:
        pass

    def run(self) -> None:
        self._machine.apply(Event.STARTED)

    ensure = run


class FakeMember:
    """One application, without Flask."""

    def __init__(self, clock: Clock | None = None, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.changes: list[tuple[State, State, str]] = []
        self.machine = StateMachine(ready=True, notify=lambda *change: self.changes.append(change))
        self.ledger = Ledger(clock.monotonic) if clock is not None else Ledger()
        self.hooks = Hooks()
        self.work = WorkLedger() if clock is None else WorkLedger(clock.monotonic)
        self.tasks = StartupTasks()
        self.served = 0
        self.reports: list[ShutdownReport] = []
        self.adaptive_delay: Any = None
        self.startup: Any = FakeStartup(self.machine)
        self.refused = 0
        self.health: Any = None
        self.probe_listener: Any = None

    def context(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def begin_drain(self, request: StopRequest) -> Callable[[], object]:
        return self.machine.change(Event.DRAIN, request.reason)[1]

    def refuse(self) -> None:
        self.refused += 1

    def stopped(self, report: ShutdownReport) -> None:
        self.reports.append(report)

    def open_or_fail(self) -> bool:
        return True

    def _nothing(self, **_arguments: Any) -> None:
        """What an application does that no test of a shutdown looks at."""

    open = begin_serving = check_setup = start_checks = after_fork = listener_closed = end = _nothing

    def probe_worker(self, path: str) -> str | None:
        return None


class FakeServer(Server):
    """A server that writes down which verbs it was asked for."""

    name = "fake"
    means = "made by a test"
    guarantee = "all connections"

    def __init__(self, ours: bool = True) -> None:
        self.ours = ours
        self.calls: list[tuple[Any, ...]] = []
        self.left: list[RequestInfo] = []
        self.pool = Load(0)
        self.canaries: list[Callable[[], None]] = []  # those that have not come back
        self.takes_canaries: bool | None = True
        self.probe_worker: Callable[[str], str | None] | None = None

    def use_probe_workers(self, probe_worker: Callable[[str], str | None]) -> None:
        self.probe_worker = probe_worker

    def announce(self) -> None:
        self.calls.append(("announce",))

    def stop_accepting(self, timeout: float) -> None:
        self.calls.append(("stop_accepting", timeout))

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self.calls.append(("wait_idle", timeout, linger))
        return not self.left

    def unfinished(self) -> Sequence[RequestInfo]:
        return self.left

    def load(self) -> Load | None:
        return self.pool

    def ping(self, done: Callable[[], None]) -> bool | None:
        if self.takes_canaries:
            self.canaries.append(done)
        return self.takes_canaries

    def stop(self) -> None:
        self.calls.append(("stop",))

    @property
    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


def coordinate(clock: Clock | None, *members: Any, keep: Any = None, leave: Any = None, **arguments: Any) -> Shutdown:
    """A shutdown of these applications, which calls ``keep`` and ``leave`` at its end."""
    end: Any = SimpleNamespace(keep=keep or (lambda report: None), leave=leave or (lambda report: None))
    return Shutdown(lambda: members, end=end, clock=clock, **arguments)


def begin(clock: Clock | None, *members: Any, server: Any = None, **arguments: Any) -> Shutdown:
    """Begin to shut these applications down."""
    shutdown = coordinate(clock, *members, **arguments)
    if server is not None:
        assert shutdown.attach(server)
    assert shutdown.begin(StopRequest("test"))
    return shutdown


def stop(*members: Any, clock: Clock | None = None, server: Any = None, **arguments: Any) -> ShutdownReport:
    """Shut these applications down and return the report."""
    return finish(begin(clock, *members, server=server, **arguments))


def finish(shutdown: Shutdown) -> ShutdownReport:
    """Wait for the end of a shutdown, its thread included."""
    assert shutdown.done.wait(BOUND), f"the shutdown is stuck in phase '{shutdown.phase}'"
    assert shutdown.thread is not None
    shutdown.thread.join(BOUND)
    return shutdown.wait()


def enter(ledger: Ledger, path: str = "/work", result: Iterable[bytes] = (b"x",)) -> Any:
    """Begin a request that goes through the middleware into this ledger; close what is returned to end it."""
    # The ledger keeps it, because a body that is dropped has ended.

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return result

    counted = count_requests(app, ledger, lambda path: None, lambda: True)
    body = counted(create_environ(path), lambda *_: lambda _data: None)
    vars(ledger).setdefault("kept", []).append(body)
    return body


def make_app(**config: Any) -> Flask:
    """A Flask application in testing mode: it shares no process and touches no signal."""
    app = Flask("testing")
    app.config.update({"TESTING": True, "LIFECYCLE_GRACE_PERIOD": 10.0, "LIFECYCLE_SHUTDOWN_DELAY": 0.0})
    app.config.update(config)

    @app.get("/work")
    def work() -> str:
        return "done"

    return app


def serve(**config: Any) -> tuple[Flask, Lifecycle]:
    """A testing application with a Lifecycle."""
    app = make_app(**config)
    return app, Lifecycle(app)


def get(app: Flask, path: str, **arguments: Any) -> TestResponse:
    """One request, its answer read and closed."""
    return app.test_client().open(path, buffered=True, **arguments)


def raiser(error: BaseException) -> Callable[..., Any]:
    """A function that raises this, whatever it is called with."""

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise error

    return fail


def state_of(app: Flask) -> Application:
    """What the extension keeps for an application."""
    state: Application = app.extensions["lifecycle"]
    return state


class LastReport(Feature):
    """The report of the process before this one, in place of a file."""

    def __init__(self, app: Flask, report: Any) -> None:
        self.last = report
        state_of(app).features["report file"] = self


def listener_of(*apps: Flask) -> WSGIApplication:
    """What the probe listener of applications serves, without its socket."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return respond([state_of(app).probes for app in apps], Request(environ))(environ, start_response)

    return answer


def use_clock(app: Flask, clock: Clock) -> Shutdown:
    """Give the process of a testing application another clock."""
    shutdown = state_of(app).process.shutdown
    shutdown.progress.clock = shutdown.delay.clock = clock
    return shutdown


@contextlib.contextmanager
def running(function: Callable[[], Any], name: str = "test") -> Iterator[threading.Thread]:
    """Run a function beside the test; what it raises, the test raises at the end."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, name=name, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(BOUND)
    assert not thread.is_alive(), f"'{name}' did not end"
    if raised:
        raise raised[0]


def in_thread(function: Callable[[], Any]) -> Any:
    """The result of a function in its own thread, as the engine runs every check."""
    returned: list[Any] = []
    with running(lambda: returned.append(function())):
        pass
    return returned[0]


def in_child(function: Callable[[], int]) -> int:
    """What a function returns in a forked child, which ends with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, since Python 3.12
        child = os.fork()
    if not child:
        try:
            os._exit(function())
        finally:
            os._exit(100)  # it has raised
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Served:
    """A server of ours that serves beside the test."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.address = ("127.0.0.1", int(runner.addresses()[0].rpartition(":")[2]))
        self.all_end = True  # whether every connection is to have ended with the drain
        self._draining = False

    def begin_drain(self) -> None:
        """Close the listener and hang up what is idle, as a shutdown would, but wait for nobody."""
        if not self._draining:
            self._draining = True
            self.runner.announce()
            self.runner.stop_accepting(BOUND)
            self.runner.wait_idle(0.0, 0.0)


@contextlib.contextmanager
def served(server: str, app: WSGIApplication, **options: Any) -> Iterator[Served]:
    """Serve an application on a free port until the test is over, and drain it then."""
    subject = Served(_servers.create(server, app, None, None, {"listen": "127.0.0.1:0", **options}))
    with running(subject.runner.serve, server):
        try:
            yield subject
            subject.begin_drain()
            assert subject.runner.wait_idle(BOUND if subject.all_end else 0.0, 0.0) is subject.all_end
        finally:
            subject.begin_drain()
            subject.runner.stop()


def run_python(
    code: str,
    *arguments: str,
    python: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    timeout: float = 3 * BOUND,
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with the package at hand."""
    return subprocess.run(
        [sys.executable, *python, "-c", code, *arguments],
        cwd=ROOT,
        # Unbuffered, because some leave by os._exit.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
