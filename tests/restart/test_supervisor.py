"""The supervisor, its workers and their channel; real processes are in test_reload."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flask_lifecycle import HealthReport, State
from flask_lifecycle._core.state import Event
from flask_lifecycle._restart import supervisor as supervisor_module
from flask_lifecycle._restart import worker as worker_module
from tests._fakes import FakeMember, run_python

Ends = tuple[Any, Any]


@pytest.fixture
def ends() -> Iterator[tuple[worker_module.Channel, worker_module.Channel]]:
    """Two ends of one channel."""
    one, two = socket.socketpair()
    with one, two:
        yield worker_module.Channel(one), worker_module.Channel(two)


def test_messages(ends: Ends, tmp_path: Any) -> None:
    """Words, texts and descriptors arrive in order, also in two parts, and no child inherits the descriptors."""
    one, two = ends
    with (tmp_path / "a").open("wb") as a, (tmp_path / "b").open("wb") as b:
        one.send("first", "line\nline")
        one.send("second", "", [a.fileno(), b.fileno()])
        one.send("third", "", [b.fileno()])
    heard: list[tuple[str, str, list[int]]] = []
    while len(heard) < 3:
        heard += two.receive() or []
    line = json.dumps(["word", "text", 0]).encode() + b"\n"
    one.socket.sendall(line[:7])
    assert two.receive() == []
    one.socket.sendall(line[7:])
    assert two.receive() == [("word", "text", [])]
    assert [(word, text, len(descriptors)) for word, text, descriptors in heard] == [
        ("first", "line\nline", 0),
        ("second", "", 2),
        ("third", "", 1),
    ]
    for descriptor in (*heard[1][2], *heard[2][2]):
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize("unread", [False, True])
def test_the_other_end_is_gone(ends: Ends, unread: bool) -> None:
    """An end that is gone, with or without unread messages, is ``None``, and sending to it does nothing."""
    one, two = ends
    if unread:
        two.send("word")
    one.socket.close()
    assert two.receive() is None
    two.send("word")


def test_when_a_worker_is_ready(ends: Ends) -> None:
    """A worker is ready when it has started and readiness passes, or an operator has cordoned the service."""
    ends[0].send("serve", "next 0 0")
    worker = worker_module.RestartWorker(ends[1])
    health = SimpleNamespace(status="pass", checks=[])
    worker._app = app = FakeMember()
    app.health = SimpleNamespace(
        report=lambda group: HealthReport(group, None, health.status, State.READY, "for a reason", tuple(health.checks))
    )
    assert worker._not_ready() == "STARTING: starting"
    app.startup.run()
    assert worker._not_ready() == ""
    health.status = "fail"
    assert worker._not_ready() == "for a reason"
    health.checks = [SimpleNamespace(name="cache", status="pass"), SimpleNamespace(name="database", status="fail")]
    assert worker._not_ready() == "check 'database' fails"
    app.machine.apply(Event.SET_NOT_READY, "maintenance")
    assert worker._not_ready() == "NOT_READY: maintenance"
    app.machine.apply(Event.CORDON, "cordoned by alice")
    assert worker._not_ready() == ""
    worker.await_sole_owner(1.0)  # it has nothing to close


@pytest.fixture
def worker(ends: Ends) -> Any:
    process: Any = SimpleNamespace(pid=4711)
    return supervisor_module._Worker(process, ends[0])


@pytest.fixture
def supervisor() -> Any:
    return supervisor_module.Supervisor([], [], signal.SIGHUP, 5.0)


def test_a_process_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, supervisor: Any, worker: Any
) -> None:
    """If no process can be started, the log says so and which one continues to serve, if one does."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    for supervisor._current in (worker, None):
        supervisor._reload()
    assert caplog.messages == [
        "reload failed: no process could be started: Resource temporarily unavailable; process 4711 continues to serve",
        "reload failed: no process could be started: Resource temporarily unavailable; no process serves",
    ]


def test_the_next_worker_fails_too(supervisor: Any, worker: Any, caplog: pytest.LogCaptureFixture) -> None:
    """If the current worker has died and the next one fails, its exit code is the one of the supervisor."""
    supervisor._next = worker
    supervisor._gone(worker, 7)
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
def test_which_worker_closes_the_listeners(
    worker: Any, ends: Ends, serves: str, ending: bool, answer: str, ends_all: bool
) -> None:
    """A worker that stops closes the listeners only if no other one serves or will serve."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        supervisor = supervisor_module.Supervisor([listener], [], signal.SIGHUP, 5.0)
        other = supervisor_module._Worker(SimpleNamespace(pid=4712), ends[0])  # type: ignore[arg-type]
        supervisor._current = {"it": worker, "another": other, "nobody": None}[serves]
        supervisor._ending = ending
        ends[1].send("stopping")
        supervisor._handle(worker)
        ((word, text, _),) = ends[1].receive() or []
        assert (word, text) == (answer, "4712" if answer == "leave" else "")
        assert supervisor._ending == ends_all
        assert (listener.fileno() == -1) == (ends_all and not ending)


def test_descriptors_that_come_too_late_are_closed(supervisor: Any, worker: Any, ends: Ends) -> None:
    """The probe listener of a worker that is not the next one is closed."""
    with socket.create_server(("127.0.0.1", 0)) as probes:
        port = probes.getsockname()[1]
        ends[1].send("ready", "", [probes.fileno()])
        supervisor._handle(worker)
    socket.create_server(("127.0.0.1", port)).close()


def test_messages_to_systemd(supervisor: Any, worker: Any) -> None:
    """A reload begins and ends for a service that is ready, and for no other; without a receiver nothing happens."""
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{home}/notify")
        manager = supervisor_module._Systemd(f"{home}/notify")
        manager.send("RELOADING=1", if_ready=True)
        manager.send("STATUS=a")
        manager.send("READY=1\nSTATUS=b")
        manager.send("RELOADING=1", "MONOTONIC_USEC=1", if_ready=True)
        supervisor._systemd, supervisor._current, worker.status = manager, worker, "STATUS=c"
        supervisor._failed("it has left")
        manager.send("READY=1", "")
        heard = [receiver.recv(1000).decode().split("\n") for _ in range(5)]
    assert heard[:3] == [["STATUS=a"], ["READY=1", "STATUS=b"], ["RELOADING=1", "MONOTONIC_USEC=1"]]
    assert heard[3:] == [["READY=1", "STATUS=c"], ["READY=1"]]
    manager.send("STATUS=d")
    supervisor_module._Systemd("").send("STATUS=d")


AS_IT_STARTS = """
import os, signal
from flask_lifecycle._restart.supervisor import _catch, _first_environment

os.environ["FROM_A_FILE"] = "set later"
found = _first_environment()
print(sorted(os.fsdecode(name) for name in found if name.startswith((b"LISTEN_", b"FROM_", b"KEPT", b"WATCHDOG_"))))
os.environ["WATCHDOG_PID"] = str(os.getpid())
print(b"WATCHDOG_PID" in _first_environment())

signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
wake = _catch(signal.SIGUSR1)
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
    os.kill(os.getpid(), number)
print([signal.Signals(number).name for number in os.read(wake, 10)])
"""


def test_the_environment_and_the_signals_of_the_start() -> None:
    """Variables set later, or for this process, go to no worker; signals ignored at the start stay ignored."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "KEPT": "1", "WATCHDOG_PID": "1"}
    done = run_python(AS_IT_STARTS, environ=environ)
    assert done.stdout.splitlines() == ["['KEPT', 'WATCHDOG_PID']", "False", "['SIGUSR1', 'SIGTERM']"], done.stderr
