"""What operators may ask of an application: cordons that end by themselves, and the drain."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from flask_lifecycle import State
from flask_lifecycle._core.state import Event, StateMachine
from flask_lifecycle._operators import cordon
from tests._fakes import BOUND, ManualClock, running, until, whole


class Subject:
    """A started application, as far as operators see it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.told: list[tuple[State, str]] = []
        self.reasons: list[str] = []
        self.machine = StateMachine(ready=True, notify=self._told)
        self.control = cordon.Control(self.machine, self.reasons.append, self.clock)
        self.machine.apply(Event.STARTED)
        self.told.clear()

    def _told(self, old: State, new: State, reason: str) -> None:
        self.told.append((new, reason))
        self.control.state_changed(new, reason)


@pytest.fixture
def subject() -> Iterator[Subject]:
    """An application whose leases are over after the test."""
    subject = Subject()
    yield subject
    subject.control.stop()


def test_a_lease_ends_by_itself(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """A cordon takes the application out of rotation, and ends when its time has passed; its use is logged once."""
    lease = subject.control.cordon(600, "alice", "HTTP from 10.0.0.1")
    assert subject.control.lease is lease
    assert (subject.machine.state, subject.machine.reason) == (State.NOT_READY, "cordoned by alice for 10m")
    assert subject.clock.pass_wait() == 600
    until(lambda: subject.machine.state is State.READY)
    assert subject.control.lease is None
    assert subject.told == [
        (State.NOT_READY, "cordoned by alice for 10m"),
        (State.READY, "the cordon by alice has ended"),
    ]
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "cordon for 10m requested by alice (HTTP from 10.0.0.1)",
    )
    assert (record.__dict__["lifecycle_action"], record.__dict__["lifecycle_by"]) == ("cordon", "alice")


def test_a_new_lease_takes_the_place_of_the_old_one(subject: Subject) -> None:
    """One lease is held at a time: the end of the old one comes and goes unnoticed, and its thread ends at once."""
    before = threading.active_count()
    old = subject.control.cordon(10, "alice", "test")
    assert subject.clock.waits.get(timeout=BOUND) == 10
    subject.control.cordon(60, "bob", "test")
    assert old.cancelled.is_set()
    assert subject.machine.reason == "cordoned by bob for 1m"
    until(lambda: threading.active_count() == before + 1)
    subject.clock.advance(10)
    assert subject.machine.state is State.NOT_READY
    assert subject.clock.pass_wait() == 60
    until(lambda: subject.machine.state is State.READY)


def test_uncordon(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a cordon is logged once with who asked for it, also where there was none.

    Whoever ends a certain lease does not end another that has replaced it.
    """
    old = subject.control.cordon(600, "alice", "file")
    lease = subject.control.cordon(600, "bob", "HTTP")
    caplog.clear()
    assert not subject.control.uncordon("the removal of its file", "file", old)
    assert (subject.machine.reason, caplog.records) == ("cordoned by bob for 10m", [])
    assert subject.control.uncordon("bob", "test")
    assert (subject.machine.state, lease.cancelled.is_set()) == (State.READY, True)
    assert subject.told[-1] == (State.READY, "uncordoned by bob")
    assert not subject.control.uncordon("bob", "test")
    assert [record.getMessage() for record in caplog.records] == ["uncordon requested by bob (test)"] * 2


def test_a_lease_that_has_less_left(subject: Subject) -> None:
    """A lease of which some has passed is told as it was made, and ends with what is left."""
    subject.control.cordon(600, "alice", "file", 20)
    assert subject.machine.reason == "cordoned by alice for 10m"
    assert subject.clock.pass_wait() == 20
    until(lambda: subject.machine.state is State.READY)


def test_a_lease_that_is_over_before_it_began(subject: Subject) -> None:
    """A caller that was held up for longer than its lease does not leave a cordon behind that never ends."""
    # The lease's thread finds its time over, and nothing to end; only then the caller makes the cordon.
    watch = subject.control._watch

    def held_up(lease: cordon.Lease) -> None:
        watch(lease)
        subject.clock.pass_wait()
        until(lambda: not any(thread.name == "lifecycle-cordon" for thread in threading.enumerate()))

    subject.control._watch = held_up  # type: ignore[method-assign]
    subject.control.cordon(1, "alice", "test")
    assert subject.machine.state is State.READY


def test_nothing_is_left_of_a_cordon_that_is_refused(subject: Subject) -> None:
    """In a shutdown a cordon and its end are refused, and no thread is left waiting."""
    subject.machine.apply(Event.DRAIN, "stop")
    before = threading.active_count()
    message = (
        "'cordon' cannot happen in state DRAINING; a drain is one-way and already answers readiness probes with 503."
    )
    with pytest.raises(RuntimeError, match=whole(message)):
        subject.control.cordon(600, "alice", "test")
    message = "'uncordon' cannot happen in state DRAINING; a drain is one-way, start a new process instead."
    with pytest.raises(RuntimeError, match=whole(message)):
        subject.control.uncordon("alice", "test")
    until(lambda: threading.active_count() == before)


def test_a_lease_that_ends_in_a_shutdown(subject: Subject) -> None:
    """A lease that ends at the moment when a shutdown begins changes nothing and raises nothing."""
    # The thread finds its lease in place and, before it ends it, the shutdown begins.
    lease = subject.control.cordon(600, "alice", "test")
    subject.machine.apply(Event.DRAIN, "stop")
    assert lease.cancelled.is_set()
    subject.control._end(lease)
    assert subject.machine.state is State.DRAINING


def test_a_receiver_that_blocks_does_not_hold_the_end_of_a_lease(subject: Subject) -> None:
    """A receiver that hangs while it is told of a cordon does not keep the application out of rotation."""
    told, go_on = threading.Event(), threading.Event()

    def notify(old: State, new: State, reason: str) -> None:
        if new is State.NOT_READY:
            told.set()
            assert go_on.wait(BOUND)

    subject.machine._notify = notify
    with running(lambda: subject.control.cordon(600, "alice", "test")):
        assert told.wait(BOUND)
        subject.clock.pass_wait()
        until(lambda: subject.machine.state is State.READY)
        go_on.set()


def test_drain(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """A drain begins the shutdown with who asked for it as its reason, and is logged once for each."""
    subject.control.drain("alice", "HTTP from ::1")
    subject.machine.apply(Event.DRAIN, "stop")
    subject.control.drain("bob", "test")
    assert subject.reasons == ["drain requested by alice", "drain requested by bob"]
    assert [record.getMessage() for record in caplog.records] == [
        "drain requested by alice (HTTP from ::1)",
        "drain requested by bob (test)",
    ]
    assert caplog.records[0].__dict__["lifecycle_action"] == "drain"


@pytest.mark.parametrize("name", ["alice", "alice@host.example", "Zoë", "x" * 64, "a=b", "10.0.0.1", "::1"])
def test_names(name: str) -> None:
    """Names are what can be seen, without blanks."""
    assert cordon.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a\nb", "a\rb", "a\0", "\x1b[31m", "a\u2028b", "a\u202eb", "a\u00a0b", "\ud800", "x" * 65],
    ids=ascii,
)
def test_what_is_no_name(name: str) -> None:
    """What could be taken for something else in a log is refused, and shown in plain characters."""
    shown = ascii(name) if len(name) < 65 else "'" + "x" * 56 + "..."
    message = f"'by' must be a name of up to 64 visible characters without blanks, such as 'alice', not {shown}."
    with pytest.raises(ValueError, match=whole(message)):
        cordon.check_name(name)
