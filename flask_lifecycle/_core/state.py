"""The states of an application and the table of transitions between them.

::

    STARTING --started--> READY <--ready/not_ready--> NOT_READY
        \\                   |                            |
         `------ drain ------+------------- drain --------'
                             v
                         DRAINING --stop--> STOPPING --stopped--> STOPPED

A shutdown (``drain``) is legal in every state; if one is under way, it changes nothing. No event leads back from
DRAINING: readiness by hand is refused, because a load balancer that removes this process must not get it back.

Readiness that is set by hand before the start, or during an operator's *cordon*, is remembered. During a cordon the
application is NOT_READY for the cordon's reason. So READY and NOT_READY have the same row in the table, and the last
request and the cordon together decide between them.

Only :class:`StateMachine` changes a state. Other code reads ``machine.state``, which needs no lock. The lock guards the
transition and its record, which is made before the state changes: a thread that sees the new state finds it recorded,
and records have the order of the changes. The blinker signal is sent after the lock was released, in the thread that
made the change, so receivers may get two changes of two threads in the other order (each call has the old and the new
state).
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable
from typing import Any

from blinker import NamedSignal, Namespace

from .log import logger

state_changed = Namespace().signal(
    "lifecycle-state-changed",
    doc="""Sent once for each change of state, after it took effect, in the thread that made it. The sender is the
    application; ``old`` and ``new`` are :class:`State` members, ``reason`` says why. A receiver that raises is
    logged and does not stop the change or the other receivers.""",
)


class State(enum.Enum):
    """The state of an application, from its start to its end."""

    STARTING = "STARTING"
    READY = "READY"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


class Event(enum.Enum):
    """The events of an application."""

    STARTED = "started"
    SET_READY = "set_ready"
    SET_NOT_READY = "set_not_ready"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"
    STOP = "stop"
    STOPPED = "stopped"


S, E = State, Event

# Requests of the application and of operators, which are remembered from the start on, and the shutdown.
_LIVE: dict[Event, State] = {
    E.SET_READY: S.READY,
    E.SET_NOT_READY: S.NOT_READY,
    E.CORDON: S.NOT_READY,
    E.UNCORDON: S.READY,
    E.DRAIN: S.DRAINING,
}
TRANSITIONS: dict[State, dict[Event, State]] = {
    S.STARTING: {**dict.fromkeys(_LIVE, S.STARTING), E.STARTED: S.READY, E.DRAIN: S.DRAINING},
    S.READY: _LIVE,
    S.NOT_READY: _LIVE,
    S.DRAINING: {E.DRAIN: S.DRAINING, E.STOP: S.STOPPING},
    S.STOPPING: {E.DRAIN: S.STOPPING, E.STOPPED: S.STOPPED},
    S.STOPPED: {E.DRAIN: S.STOPPED},
}

# No event leads back from these.
ENDING = frozenset({S.DRAINING, S.STOPPING, S.STOPPED})


class StateMachine:
    """The state of one application. Any thread may use it; only :meth:`wait_for` blocks.

    :param ready: whether the application is ready as soon as it has started.
    :param notify: called as ``notify(old, new, reason)`` after each change, without the lock.
    :param record: called in the same way just before each change, with the lock: it must not block.
    """

    def __init__(
        self,
        *,
        ready: bool,
        notify: Callable[[State, State, str], None],
        record: Callable[[State, State, str], None] = lambda old, new, reason: None,
    ) -> None:
        self.state = State.STARTING
        self.reason = "starting"
        self.draining = threading.Event()  # set in DRAINING and later
        self.reached_ready = False
        self.was_ready = False  # when the drain began
        self.cordon: object | None = None  # identifies the operator's cordon, if there is one
        self._requested = (ready, "started" if ready else "waiting for set_ready()")
        self._cordon_reason = ""
        self._notify = notify
        self._record = record
        self._changed = threading.Condition()  # guards all of these

    def apply(self, event: Event, reason: str = "", cordon: object | None = None) -> State:
        """Make the transition of an event and return the new state.

        :param cordon: identifies the cordon that begins (CORDON) or ends (UNCORDON; ``None`` ends any). The end of an
            expired lease must not end the cordon that has replaced it.
        :raises RuntimeError: ``event`` is illegal in this state; nothing has changed.
        """
        new, announce = self.change(event, reason, cordon)
        announce()
        return new

    def change(self, event: Event, reason: str, cordon: object | None = None) -> tuple[State, Callable[[], None]]:
        """As :meth:`apply`, but leave it to the caller when to announce the change, by the function returned."""
        with self._changed:
            old = self.state
            try:
                new = TRANSITIONS[old][event]
            except KeyError:
                raise RuntimeError(
                    f"'{event.value}' cannot happen in state {old.name}; {_CURES.get(event, 'it is out of order')}."
                ) from None
            if event is Event.UNCORDON and cordon is not self.cordon and cordon is not None:
                return old, lambda: None
            self._remember(event, reason, cordon)
            if new in (State.READY, State.NOT_READY):
                new, reason = self._as_requested(event, reason)
            if new is not old:
                self._record(old, new, reason)
            self.state = new
            if new is not old or new is State.NOT_READY or event is Event.SET_NOT_READY:
                self.reason = reason
            self.reached_ready = self.reached_ready or new is State.READY
            if new in ENDING:
                self.draining.set()
            self._changed.notify_all()
        if new is old:
            return new, lambda: None
        return new, lambda: self._notify(old, new, reason)

    def wait_for(self, wanted: Callable[[State], bool], timeout: float | None) -> bool:
        """Block until ``wanted`` accepts the state; return whether it does. The only method that blocks."""
        with self._changed:
            return self._changed.wait_for(lambda: wanted(self.state), timeout)

    def after_fork(self, *, keep: bool = False) -> None:
        """Return to STARTING in a forked child, which starts for itself; requested readiness is kept.

        :param keep: keep the parent's state.
        """
        self._changed = threading.Condition()
        if not keep and self.state not in ENDING:
            self.state, self.reason, self.reached_ready = State.STARTING, "starting", False

    def _remember(self, event: Event, reason: str, cordon: object | None) -> None:
        if event is Event.SET_READY or event is Event.SET_NOT_READY:
            self._requested = (event is Event.SET_READY, reason)
        elif event is Event.CORDON:
            self.cordon, self._cordon_reason = reason if cordon is None else cordon, reason
        elif event is Event.UNCORDON:
            self.cordon = None
        elif event is Event.DRAIN and self.state not in ENDING:
            self.was_ready = self.state is State.READY

    def _as_requested(self, event: Event, reason: str) -> tuple[State, str]:
        """Which of READY and NOT_READY it is, and why: a cordon overrides the application's request."""
        ready, why = self._requested
        if self.cordon is not None:
            return State.NOT_READY, self._cordon_reason
        if not ready:
            return State.NOT_READY, why
        return State.READY, why if event is Event.STARTED else reason

    @property
    def ending(self) -> bool:
        """Whether a shutdown has begun."""
        return self.state in ENDING


