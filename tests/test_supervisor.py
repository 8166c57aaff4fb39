"""The process that keeps the listeners, and what it and those that serve say to each other; live in test_reload."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flask_lifecycle import HealthReport, State
from flask_lifecycle._handover import Channel, Generation
from flask_lifecycle._state import Event
from flask_lifecycle._supervisor import Supervisor, _Child, _Manager
from tests._fakes import FakeMember, run_python


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Two ends of one channel."""
    one, two = socket.socketpair()
    with one, two:
        yield Channel(one), Channel(two)


# -- the channel --------------------------------------------------------------------------------------------------


def test_what_is_said_is_heard(ends: tuple[Channel, Channel], tmp_path: Any) -> None:
    """Words, texts and descriptors come through in their order, and no child inherits the descriptors."""
    one, two = ends
    with (tmp_path / "a").open("wb") as a, (tmp_path / "b").open("wb") as b:
        one.send("first", "line\nline")
        one.send("second", "", [a.fileno(), b.fileno()])
        one.send("third", "", [b.fileno()])
    heard: list[tuple[str, str, list[int]]] = []
    while len(heard) < 3:
        heard += two.receive() or []
    assert [(word, text, len(descriptors)) for word, text, descriptors in heard] == [
        ("first", "line\nline", 0),
        ("second", "", 2),
        ("third", "", 1),
    ]
    for descriptor in (*heard[1][2], *heard[2][2]):
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_half_a_message_is_kept() -> None:
    """A message that comes in two parts is one."""
    one, two = socket.socketpair()
    with one, two:
        channel = Channel(two)
        line = json.dumps(["word", "text", 0]).encode() + b"\n"
        one.sendall(line[:7])
        assert channel.receive() == []
        one.sendall(line[7:])
        assert channel.receive() == [("word", "text", [])]


@pytest.mark.parametrize("unread", [False, True])
def test_the_other_end_has_gone(ends: tuple[Channel, Channel], unread: bool) -> None:
    """Whoever has gone, with or without having read everything, is told by ``None``, and nothing can be said to it."""
    one, two = ends
    if unread:
        two.send("word")
    one.close()
    assert two.receive() is None
    two.send("word")


# -- a process that serves ----------------------------------------------------------------------------------------


class Health:
    """Readiness as the test wants it."""

    def __init__(self) -> None:
        self.status = "pass"
        self.checks: list[Any] = []

    def report(self, group: str) -> HealthReport:
        return HealthReport(group, None, self.status, State.READY, "for a reason", tuple(self.checks))


def test_what_keeps_it_from_serving(ends: tuple[Channel, Channel]) -> None:
    """A process serves when it has started and its readiness passes; an operator's cordon is no obstacle."""
    ends[0].send("serve", "next 0 0")
    generation = Generation(ends[1])
    app: Any = FakeMember()
    app.health = health = Health()
    generation._app = app
    assert generation._obstacle() == "STARTING: starting"
    app.start()
    assert generation._obstacle() == ""
    health.status = "fail"
    assert generation._obstacle() == "for a reason"
    health.checks = [SimpleNamespace(name="cache", status="pass"), SimpleNamespace(name="database", status="fail")]
    assert generation._obstacle() == "check 'database' fails"
    app.machine.apply(Event.SET_NOT_READY, "maintenance")
    assert generation._obstacle() == "NOT_READY: maintenance"
    app.machine.apply(Event.CORDON, "cordoned by alice")
    assert generation._obstacle() == ""
    generation.await_sole_owner(1.0)  # it has nothing to close


# -- the one that stays -------------------------------------------------------------------------------------------


@pytest.fixture
def child(ends: tuple[Channel, Channel]) -> Any:
    return _Child(SimpleNamespace(pid=4711), ends[0])  # type: ignore[arg-type]


def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, child: Any) -> None:
    """Where no process can be started, one line says so, and the one that serves goes on."""
    supervisor = Supervisor([], [], signal.SIGHUP, 5.0)
    supervisor._current = child

    def fail(place: str) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "_start", fail)
    supervisor._reload()
    assert caplog.messages == [
        "reload failed: no process could be started: Resource temporarily unavailable; process 4711 goes on serving"
    ]


