"""The messages to systemd, on a real datagram socket and a manual clock."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flask_lifecycle import HookRecord, Lifecycle, State
from flask_lifecycle._core.shutdown import StopRequest
from flask_lifecycle._core.state import Event
from flask_lifecycle._monitors.systemd import Notifier
from tests._fakes import BOUND, FakeMember, ManualClock, coordinate, enter, make_app, running, state_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is the subject")


class Receiver:
    """The socket of the service manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name)
        self._socket.setblocking(False)

    def datagrams(self) -> list[str]:
        """The datagrams since the last call."""
        found = []
        try:
            while True:
                found.append(self._socket.recv(65536).decode())
        except BlockingIOError:
            return found

    def fill(self) -> None:
        """Fill its queue."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"noise", socket.MSG_DONTWAIT, self._socket.getsockname())

    def close(self) -> None:
        self._socket.close()


class FakeHealth:
    """Liveness as the test sets it."""

    def __init__(self) -> None:
        self.failing = ""
        self.asked = 0
        self.inside: Callable[[], object] = lambda: None

    def report(self, group: str) -> Any:
        assert group == "live"
        self.asked += 1
        self.inside()
        checks = [SimpleNamespace(name=self.failing, status="fail")] if self.failing else []
        return SimpleNamespace(status="fail" if checks else "pass", checks=checks)


class FakeProcess:
    """Applications and their shutdown, which begins but goes no further by itself."""

    def __init__(self, applications: int = 1) -> None:
        self.clock = ManualClock()
        self.made = [FakeMember(self.clock, grace_period=25.0) for _ in range(applications)]
        for member in self.made:
            member.health = FakeHealth()
        self.shutdown = coordinate(self.clock)
        self.shutdown.applications = self.applications
        self.owner = ""
        self.shutdown._run = lambda deadline: None  # type: ignore[method-assign]

    def applications(self) -> list[FakeMember]:
        return self.made

    def begin_stop(self) -> None:
        self.shutdown.begin(StopRequest("SIGTERM"))
        assert self.shutdown.thread is not None
        self.shutdown.thread.join(BOUND)
        self.shutdown.progress.enter("drain")


class Subject:
    """A notifier, its process and the receiver. The test takes the part of its threads."""

    def __init__(self, receiver: Receiver, applications: int = 1, **environ: str) -> None:
        self.receiver = receiver
        process: Any = FakeProcess(applications)
        self.process: FakeProcess = process
        self.clock = self.process.clock
        self.app = self.process.made[0]
        variables = {"NOTIFY_SOCKET": receiver.name, "SYSTEMD_EXEC_PID": str(os.getpid()), **environ}
        self.notifier = Notifier(process, variables, self.clock)
        for scheduler in (self.notifier._sender, self.notifier._heartbeats):
            scheduler.wake = lambda: None  # type: ignore[method-assign]
        self.notifier.begin()

    def look(self) -> list[list[str]]:
        """One look of the notifier; the lines of its datagrams."""
        self.pause = self.notifier._tick()
        return [datagram.split("\n") for datagram in self.receiver.datagrams()]

    def asked(self) -> list[float]:
        """For how many seconds one look asks systemd."""
        lines = [line for datagram in self.look() for line in datagram]
        return [int(line.partition("=")[2]) / 1e6 for line in lines if line.startswith("EXTEND_TIMEOUT_USEC")]

    def start(self) -> None:
        for application in self.process.made:
            application.startup.run()


@pytest.fixture
def name() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home:  # pytest's own may be longer than a socket's name
        yield f"{home}/notify"


@pytest.fixture
def receiver(name: str) -> Iterator[Receiver]:
    receiver = Receiver(name)
    yield receiver
    receiver.close()


@pytest.fixture
def subject(receiver: Receiver) -> Iterator[Subject]:
    subject = Subject(receiver)
    yield subject
    subject.notifier.stop()


def test_ready_comes_with_readiness(subject: Subject) -> None:
    """READY=1 is sent once, when the application is ready; after it only what is new."""
    assert subject.look() == [["STATUS=STARTING, 0 in flight"]]
    assert subject.look() == []
    subject.start()
    assert subject.look() == [["READY=1", "STATUS=READY, 0 in flight"]]
    subject.clock.advance(5)
    assert subject.look() == []
    assert subject.pause == 1.0
    subject.app.machine.apply(Event.SET_NOT_READY, "a\nWATCHDOG=trigger\0\udcff\N{SNOWMAN}" + 5000 * "x")
    ((line,),) = subject.look()
    assert line.startswith("STATUS=NOT_READY: a WATCHDOG=trigger  \N{SNOWMAN}xxx")  # a reason is not a message
    assert len(line) == len("STATUS=") + 1000


def test_ready_comes_when_all_are_ready(receiver: Receiver) -> None:
    """Of several applications the last one makes the service ready."""
    subject = Subject(receiver, applications=3)
    one, two, three = subject.process.made
    one.startup.run()
    assert subject.look() == [["STATUS=STARTING (2 of 3 applications), 0 in flight"]]
    two.machine.apply(Event.SET_NOT_READY, "no database")
    two.startup.run()
    three.startup.run()
    subject.clock.advance(1)
    assert subject.look() == [["STATUS=NOT_READY (1 of 3 applications): no database, 0 in flight"]]
    one.machine.apply(Event.SET_NOT_READY, "later")  # to have been ready is enough
    two.machine.apply(Event.SET_READY)
    assert subject.look() == [["READY=1", "STATUS=NOT_READY (1 of 3 applications): later, 0 in flight"]]
    subject.notifier.stop()


def test_the_status_counts(subject: Subject) -> None:
    """The status counts requests and work items, each once if applications share them, once a second at most."""
    subject.start()
    lifecycle = Lifecycle(app := make_app())
    other = FakeMember(subject.clock)
    other.work = subject.app.work = state_of(app).work
    other.startup.run()
    subject.process.made.append(other)
    requests = [enter(subject.app.ledger), enter(other.ledger)]
    item = lifecycle.work("import")
    assert subject.look() == [["READY=1", "STATUS=READY, 2 in flight, 1 work item"]]
    lifecycle.work("export")
    requests.pop().close()
    subject.clock.advance(0.25)
    assert (subject.look(), subject.pause) == ([], 0.75)
    subject.clock.advance(0.75)
    assert subject.look() == [["STATUS=READY, 1 in flight, 2 work items"]]
    item.done()
    requests.pop().close()


def test_a_stop_is_sent_at_once(subject: Subject) -> None:
    """STOPPING=1 comes at once with a status and an extension, also in the middle of the start-up, and no READY=1."""
    subject.app.hooks.add("startup", lambda: None, "migrate", 12.0)
    subject.app.startup.runs_functions = True
    assert subject.asked() == [10.0]
    subject.clock.advance(0.1)
    request = enter(subject.app.ledger)
    subject.process.begin_stop()
    status = "STATUS=stopping (drain), 1 in flight, 25 s left"
    assert subject.look() == [["STOPPING=1", status, "EXTEND_TIMEOUT_USEC=10000000"]]
    subject.clock.advance(1)
    assert subject.look() == [["STATUS=stopping (drain), 1 in flight, 24 s left"]]
    request.close()


def test_time_is_asked_for_as_long_as_it_is_needed(subject: Subject) -> None:
    """The limit is extended at once, then before it is reached, and never beyond the grace period."""
    subject.start()
    subject.look()
    subject.process.begin_stop()
    asked = []
    for second in range(30):
        asked += [(second, seconds) for seconds in subject.asked()]
        subject.clock.advance(1)
    assert asked == [(0, 10.0), (5, 10.0), (10, 10.0), (15, 10.0), (20, 6.0)]  # until 26: a second for the exit


def test_the_start_may_take_what_its_functions_may(subject: Subject) -> None:
    """The limit of the start-up is extended while functions with a timeout run; the stop has its own."""
    hooks = subject.app.hooks
    hooks.add("startup", lambda: None, "migrate", 12.0)
    hooks.add("startup", lambda: None, "warm up", None)
    assert subject.asked() == []
    subject.app.startup.runs_functions = True
    for later, asked in ((0, [10.0]), (4, []), (2, [7.0]), (6, [])):  # twelve seconds from its beginning, and one
        subject.clock.advance(later)
        assert subject.asked() == asked
    hooks.records.append(HookRecord("migrate", "startup", "ok", 12.0))
    subject.clock.advance(10)
    assert subject.asked() == []
    subject.app.startup.runs_functions = False
    assert subject.asked() == []
    subject.process.begin_stop()
    assert subject.asked() == [10.0]


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "1"}, 0.1),
        ({"WATCHDOG_USEC": "18446744073709551615"}, 3600.0),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        *(({"WATCHDOG_USEC": value}, None) for value in ("0", "-5", "3s", "", 400 * "9", 5000 * "9")),
    ],
)
def test_the_interval(receiver: Receiver, environ: dict[str, Any], interval: float | None) -> None:
    """Heartbeats come at half of the interval that systemd wants of this process."""
    subject = Subject(receiver, **environ)
    assert subject.notifier._look() == interval
    subject.notifier.stop()


def test_heartbeats_follow_liveness(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """A heartbeat follows each time that liveness passes; else the status has the reason, which is logged once."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    subject = Subject(receiver, applications=2, WATCHDOG_USEC="4000000")
    sick = subject.process.made[1].health
    subject.start()
    subject.look()
    assert subject.notifier._look() == 2.0
    assert subject.look() == [["WATCHDOG=1"]]
    assert subject.look() == []
    sick.failing = "pulse"
    for _ in range(3):
        subject.clock.advance(2)
        subject.notifier._look()
    assert subject.look() == [["STATUS=READY, 0 in flight, no heartbeats: check 'pulse' fails"]]
    sick.failing = ""
    subject.clock.advance(2)
    subject.notifier._look()
    assert subject.look() == [["STATUS=READY, 0 in flight", "WATCHDOG=1"]]
    assert [record.getMessage() for record in caplog.records] == [
        "liveness fails, no heartbeats for systemd's watchdog: check 'pulse' fails",
        "liveness passes, heartbeats for systemd's watchdog again",
    ]
    subject.notifier.stop()


