"""What systemd is told, by a real datagram socket, at the moments of a manual clock."""

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
from typing import Any

import pytest

from flask_lifecycle import CheckReport, HealthReport, HookRecord, State
from flask_lifecycle._shutdown import Coordinator
from flask_lifecycle._state import Event
from flask_lifecycle._systemd import Notifier, _heartbeat
from flask_lifecycle._work import Work
from flask_lifecycle.checks import Check
from tests._fakes import BOUND, FakeMember, ManualClock, enter, run_python, running, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is the subject")


class Receiver:
    """The socket of the service manager."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self._socket.setblocking(False)

    def datagrams(self) -> list[str]:
        """What has come since the last time."""
        found = []
        try:
            while True:
                found.append(self._socket.recv(65536).decode())
        except BlockingIOError:
            return found

    def fill(self) -> None:
        """Send to it what it does not read, until it takes no more."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"noise", socket.MSG_DONTWAIT, self._socket.getsockname())

    def close(self) -> None:
        self._socket.close()


class FakeHealth:
    """Liveness as the test wants it."""

    def __init__(self) -> None:
        self.failing = ""
        self.asked = 0
        self.inside: Callable[[], object] = lambda: None

    def report(self, group: str) -> HealthReport:
        assert group == "live"
        self.asked += 1
        self.inside()
        checks = (CheckReport(Check(self.failing, lambda: None), "fail", 0.0, 0.0),) if self.failing else ()
        return HealthReport(group, None, "fail" if checks else "pass", State.READY, "", checks)


class Member(FakeMember):
    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock, grace_period=25.0)
        self.health = FakeHealth()


class FakeProcess:
    """So many applications, and their coordinator, which begins to stop but goes no further by itself."""

    def __init__(self, applications: int = 1) -> None:
        self.clock = ManualClock()
        self.applications = [Member(self.clock) for _ in range(applications)]
        self.coordinator = Coordinator(self.members, clock=self.clock)
        self.generation: Any = None
        self.coordinator._run = lambda deadline: None  # type: ignore[method-assign]

    def members(self) -> list[Member]:
        return self.applications

    def begin_stop(self) -> None:
        self.coordinator.begin("SIGTERM")
        assert self.coordinator.thread is not None
        self.coordinator.thread.join(BOUND)
        self.coordinator.phase = "drain"


class Subject:
    """A notifier, the process that it speaks for, and who hears it. Its threads are the test."""

    def __init__(self, receiver: Receiver, applications: int = 1, **environ: str) -> None:
        self.receiver = receiver
        self.process = FakeProcess(applications)
        self.clock = self.process.clock
        self.app = self.process.applications[0]
        variables = {"NOTIFY_SOCKET": receiver.name, "SYSTEMD_EXEC_PID": str(os.getpid()), **environ}
        self.notifier = Notifier(self.process, variables, self.clock)
        for scheduler in (self.notifier._speaker, self.notifier._pulse):
            scheduler.wake = lambda: None  # type: ignore[method-assign]
        self.notifier.begin()

    def look(self) -> list[list[str]]:
        """Have it look once; return the lines of the datagrams that came of it."""
        self.pause = self.notifier._tick()
        return [datagram.split("\n") for datagram in self.receiver.datagrams()]

    def start(self) -> None:
        for application in self.process.applications:
            application.start()


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
    subject.notifier.end()


# -- ready, and the status ----------------------------------------------------------------------------------------


def test_ready_comes_with_readiness(subject: Subject) -> None:
    """READY=1 is sent once, when the application is ready, and not before; what is new alone is sent after it."""
    assert subject.look() == [["STATUS=STARTING, 0 in flight"]]
    assert subject.look() == []
    subject.start()
    assert subject.look() == [["READY=1", "STATUS=READY, 0 in flight"]]
    subject.clock.advance(5)
    assert subject.look() == []
    assert subject.pause == 1.0


def test_ready_comes_when_all_are_ready(receiver: Receiver) -> None:
    """Of several applications the last one makes the service ready."""
    subject = Subject(receiver, applications=3)
    one, two, three = subject.process.applications
    one.start()
    assert subject.look() == [["STATUS=STARTING (2 of 3 applications), 0 in flight"]]
    two.machine.apply(Event.SET_NOT_READY, "no database")
    two.start()
    three.start()
    subject.clock.advance(1)
    assert subject.look() == [["STATUS=NOT_READY (1 of 3 applications): no database, 0 in flight"]]
    one.machine.apply(Event.SET_NOT_READY, "later")  # once ready is enough
    two.machine.apply(Event.SET_READY)
    assert subject.look() == [["READY=1", "STATUS=NOT_READY (1 of 3 applications): later, 0 in flight"]]
    subject.notifier.end()


