"""What the unit tests put in the place of the clock, an application, a server and a process."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask
from werkzeug.test import create_environ

from flask_lifecycle import RequestInfo, ShutdownReport, servers
from flask_lifecycle._app import AppState
from flask_lifecycle._config import Settings
from flask_lifecycle._deadline import Clock
from flask_lifecycle._hooks import Hooks
from flask_lifecycle._inflight import Ledger, Load
from flask_lifecycle._parties import FULL, Notice
from flask_lifecycle._shutdown import Coordinator
from flask_lifecycle._startup import StartupTasks
from flask_lifecycle._state import Event, State, StateMachine
from flask_lifecycle._work import WorkLedger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROOT = Path(__file__).parent.parent
# How long a test waits for what is about to happen, in seconds: what reaches it is a failure.
BOUND = 10.0


def whole(text: str) -> str:
    """A pattern that matches this text and nothing around it."""
    return f"^{re.escape(text)}$"


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


class FakeMember:
    """One application, without Flask."""

    def __init__(self, clock: Clock | None = None, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.changes: list[tuple[State, State, str]] = []
        self.machine = StateMachine(ready=True, notify=lambda *change: self.changes.append(change))
        self.ledger = Ledger(clock.monotonic) if clock is not None else Ledger()
        self.hooks = Hooks()
        self.work = WorkLedger() if clock is None else WorkLedger(clock.monotonic)
        self.tasks = StartupTasks(self.hooks.records)
        self.served = 0
        self.reports: list[ShutdownReport] = []
        self.notice: Notice | None = None
        self.draining = threading.Event()
        self.started = True
        self.served_since: float | None = None
        self.refused = 0
        self.withdrawn = 0
        self.health: Any = None
        self.probe_socket: socket.socket | None = None

    def context(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def begin_drain(self, reason: str) -> None:
        self.machine.apply(Event.DRAIN, reason)
        self.draining.set()

    def refuse(self) -> None:
        self.refused += 1

    def withdraw(self) -> None:
        self.withdrawn += 1

    def told(self, report: ShutdownReport) -> None:
        self.reports.append(report)

    def start(self) -> None:
        self.machine.apply(Event.STARTED)

    def see_to_start(self) -> None:
        self.start()

    def open_probe_listener(self) -> None:
        pass

    def start_probe_listener(self) -> None:
        pass

    def close_probe_listener(self) -> None:
        pass

    def after_fork(self, *, answers: bool = False) -> None:
        pass

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def lane(self, path: str) -> str | None:
        return None


class FakeServer:
    """A server that writes down which verbs it was asked for."""

    name = "fake"
    means = "made by a test"
    promise = FULL
    advice = ""

    def __init__(self, ours: bool = True) -> None:
        self.ours = ours
        self.calls: list[tuple[Any, ...]] = []
        self.left: list[RequestInfo] = []
        self.pool = Load(0)
        self.canaries: list[Callable[[], None]] = []  # those that have not come back
        self.takes_canaries: bool | None = True
        self.lane: Callable[[str], str | None] | None = None

    def use_lanes(self, lane: Callable[[str], str | None]) -> None:
        self.lane = lane

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

    def canary(self, done: Callable[[], None]) -> bool | None:
        if self.takes_canaries:
            self.canaries.append(done)
        return self.takes_canaries

    def stop(self) -> None:
        self.calls.append(("stop",))

    @property
    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


def coordinate(clock: Clock | None, *members: Any, **arguments: Any) -> Coordinator:
    """A coordinator of these members."""
    return Coordinator(lambda: members, clock=clock, **arguments)


def finish(coordinator: Coordinator) -> ShutdownReport:
    """Wait for the end of a shutdown, its thread included."""
    assert coordinator.done.wait(BOUND), f"the shutdown is stuck in phase '{coordinator.phase}'"
    assert coordinator.thread is not None
    coordinator.thread.join(BOUND)
    return coordinator.wait()


def enter(ledger: Ledger, path: str = "/work", result: Iterable[bytes] = (b"x",)) -> Any:
    """Begin a request that goes through the middleware into this ledger; close what is returned to end it."""
    from flask_lifecycle._inflight import count_requests

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return result

    return count_requests(app, ledger, lambda path: None, lambda: True)(
        create_environ(path), lambda *_: lambda _data: None
    )


def make_app(**config: Any) -> Flask:
    """A Flask application in testing mode: it shares no process and touches no signal."""
    app = Flask("testing")
    app.config.update({"TESTING": True, "LIFECYCLE_GRACE_PERIOD": 10.0, "LIFECYCLE_SHUTDOWN_DELAY": 0.0})
    app.config.update(config)

    @app.get("/work")
    def work() -> str:
        return "done"

    return app


def state_of(app: Flask) -> AppState:
    """What the extension keeps for an application."""
    state: AppState = app.extensions["lifecycle"]
    return state


def use_clock(app: Flask, clock: Clock) -> Coordinator:
    """Give the process of a testing application another clock."""
    coordinator = state_of(app).process.coordinator
    coordinator.clock = clock
    return coordinator


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
            loop = getattr(self.runner, "_loop", None)  # of waitress
            until(lambda: getattr(loop, "draining", True))


@contextlib.contextmanager
def served(server: str, app: WSGIApplication, **options: Any) -> Iterator[Served]:
    """Serve an application on a free port until the test is over, and drain it then."""
    subject = Served(servers.create(server, app, None, None, lambda path: None, {"listen": "127.0.0.1:0", **options}))
    with running(subject.runner.serve, server):
        try:
            yield subject
            subject.begin_drain()
            assert subject.runner.wait_idle(BOUND if subject.all_end else 0.0, 0.0) is subject.all_end
        finally:
            subject.begin_drain()
            subject.runner.stop()


def run_python(
    code: str, *arguments: str, python: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with the package at hand."""
    return subprocess.run(
        [sys.executable, *python, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=3 * BOUND,
        check=False,
    )