def test_a_slow_check_does_not_move_the_heartbeats(receiver: Receiver) -> None:
    """The next heartbeat comes at its time, however long this one has taken."""
    subject = Subject(receiver, WATCHDOG_USEC="10000000")
    subject.app.health.inside = lambda: subject.clock.advance(3)
    assert subject.notifier._look() == 2.0
    subject.clock.advance(2)
    assert subject.notifier._look() == 2.0
    subject.app.health.inside = lambda: subject.clock.advance(9)
    subject.clock.advance(2)
    assert subject.notifier._look() == 1.0  # the one that was due meanwhile is left out
    subject.notifier.stop()


def test_heartbeats_of_a_stop(receiver: Receiver) -> None:
    """During a shutdown heartbeats are sent at their interval without running liveness checks."""
    subject = Subject(receiver, WATCHDOG_USEC="5000000")
    subject.app.health.failing = "pulse"
    subject.notifier._look()
    assert subject.look() == [["STATUS=STARTING, 0 in flight, no heartbeats: check 'pulse' fails"]]
    subject.process.begin_stop()
    fed = []
    for second in range(9):
        if "WATCHDOG=1" in [line for lines in subject.look() for line in lines]:
            fed.append(second)
        assert subject.notifier._look() is None
        assert subject.pause == 1.0
        subject.clock.advance(1)
    assert fed == [0, 3, 6]
    assert subject.app.health.asked == 1
    subject.notifier.stop()
    subject = Subject(receiver, WATCHDOG_USEC="500000")
    subject.process.begin_stop()
    subject.look()
    assert subject.pause == 0.25
    subject.notifier.stop()


