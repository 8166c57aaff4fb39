"""The states: the one table, the lock, the signal."""

from __future__ import annotations

import itertools
import threading

import pytest

from flask_lifecycle import State
from flask_lifecycle._core.state import Event, StateMachine
from tests._fakes import BOUND, running, whole

ENDING = (State.DRAINING, State.STOPPING, State.STOPPED)
BY_HAND = {Event.SET_READY, Event.SET_NOT_READY, Event.CORDON, Event.UNCORDON}
LEGAL = {
    State.STARTING: {Event.STARTED, Event.DRAIN, *BY_HAND},
    State.READY: {Event.DRAIN, *BY_HAND},
    State.NOT_READY: {Event.DRAIN, *BY_HAND},
    State.DRAINING: {Event.DRAIN, Event.STOP},
    State.STOPPING: {Event.DRAIN, Event.STOPPED},
    State.STOPPED: {Event.DRAIN},
}
ILLEGAL = [(state, event) for state in State for event in Event if event not in LEGAL[state]]
CURES = {
    Event.SET_READY: "a drain is one-way, start a new process instead",
    Event.SET_NOT_READY: "a drain is one-way and already answers readiness probes with 503",
    Event.CORDON: "a drain is one-way and already answers readiness probes with 503",
    Event.UNCORDON: "a drain is one-way, start a new process instead",
    Event.STARTED: "an application starts once, and not after its shutdown has begun",
    Event.STOP: "it is out of order",
    Event.STOPPED: "it is out of order",
}


class Heard(list[tuple[State, State, str]]):
    """The changes that a machine told of."""

    def __call__(self, old: State, new: State, reason: str) -> None:
        self.append((old, new, reason))


def machine(state: State = State.STARTING, *, ready: bool = True) -> tuple[StateMachine, Heard]:
    """A machine that legal events have led to a state, and what it tells from then on."""
    heard = Heard()
    made = StateMachine(ready=ready, notify=heard)
    way = {
        State.STARTING: [],
        State.READY: [Event.STARTED],
        State.NOT_READY: [Event.STARTED, Event.SET_NOT_READY],
        State.DRAINING: [Event.DRAIN],
        State.STOPPING: [Event.DRAIN, Event.STOP],
        State.STOPPED: [Event.DRAIN, Event.STOP, Event.STOPPED],
    }
    for event in way[state]:
        made.apply(event, "brought")
    assert made.state is state
    heard.clear()
    return made, heard


@pytest.mark.parametrize("state", State)
def test_a_stop_is_legal_in_every_state(state: State) -> None:
    """A drain leads to DRAINING from any state before it, and changes nothing after it, its reason included."""
    subject, heard = machine(state)
    after = subject.apply(Event.DRAIN, "stop")
    assert after is (state if state in ENDING else State.DRAINING)
    assert len(heard) == (0 if state in ENDING else 1)
    assert subject.reason == ("brought" if state in ENDING else "stop")
    assert subject.ending


@pytest.mark.parametrize(("state", "event"), ILLEGAL, ids=lambda value: value.name)
def test_an_illegal_event_changes_nothing(state: State, event: Event) -> None:
    """An event that the table does not have raises, names itself and the state, and changes nothing."""
    subject, heard = machine(state)
    before = (subject.state, subject.reason, subject.reached_ready, subject.cordon, list(heard))
    message = f"'{event.value}' cannot happen in state {state.name}; {CURES[event]}."
    with pytest.raises(RuntimeError, match=whole(message)) as caught:
        subject.apply(event, "illegal")
    assert caught.value.__suppress_context__
    assert (subject.state, subject.reason, subject.reached_ready, subject.cordon, list(heard)) == before


@pytest.mark.parametrize("ready", [True, False])
def test_what_the_start_leads_to(ready: bool) -> None:
    """READY comes by itself once the start-up is done, unless readiness is set by hand; each change is told once."""
    subject, heard = machine(ready=ready)
    assert subject.apply(Event.STARTED) is (State.READY if ready else State.NOT_READY)
    assert subject.reason == ("started" if ready else "waiting for set_ready()")
    assert subject.reached_ready is ready
    assert not subject.ending
    subject.apply(Event.SET_NOT_READY, "paused")
    subject.apply(Event.SET_NOT_READY, "another reason")
    assert subject.reason == "another reason"
    for reason in ("by hand", "twice"):
        subject.apply(Event.SET_READY, reason)
    assert (subject.reason, subject.reached_ready) == ("by hand", True)
    assert heard[-1] == (State.NOT_READY, State.READY, "by hand")
    assert len(heard) == (3 if ready else 2)


@pytest.mark.parametrize("ready", [True, False])
def test_last_wish_before_the_start_is_remembered(ready: bool) -> None:
    """Readiness set by hand while starting is no error; the start leads to what was wished last."""
    subject, heard = machine(ready=not ready)
    first, last = (Event.SET_NOT_READY, Event.SET_READY) if ready else (Event.SET_READY, Event.SET_NOT_READY)
    assert subject.apply(first, "first") is State.STARTING
    assert subject.apply(last, "last") is State.STARTING
    assert heard == []
    assert subject.apply(Event.STARTED) is (State.READY if ready else State.NOT_READY)
    assert subject.reason == "last"