def test_the_next_one_fails_as_well(child: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where the current process has died and the next does not come up, its code is the one to leave with."""
    supervisor = Supervisor([], [], signal.SIGHUP, 5.0)
    supervisor._next = child
    supervisor._gone(child, 7)
    assert (supervisor._code, supervisor._next, caplog.messages) == (7, None, [])


@pytest.mark.parametrize(
    ("serves", "ending", "answer", "ends_all"),
    [
        ("it", False, "closed", True),
        ("another", False, "leave", False),
        ("another", True, "closed", True),
        ("nobody", False, "closed", True),
    ],
)
def test_whose_the_listeners_are(
    child: Any, ends: tuple[Channel, Channel], serves: str, ending: bool, answer: str, ends_all: bool
) -> None:
    """Who stops closes the listeners only where nobody else serves or goes on to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        supervisor = Supervisor([listener], [], signal.SIGHUP, 5.0)
        other = _Child(SimpleNamespace(pid=4712), ends[0])  # type: ignore[arg-type]
        supervisor._current = {"it": child, "another": other, "nobody": None}[serves]
        supervisor._ending = ending
        ends[1].send("stopping")
        supervisor._hear(child)
        ((word, text, _),) = ends[1].receive() or []
        assert (word, text) == (answer, "4712" if answer == "leave" else "")
        assert supervisor._ending == ends_all
        assert (listener.fileno() == -1) == (ends_all and not ending)


def test_nobody_goes_on(child: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A next one that is given up when the current one has died leaves nobody, and the line does not say otherwise."""
    supervisor = Supervisor([], [], signal.SIGHUP, 5.0)
    supervisor._failed("process 4711 was not ready")
    assert caplog.messages == ["reload failed: process 4711 was not ready; nobody serves"]


def test_descriptors_that_come_too_late_are_closed(child: Any, ends: tuple[Channel, Channel]) -> None:
    """Who is not about to serve does not pass on the listener of its probes."""
    supervisor = Supervisor([], [], signal.SIGHUP, 5.0)
    with socket.create_server(("127.0.0.1", 0)) as probes:
        port = probes.getsockname()[1]
        ends[1].send("ready", "", [probes.fileno()])
        supervisor._hear(child)
    socket.create_server(("127.0.0.1", port)).close()


def test_what_systemd_is_told() -> None:
    """A reload begins and ends for a service that is ready, and for no other; nobody need listen."""
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{home}/notify")
        manager = _Manager(f"{home}/notify")
        manager.reloading()
        manager.go_on("STATUS=a")
        manager.tell("STATUS=a")
        manager.tell("READY=1\nSTATUS=b")
        manager.reloading()
        manager.go_on("STATUS=c")
        manager.reloaded("")
        heard = [receiver.recv(1000).decode().split("\n") for _ in range(5)]
    assert heard.pop(2)[0] == "RELOADING=1"
    assert heard == [["STATUS=a"], ["READY=1", "STATUS=b"], ["READY=1", "STATUS=c"], ["READY=1"]]
    manager.tell("STATUS=d")
    _Manager("").tell("STATUS=d")


ENVIRONMENT = """
import os
from flask_lifecycle._supervisor import _first_environment
os.environ["FROM_A_FILE"] = "set later"
found = _first_environment()
print(sorted(os.fsdecode(name) for name in found if name.startswith((b"LISTEN_", b"FROM_", b"KEPT", b"WATCHDOG_"))))
os.environ["WATCHDOG_PID"] = str(os.getpid())
print(b"WATCHDOG_PID" in _first_environment())
"""


def test_the_environment_of_the_start() -> None:
    """What was set since, as from ``.env`` files, goes to no other process, nor what was meant for this one."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "KEPT": "1", "WATCHDOG_PID": "1"}
    done = run_python(ENVIRONMENT, environ=environ)
    assert done.stdout.splitlines() == ["['KEPT', 'WATCHDOG_PID']", "False"], done.stderr


CAUGHT = """
import os, signal
from flask_lifecycle._supervisor import _catch
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
wake = _catch(signal.SIGUSR1)
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    os.kill(os.getpid(), number)
print([signal.Signals(number).name for number in os.read(wake, 10)])
"""


def test_what_is_ignored_stays_ignored() -> None:
    """A signal that whoever started it wants to be ignored is not caught, but for the one that reloads."""
    done = run_python(CAUGHT)
    assert done.stdout == "['SIGUSR1', 'SIGTERM']\n", done.stderr
