"""Operators' actions on an application: cordons that expire, and the drain."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, State, state_changed
from tests._fakes import BOUND, ManualClock, make_app, running, state_of, until, whole


class Subject:
    """A started application with a control directory, and a manual clock for its cordons."""

    def __init__(self, path: Path) -> None:
        self.app = make_app(LIFECYCLE_CONTROL_DIR=str(path))
        self.lifecycle = Lifecycle(self.app)
        self.state = state_of(self.app)
        self.state.startup.run()
        control: Any = self.state.control
        self.control = control
        self.control.clock = self.clock = ManualClock()

    @property
    def reason(self) -> str:
        return self.state.machine.reason

    @property
    def ready(self) -> bool:
        return self.lifecycle.state is State.READY

    @property
    def drained_by(self) -> str | None:
        """The reason of the shutdown, if one has begun."""
        return self.lifecycle.shutdown("test").reason if self.state.process.shutdown.begun else None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    subject = Subject(tmp_path)
    yield subject
    subject.control.stop()


def test_a_lease_ends_by_itself(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """A cordon takes the application out of rotation, and ends when its time has passed; its use is logged once."""
    # One of which some time has passed has its whole length as its reason, and ends with what is left.
    lease = subject.control.cordon(600, "alice", "HTTP from 10.0.0.1")
    assert subject.control.lease is lease
    assert (subject.lifecycle.state, subject.reason) == (State.NOT_READY, "cordoned by alice for 10m")
    assert subject.clock.pass_wait() == 600
    until(lambda: subject.ready)
    assert (subject.control.lease, subject.reason) == (None, "the cordon by alice has ended")
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == "cordon for 10m requested by alice (HTTP from 10.0.0.1)"
    assert (record.__dict__["lifecycle_action"], record.__dict__["lifecycle_by"]) == ("cordon", "alice")
    subject.control.cordon(600, "alice", "file", 20)
    assert subject.reason == "cordoned by alice for 10m"
    assert subject.clock.pass_wait() == 20
    until(lambda: subject.ready)


def test_a_new_lease_replaces_the_old_one(subject: Subject) -> None:
    """There is one lease at a time: the thread of the old one ends at once, and its end changes nothing."""
    before = threading.active_count()
    old = subject.control.cordon(10, "alice", "test")
    assert subject.clock.waits.get(timeout=BOUND) == 10
    subject.control.cordon(60, "bob", "test")
    assert old.cancelled.is_set()
    assert subject.reason == "cordoned by bob for 1m"
    until(lambda: threading.active_count() == before + 1)
    subject.clock.advance(10)
    assert not subject.ready
    assert subject.clock.pass_wait() == 60
    until(lambda: subject.ready)


def test_uncordon(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a cordon is logged with its operator's name, also if there was none; that of a replaced one is not."""
    # A request to end a certain lease does not end the one that has replaced it.
    old = subject.control.cordon(600, "alice", "file")
    lease = subject.control.cordon(600, "bob", "HTTP")
    caplog.clear()
    assert not subject.control.uncordon("the removal of its file", "file", old)
    assert (subject.reason, warnings(caplog)) == ("cordoned by bob for 10m", [])
    assert subject.control.uncordon("bob", "test")
    assert (subject.ready, subject.reason, lease.cancelled.is_set()) == (True, "uncordoned by bob", True)
    assert not subject.control.uncordon("bob", "test")
    assert warnings(caplog) == ["uncordon requested by bob (test)"] * 2


def test_a_lease_that_is_over_before_it_began(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that was delayed for longer than its lease leaves no cordon behind that never ends."""
    # Interleaving: the lease's thread finds its time over and nothing to end; only then the caller applies the cordon.
    start = threading.Thread.start

    def delayed(thread: threading.Thread) -> None:
        start(thread)
        subject.clock.pass_wait()
        thread.join(BOUND)

    monkeypatch.setattr(threading.Thread, "start", delayed)
    subject.control.cordon(1, "alice", "test")
    assert subject.ready


def test_a_cordon_in_a_shutdown(subject: Subject) -> None:
    """The shutdown ends the thread of a lease; another cordon and its end are refused, and leave no thread behind."""
    before = threading.active_count()
    lease = subject.control.cordon(600, "alice", "test")
    subject.lifecycle.shutdown()
    assert lease.cancelled.is_set()
    message = (
        "'cordon' cannot happen in state STOPPED; a drain is one-way and already answers readiness probes with 503."
    )
    with pytest.raises(RuntimeError, match=whole(message)):
        subject.control.cordon(600, "alice", "test")
    message = "'uncordon' cannot happen in state STOPPED; a drain is one-way, start a new process instead."
    with pytest.raises(RuntimeError, match=whole(message)):
        subject.control.uncordon("alice", "test")
    until(lambda: threading.active_count() == before)


def test_a_lease_that_ends_as_a_shutdown_begins(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that ends at the moment when a shutdown begins changes nothing and raises nothing."""
    # Interleaving: its thread finds its lease in place, and the shutdown begins before it applies the end.
    machine = subject.state.machine
    apply = machine.apply

    def late(event: Any, reason: str = "", lease: Any = None) -> Any:
        if threading.current_thread().name == "lifecycle-cordon":
            machine.apply = apply  # type: ignore[method-assign]
            subject.lifecycle.shutdown()
        return apply(event, reason, lease)

    monkeypatch.setattr(machine, "apply", late)
    subject.control.cordon(600, "alice", "test")
    subject.clock.pass_wait()
    until(lambda: "lifecycle-cordon" not in {thread.name for thread in threading.enumerate()})
    assert subject.lifecycle.state is State.STOPPED


def test_a_receiver_that_blocks_does_not_hold_the_end_of_a_lease(subject: Subject) -> None:
    """A receiver of the state that hangs does not keep the application out of rotation."""
    entered, go_on = threading.Event(), threading.Event()

    def receive(_sender: Any, new: State, **_more: Any) -> None:
        if new is State.NOT_READY:
            entered.set()
            assert go_on.wait(BOUND)

    with (
        state_changed.connected_to(receive, subject.app),
        running(lambda: subject.control.cordon(600, "alice", "test")),
    ):
        assert entered.wait(BOUND)
        subject.clock.pass_wait()
        until(lambda: subject.ready)
        go_on.set()


def test_drain(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """A drain begins the shutdown with the operator as its reason, and each request for it is logged."""
    subject.control.drain("alice", "HTTP from ::1")
    assert subject.drained_by == "drain requested by alice"
    subject.control.drain("bob", "test")
    assert warnings(caplog) == ["drain requested by alice (HTTP from ::1)", "drain requested by bob (test)"]
    assert [record.__dict__.get("lifecycle_action") for record in caplog.records].count("drain") == 2