@pytest.mark.parametrize(
    ("before", "wish", "after", "reason"),
    [
        (State.READY, None, State.READY, "over"),
        (State.NOT_READY, None, State.NOT_READY, "brought"),
        (State.READY, Event.SET_NOT_READY, State.NOT_READY, "wish"),
        (State.NOT_READY, Event.SET_READY, State.READY, "over"),
    ],
)
def test_a_cordon_ends_in_what_the_application_wishes(
    before: State, wish: Event | None, after: State, reason: str
) -> None:
    """A cordon makes an application not ready for its reason; its end leads to what was wished before or meanwhile."""
    subject, heard = machine(before)
    subject.apply(Event.CORDON, "cordoned")
    if wish is not None:
        subject.apply(wish, "wish")
    assert (subject.state, subject.reason, subject.cordon) == (State.NOT_READY, "cordoned", "cordoned")
    subject.apply(Event.UNCORDON, "over")
    assert (subject.state, subject.reason, subject.cordon) == (after, reason, None)
    states = [before, State.NOT_READY, after]
    changes = [(old, new) for old, new in itertools.pairwise(states) if old is not new]
    assert [(old, new) for old, new, _reason in heard] == changes


@pytest.mark.parametrize("ended", [True, False])
def test_a_cordon_before_the_start_is_remembered(ended: bool) -> None:
    """A cordon while starting waits for the start, and one that has ended by then is forgotten."""
    subject, heard = machine()
    assert subject.apply(Event.CORDON, "cordoned") is State.STARTING
    assert subject.reason == "starting"
    if ended:
        assert subject.apply(Event.UNCORDON, "over") is State.STARTING
    assert heard == []
    assert subject.apply(Event.STARTED) is (State.READY if ended else State.NOT_READY)
    assert subject.reason == ("started" if ended else "cordoned")


def test_a_new_cordon_takes_the_place_of_the_old_one() -> None:
    """There is one cordon at a time, the last; the end of an old one does not end it, but a drain does."""
    subject, heard = machine(State.READY)
    assert subject.apply(Event.UNCORDON, "there is none") is State.READY
    assert subject.reason == "started"
    old, new = object(), object()
    subject.apply(Event.CORDON, "old", old)
    subject.apply(Event.CORDON, "new", new)
    assert (subject.reason, subject.cordon) == ("new", new)
    assert subject.apply(Event.UNCORDON, "old is over", old) is State.NOT_READY
    assert (subject.reason, subject.cordon) == ("new", new)
    assert subject.apply(Event.UNCORDON, "new is over", new) is State.READY
    assert heard == [(State.READY, State.NOT_READY, "old"), (State.NOT_READY, State.READY, "new is over")]
    subject.apply(Event.CORDON, "cordoned")
    assert subject.apply(Event.DRAIN, "stop") is State.DRAINING
    assert (subject.was_ready, subject.reached_ready) == (False, True)


def test_a_receiver_may_change_the_state() -> None:
    """A change has taken effect before it is told, and a receiver may change the state: nobody holds the lock then."""
    subject: StateMachine
    seen: list[tuple[State, State]] = []

    def notify(old: State, new: State, reason: str) -> None:
        seen.append((new, subject.state))
        if new is State.READY:
            subject.apply(Event.DRAIN, "from a receiver")

    subject = StateMachine(ready=True, notify=notify)
    with running(lambda: subject.apply(Event.STARTED)):
        pass
    assert seen == [(State.READY, State.READY), (State.DRAINING, State.DRAINING)]


def test_changes_out_of_order_tell_both_ends() -> None:
    """Two changes may be heard out of order, but each tells both ends of its own step."""
    # The first change is held in its receiver while the second is made and told by another thread.
    told: list[tuple[State, State]] = []
    held, go_on = threading.Event(), threading.Event()

    def notify(old: State, new: State, reason: str) -> None:
        if new is State.READY:
            held.set()
            assert go_on.wait(BOUND)
        told.append((old, new))

    subject = StateMachine(ready=True, notify=notify)
    with running(lambda: subject.apply(Event.STARTED)):
        assert held.wait(BOUND)
        subject.apply(Event.SET_NOT_READY, "quick")
        go_on.set()
    assert told == [(State.READY, State.NOT_READY), (State.STARTING, State.READY)]


def test_a_forked_child_is_before_its_start() -> None:
    """What is forked off a served process has not started, but knows what was wished; one that stops stays so."""
    subject, heard = machine(State.READY)
    subject.apply(Event.SET_NOT_READY, "paused")
    before = len(heard)
    subject.after_fork()
    assert (subject.state, subject.reason, subject.reached_ready) == (State.STARTING, "starting", False)
    assert subject.apply(Event.STARTED) is State.NOT_READY
    assert [new for _old, new, _reason in heard[before:]] == [State.NOT_READY]
    subject.apply(Event.DRAIN)
    subject.after_fork()
    assert subject.state is State.DRAINING