def test_a_full_queue_is_tried_again(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """If the queue is full the messages are sent later, in order, without a log line; the end does not wait for it."""
    subject.receiver.fill()
    subject.start()
    subject.notifier._tick()
    subject.process.begin_stop()
    assert subject.notifier._tick() == 0.1
    subject.receiver.datagrams()
    assert [lines[0] for lines in subject.look()] == ["READY=1", "STOPPING=1"]
    subject.receiver.fill()
    subject.clock.advance(1)
    assert subject.notifier._tick() == 0.1
    subject.receiver.datagrams()
    assert subject.look() == [["STATUS=stopping (drain), 0 in flight, 24 s left"]]
    subject.receiver.fill()
    subject.clock.advance(1)
    for _ in range(2):
        subject.notifier.stop()
        subject.notifier.state_changed(State.STOPPED, "SIGTERM")
        assert not any("STATUS" in datagram for datagram in subject.receiver.datagrams())
    assert caplog.text == ""


def test_a_process_without_descriptors(
    monkeypatch: pytest.MonkeyPatch, subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a descriptor for a socket the log says so once, and the end comes."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("flask_lifecycle._monitors.systemd.socket.socket", refuse)
        assert subject.notifier._tick() == 1.0
        subject.notifier.stop()
    assert caplog.messages == [f"cannot notify systemd at '{subject.receiver.name}': Too many open files"]


NO_NAME = "NOTIFY_SOCKET is '{}', which is neither a path nor an abstract name; nothing is sent to systemd."
TOO_LONG = "cannot notify systemd at '{}': AF_UNIX path too long"


@pytest.mark.parametrize(("name", "message"), [("vsock:2:702", NO_NAME), ("/" + 200 * "x", TOO_LONG)])
def test_names_of_sockets(name: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """A name that cannot be used is logged once."""
    process: Any = FakeProcess()
    notifier = Notifier(process, {"NOTIFY_SOCKET": name}, process.clock)
    notifier._sender.wake = lambda: None  # type: ignore[method-assign]
    for _ in range(2):
        notifier.begin()
    notifier.state_changed(State.READY, "")
    notifier.stop()
    assert caplog.messages == [message.format(name)]


@pytest.mark.parametrize(
    ("first", "owner", "sends"), [(True, "", True), (False, "", False), (False, "run", True), (True, "gunicorn", False)]
)
def test_which_process_sends(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, first: bool, owner: str, sends: bool
) -> None:
    """The process that systemd has started sends, and one under run, but no worker; children get no variables."""
    pid = os.getpid() if first else os.getpid() + 1
    environ = {"NOTIFY_SOCKET": receiver.name, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "SYSTEMD_EXEC_PID": str(pid)}
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    process: Any = FakeProcess()
    process.owner = owner
    notifier = Notifier(process)
    notifier.begin()
    notifier.begin()
    left = [variable for variable in environ if variable in os.environ]
    assert left == (["SYSTEMD_EXEC_PID"] if sends else list(environ))
    notifier.stop()
    assert bool(receiver.datagrams()) is sends


def test_a_log_that_hangs(
    name: str, free: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the thread hangs in a log handler, the end does not wait for it."""
    hanging = threading.Event()

    def emit(record: logging.LogRecord) -> None:
        hanging.set()
        free.wait(BOUND)

    monkeypatch.setattr(caplog.handler, "emit", emit)
    process: Any = FakeProcess()
    notifier = Notifier(process, {"NOTIFY_SOCKET": name})  # without a receiver
    notifier.begin()
    assert hanging.wait(BOUND)
    with running(notifier.stop):
        pass