_CURES = {
    Event.SET_READY: "a drain is one-way, start a new process instead",
    Event.SET_NOT_READY: "a drain is one-way and already answers readiness probes with 503",
    Event.CORDON: "a drain is one-way and already answers readiness probes with 503",
    Event.UNCORDON: "a drain is one-way, start a new process instead",
    Event.STARTED: "an application starts once, and not after its shutdown has begun",
}


def announce_change(sender: Any, old: State, new: State, reason: str) -> None:
    """Log a change of state and send the signal.

    The last two states are at DEBUG; the report has them. NOT_READY is logged with its reason.
    """
    level = logging.DEBUG if new in (State.STOPPING, State.STOPPED) else logging.INFO
    why = f": {reason}" if new is State.NOT_READY else ""
    extra = {"lifecycle_state": new.name, "lifecycle_reason": reason}
    logger.log(level, "state %s -> %s%s", old.name, new.name, why, extra=extra)
    send(state_changed, sender, old=old, new=new, reason=reason)


def send(signal: NamedSignal, sender: Any, **values: Any) -> None:
    """Send a signal; a receiver that raises is logged, and the others are still called."""
    for receiver in signal.receivers_for(sender):
        try:
            receiver(sender, **values)
        except Exception:
            name = signal.name.removeprefix("lifecycle-").replace("-", "_")
            logger.exception("a receiver of %s failed", name, extra={"lifecycle_signal": name})