def test_a_later_loss_of_readiness_is_a_status(subject: Subject) -> None:
    """A service that is not ready any more is told by its status alone."""
    subject.start()
    subject.look()
    subject.app.machine.apply(Event.SET_NOT_READY, "maintenance")
    subject.clock.advance(1)
    assert subject.look() == [["STATUS=NOT_READY: maintenance, 0 in flight"]]


def test_a_process_without_applications_is_not_ready(receiver: Receiver) -> None:
    """Where the applications have gone nobody is ready."""
    subject = Subject(receiver)
    subject.process.applications.clear()
    assert not any("READY=1" in lines for lines in subject.look())
    subject.notifier.end()


def test_the_status_counts(subject: Subject) -> None:
    """The status counts requests, and tokens, once each where applications share them."""
    subject.start()
    other = Member(subject.clock)
    other.work = subject.app.work
    other.start()
    subject.process.applications.append(other)
    requests = [enter(subject.app.ledger), enter(other.ledger)]
    token = Work(subject.app.work, "import", {})
    assert subject.look() == [["READY=1", "STATUS=READY, 2 in flight, 1 token"]]
    Work(subject.app.work, "export", {})
    requests.pop().close()
    subject.clock.advance(1)
    assert subject.look() == [["STATUS=READY, 1 in flight, 2 tokens"]]
    token.done()
    requests.pop().close()


def test_the_status_has_a_rhythm(subject: Subject) -> None:
    """A status is sent once a second at most, and the look after a change is when it may be sent."""
    subject.start()
    subject.look()
    subject.clock.advance(0.25)
    request = enter(subject.app.ledger)
    assert (subject.look(), subject.pause) == ([], 0.75)
    subject.clock.advance(0.75)
    assert subject.look() == [["STATUS=READY, 1 in flight"]]
    request.close()


def test_a_reason_is_no_message(subject: Subject) -> None:
    """Whatever the reason of a state holds, it is one line of text, and not a long one."""
    subject.app.machine.apply(Event.SET_NOT_READY, "a\nWATCHDOG=trigger\0\udcff\N{SNOWMAN}" + 5000 * "x")
    subject.start()
    ((line,),) = subject.look()
    assert line.startswith("STATUS=NOT_READY: a WATCHDOG=trigger  \N{SNOWMAN}xxx")
    assert len(line) == len("STATUS=") + 1000


# -- the stop -----------------------------------------------------------------------------------------------------


def test_a_stop_is_told_at_once(subject: Subject) -> None:
    """STOPPING=1 comes with a status and with the time that is wanted, whatever the rhythm of the status."""
    subject.start()
    subject.look()
    subject.clock.advance(0.1)
    request = enter(subject.app.ledger)
    subject.process.begin_stop()
    status = "STATUS=stopping (drain), 1 in flight, 25 s left"
    assert subject.look() == [["STOPPING=1", status, "EXTEND_TIMEOUT_USEC=10000000"]]
    subject.clock.advance(1)
    assert subject.look() == [["STATUS=stopping (drain), 1 in flight, 24 s left"]]
    request.close()


def test_time_is_asked_for_as_long_as_it_is_needed(subject: Subject) -> None:
    """The limit is moved before it is reached, never beyond the grace period, and no more once that is covered."""
    subject.start()
    subject.look()
    subject.process.begin_stop()
    asked = []
    for second in range(30):
        lines = [line for datagram in subject.look() for line in datagram]
        asked += [(second, int(x.partition("=")[2]) / 1e6) for x in lines if x.startswith("EXTEND_TIMEOUT_USEC")]
        subject.clock.advance(1)
    assert asked == [(0, 10.0), (5, 10.0), (10, 10.0), (15, 10.0), (20, 6.0)]  # until 26: a second for the exit


def test_ready_goes_before_stopping(subject: Subject) -> None:
    """A service that stops as soon as it was ready says both, in that order, and in two datagrams."""
    subject.start()
    subject.process.begin_stop()
    first, second = subject.look()
    assert (first[0], second[0]) == ("READY=1", "STOPPING=1")


def test_a_stop_before_readiness_is_never_ready(subject: Subject) -> None:
    """A service that stops while it starts does not say that it was ready."""
    subject.process.begin_stop()
    ((first, *_),) = subject.look()
    assert first == "STOPPING=1"


def test_the_last_words(subject: Subject) -> None:
    """At the end the status is what the report says, and twice is harmless."""
    subject.start()
    subject.look()
    subject.process.begin_stop()
    subject.look()
    subject.process.coordinator._finish(subject.process.applications, True)
    subject.notifier.end()
    assert subject.receiver.datagrams() == ["STATUS=STOPPED: clean, exit 0"]
    subject.notifier.end()
    subject.notifier.state_changed(State.STOPPED, "SIGTERM")
    assert subject.receiver.datagrams() == []


# -- the start ----------------------------------------------------------------------------------------------------


def test_the_start_may_take_what_its_functions_may(subject: Subject) -> None:
    """The limit of the start is moved for functions with a timeout, as long as they run, and for no other."""
    hooks = subject.app.hooks
    hooks.add("startup", lambda: None, "migrate", 12.0)
    hooks.add("startup", lambda: None, "warm up", None)

    def asked() -> list[float]:
        lines = [line for datagram in subject.look() for line in datagram]
        return [int(line.partition("=")[2]) / 1e6 for line in lines if line.startswith("EXTEND_TIMEOUT_USEC")]

    assert asked() == []
    hooks.startup_begun.set()
    assert asked() == [10.0]
    subject.clock.advance(4)
    assert asked() == []
    subject.clock.advance(2)
    assert asked() == [7.0]  # twelve seconds from its beginning, and one
    subject.clock.advance(6)
    assert asked() == []
    hooks.records.append(HookRecord("migrate", "startup", "ok", 12.0))
    subject.clock.advance(10)
    assert asked() == []
    hooks.startup_over.set()
    assert asked() == []
    subject.process.begin_stop()
    assert asked() == [10.0]


def test_a_stop_has_a_limit_of_its_own(subject: Subject) -> None:
    """Time that was asked for while the application started is none that the stop has."""
    subject.app.hooks.add("startup", lambda: None, "migrate", 60.0)
    subject.app.hooks.startup_begun.set()
    assert "EXTEND_TIMEOUT_USEC=10000000" in subject.look()[0]
    subject.process.begin_stop()
    assert "EXTEND_TIMEOUT_USEC=10000000" in subject.look()[0]


# -- the watchdog -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "1"}, 0.1),
        ({"WATCHDOG_PID": "7"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "3s"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "18446744073709551615"}, 3600.0),
        ({"WATCHDOG_USEC": 400 * "9"}, None),
        ({"WATCHDOG_USEC": 5000 * "9"}, None),
    ],
)
def test_the_interval(environ: dict[str, str], interval: float | None) -> None:
    """Heartbeats come at half of the interval that systemd wants, where it wants them of this process."""
    assert _heartbeat(environ, 7) == interval


def test_heartbeats_follow_liveness(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """A heartbeat follows each time that liveness passes; else the status says why, and the log says so once."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    subject = Subject(receiver, applications=2, WATCHDOG_USEC="4000000")
    sick = subject.process.applications[1].health
    subject.start()
    subject.look()
    assert subject.notifier._look() == 2.0
    assert subject.look() == [["WATCHDOG=1"]]
    assert subject.look() == []
    sick.failing = "pulse"
    for _ in range(3):
        subject.clock.advance(2)
        subject.notifier._look()
    assert subject.look() == [["STATUS=READY, 0 in flight, the watchdog is not fed: check 'pulse' fails"]]
    sick.failing = ""
    subject.clock.advance(2)
    subject.notifier._look()
    assert subject.look() == [["STATUS=READY, 0 in flight", "WATCHDOG=1"]]
    assert [record.getMessage() for record in caplog.records] == [
        "liveness fails, systemd's watchdog is not fed: check 'pulse' fails",
        "liveness passes, systemd's watchdog is fed again",
    ]
    subject.notifier.end()


def test_a_slow_check_does_not_move_the_rhythm(receiver: Receiver) -> None:
    """The next heartbeat comes when it would have come, however long this one has taken."""
    subject = Subject(receiver, WATCHDOG_USEC="10000000")
    subject.app.health.inside = lambda: subject.clock.advance(3)
    assert subject.notifier._look() == 2.0
    subject.clock.advance(2)
    assert subject.notifier._look() == 2.0
    subject.app.health.inside = lambda: subject.clock.advance(9)
    subject.clock.advance(2)
    assert subject.notifier._look() == 1.0  # the one that was due meanwhile is left out
    subject.notifier.end()


def test_a_stop_is_no_matter_of_liveness(receiver: Receiver) -> None:
    """From the beginning of a shutdown on the watchdog is fed in its rhythm, and liveness is not asked any more."""
    subject = Subject(receiver, WATCHDOG_USEC="5000000")
    subject.app.health.failing = "pulse"
    subject.notifier._look()
    assert subject.look() == [["STATUS=STARTING, 0 in flight, the watchdog is not fed: check 'pulse' fails"]]
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
    subject.notifier.end()


def test_a_fast_rhythm_holds_in_a_stop(receiver: Receiver) -> None:
    """In a stop the looks are as frequent as the heartbeats have to be."""
    subject = Subject(receiver, WATCHDOG_USEC="500000")
    subject.process.begin_stop()
    subject.look()
    assert subject.pause == 0.25
    subject.notifier.end()


# -- the socket ---------------------------------------------------------------------------------------------------


def test_a_full_queue_is_tried_again(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """What finds the queue full is sent later, nothing is lost or out of order, nobody blocks, and nobody is told."""
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
    assert caplog.text == ""


def test_a_full_queue_does_not_hold_up_the_end(subject: Subject) -> None:
    """The end comes also if nobody reads."""
    subject.receiver.fill()
    subject.start()
    subject.process.begin_stop()
    subject.notifier.end()
    assert not any("STOPPING=1" in datagram for datagram in subject.receiver.datagrams())


def test_a_receiver_that_is_gone(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody listens the log says so once, and who listens again is told what there is to tell."""
    subject.receiver.close()
    for _ in range(2):
        subject.notifier._tick()
    os.unlink(subject.receiver.name)
    subject.notifier._tick()
    assert [record.getMessage() for record in caplog.records] == [
        f"systemd cannot be told anything at '{subject.receiver.name}': Connection refused"
    ]
    subject.receiver = Receiver(subject.receiver.name)
    subject.start()
    assert subject.look() == [["READY=1", "STATUS=READY, 0 in flight"]]
    subject.receiver.close()


def test_who_is_gone_is_not_asked_all_the_time(subject: Subject) -> None:
    """Where nobody listens it is tried once a second, and in a stop, which may be short, as often as a full queue."""
    os.unlink(subject.receiver.name)
    assert subject.notifier._tick() == 1.0
    subject.start()
    assert subject.notifier._tick() == 1.0
    subject.process.begin_stop()
    assert subject.notifier._tick() == 0.1


def test_a_name_that_is_too_long(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """A path that no socket can have is told once, in the system's words."""
    subject = Subject(receiver, NOTIFY_SOCKET="/" + 200 * "x")
    assert subject.look() == []
    subject.notifier.end()
    assert caplog.messages == [f"systemd cannot be told anything at '/{200 * 'x'}': AF_UNIX path too long"]


def test_a_process_without_descriptors(
    monkeypatch: pytest.MonkeyPatch, subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no descriptor for a socket the log says so once, and the end comes all the same."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("flask_lifecycle._systemd.socket.socket", refuse)
        assert subject.notifier._tick() == 1.0
        subject.notifier.end()
    assert caplog.messages == [f"systemd cannot be told anything at '{subject.receiver.name}': Too many open files"]


def test_an_abstract_socket() -> None:
    """A name that begins with @ is one of the abstract namespace."""
    receiver = Receiver(f"@flask-lifecycle-test-{os.getpid()}")
    subject = Subject(receiver)
    subject.start()
    assert subject.look() == [["READY=1", "STATUS=READY, 0 in flight"]]
    subject.notifier.end()
    receiver.close()


def test_a_socket_of_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    """A name that is neither a path nor abstract is told once, and nothing comes of it."""
    notifier = Notifier(FakeProcess(), {"NOTIFY_SOCKET": "vsock:2:1234"})
    for _ in range(2):
        notifier.begin()
        notifier.state_changed(State.READY, "")
        notifier.end()
    assert caplog.messages == [
        "NOTIFY_SOCKET is 'vsock:2:1234', which is neither a path nor an abstract name; nothing is sent to systemd."
    ]


# -- who speaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "owned", "speaks"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_who_speaks(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, first: bool, owned: bool, speaks: bool
) -> None:
    """The process that systemd has started speaks, and one under run; their children get no such variables."""
    pid = os.getpid() if first else os.getpid() + 1
    environ = {"NOTIFY_SOCKET": receiver.name, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "SYSTEMD_EXEC_PID": str(pid)}
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    process = FakeProcess()
    process.coordinator.owned = owned
    notifier = Notifier(process)
    notifier.begin()
    notifier.begin()
    left = [variable for variable in environ if variable in os.environ]
    assert left == (["SYSTEMD_EXEC_PID"] if speaks else list(environ))
    notifier.end()
    assert bool(receiver.datagrams()) is speaks


def test_a_worker_of_a_master_does_not_speak(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    """The instance is more than one worker of a server that carries it, which may be replaced while it goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", receiver.name)
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    process = FakeProcess()
    process.coordinator.owned = process.coordinator.carried = True
    notifier = Notifier(process)
    notifier.begin()
    notifier.end()
    assert receiver.datagrams() == []


def test_a_fork_does_not_speak(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    """A child that is forked from the process that called init_app sends nothing, and neither does its end."""
    subject.start()
    subject.look()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    subject.process.begin_stop()
    subject.notifier.begin()
    subject.notifier.state_changed(State.DRAINING, "SIGTERM")
    subject.notifier.end()
    assert subject.receiver.datagrams() == []
    monkeypatch.undo()


# -- the threads --------------------------------------------------------------------------------------------------


def test_a_change_is_told_by_the_thread(receiver: Receiver) -> None:
    """A change of the state wakes the thread that tells it; both threads end with the process's own end."""
    process = FakeProcess()
    notifier = Notifier(process, {"NOTIFY_SOCKET": receiver.name, "WATCHDOG_USEC": "100000"}, process.clock)
    notifier.begin()
    process.applications[0].start()
    notifier.state_changed(State.READY, "started")
    heard: list[str] = []

    def told(line: str) -> bool:
        heard.extend(line for datagram in receiver.datagrams() for line in datagram.split("\n"))
        return line in heard

    until(lambda: told("READY=1"))
    until(lambda: told("WATCHDOG=1"))
    notifier.end()


def test_a_log_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Where the thread hangs in a log handler the end does not wait for it."""
    monkeypatch.setattr("flask_lifecycle._systemd._RHYTHM", 0.05)
    hanging, release = threading.Event(), threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            hanging.set()
            release.wait(BOUND)

    handler = Handler()
    logging.getLogger("flask_lifecycle").addHandler(handler)
    try:
        notifier = Notifier(FakeProcess(), {"NOTIFY_SOCKET": name})  # where nobody listens
        notifier.begin()
        assert hanging.wait(BOUND)
        with running(notifier.end):
            pass
    finally:
        release.set()
        logging.getLogger("flask_lifecycle").removeHandler(handler)


RUN = """
import os, sys, threading
from flask import Flask
from flask_lifecycle import Lifecycle
def make(name):
    app = Flask(name)
    app.config.update(LIFECYCLE_GRACE_PERIOD=5, LIFECYCLE_SHUTDOWN_DELAY=0, TESTING=sys.argv[1] == "testing")
    return app, Lifecycle(app)
app, lifecycle = make("app")
second, second_lifecycle = make("second")
def stop():
    assert lifecycle.wait_ready(10)
    assert app.testing or second_lifecycle.wait_ready(10)
    threads = sorted(t.name for t in threading.enumerate() if "systemd" in t.name)
    print("flask_lifecycle._systemd" in sys.modules, threads, os.environ.get("NOTIFY_SOCKET"))
    lifecycle.shutdown("enough", wait=False)
threading.Thread(target=stop).start()
lifecycle.run(app, port=0)
left = [t for t in threading.enumerate() if "systemd" in t.name]
for thread in left:
    thread.join(10)  # the one that asks liveness is told to end, and not waited for
print([t.name for t in left if t.is_alive()])
"""


def test_without_a_socket_there_is_nothing() -> None:
    """Where systemd gives no socket, or the application is in testing mode, there is no thread and no import."""
    for mode, environ in (("served", {"NOTIFY_SOCKET": ""}), ("testing", {"NOTIFY_SOCKET": "@x"})):
        done = run_python(RUN, mode, environ=environ)
        assert done.stdout.splitlines() == [f"False [] {environ['NOTIFY_SOCKET']}", "[]"], done.stderr


def test_a_service_from_start_to_end(receiver: Receiver) -> None:
    """A process with two applications under run speaks with one voice, and gives its threads back."""
    done = run_python(RUN, "served", environ={"NOTIFY_SOCKET": receiver.name, "WATCHDOG_USEC": "10000000"})
    threads = "['lifecycle-systemd', 'lifecycle-systemd-live']"
    assert done.stdout.splitlines() == [f"True {threads} None", "[]"], done.stderr
    lines = [line for datagram in receiver.datagrams() for line in datagram.split("\n")]
    assert [line for line in lines if line in ("READY=1", "STOPPING=1")] == ["READY=1", "STOPPING=1"]
    assert "WATCHDOG=1" in lines
    assert lines[-1] == "STATUS=STOPPED: clean, exit 0"
