"""The states of an application and the one table of what leads from which to which.

::

    STARTING --started--> READY <--ready/not_ready--> NOT_READY
        \\                   |                            |
         `------ drain ------+------------- drain --------'
                             v
                         DRAINING --stop--> STOPPING --stopped--> STOPPED

A stop (``drain``) is legal in every state, also while starting and also when one is already under way, where
it changes nothing. From DRAINING on nothing leads back: readiness by hand is refused, because a balancer that
has begun to forget this process must not be called back to it.

Readiness that the application sets by hand before it has started is remembered, not an error: ``started`` then
leads to READY or to NOT_READY by what was wished last.

An operator's *cordon* lies over what the application wishes: while it is there, the application is NOT_READY for the
cordon's reason, and what the application wishes meanwhile is remembered and takes effect when the cordon has gone. So
READY and NOT_READY are one place in the table, and which of the two it is, wish and cordon say together.

Only :class:`StateMachine` changes a state. Everybody else reads ``machine.state``, which is one attribute and
needs no lock. The lock guards the transition alone; the blinker signal is sent after it was released, in the
thread that made the change, so two changes in quick succession from two threads may be heard out of order by
their receivers (each is told both ends of its own step, so none is misled).
"""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
from collections.abc import Callable
from typing import Any

from blinker import NamedSignal, Namespace


class _Log(logging.LoggerAdapter):  # type: ignore[type-arg]  # subscriptable from Python 3.11 on
    """The one logger. A handler that raises is the application's trouble, and must not change the course of a stop."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **kwargs)


logger = _Log(logging.getLogger("flask_lifecycle"), {})

state_changed = Namespace().signal(
    "lifecycle-state-changed",
    doc="""Sent once for each change of state, after it took effect, in the thread that made it. The sender is the
    application; ``old`` and ``new`` are :class:`State` members, ``reason`` says why. A receiver that raises is
    logged and does not stop the change or the other receivers.""",
)


class State(enum.Enum):
    """Where an application is between its start and its end."""

    STARTING = "STARTING"
    READY = "READY"
    NOT_READY = "NOT_READY"
    DRAINING = "DRAINING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"


class Event(enum.Enum):
    """What can happen to an application."""

    STARTED = "started"
    SET_READY = "set_ready"
    SET_NOT_READY = "set_not_ready"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    DRAIN = "drain"
    STOP = "stop"
    STOPPED = "stopped"


S, E = State, Event

# The four that an application and its operators wish by; where they may, they are remembered from the start on.
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

# From here on nothing leads back; views, guard and servers ask this and nothing finer.
ENDING = frozenset({S.DRAINING, S.STOPPING, S.STOPPED})


class StateMachine:
    """The state of one application. Any thread may use it; but for :meth:`wait_for` nothing blocks.

    :param ready: whether the application is ready as soon as it has started.
    :param notify: called as ``notify(old, new, reason)`` after each change, without the lock.
    """

    def __init__(self, *, ready: bool, notify: Callable[[State, State, str], None]) -> None:
        self.state = State.STARTING
        self.reason = "starting"
        self.reached_ready = False
        self.was_ready = False  # at the moment when the drain began
        self.cordon: object | None = None  # what the operator's cordon is known by, if there is one
        self._wish = (ready, "started" if ready else "waiting for set_ready()")
        self._cordon_reason = ""
        self._notify = notify
        self._changed = threading.Condition()  # guards all of these

    def apply(self, event: Event, reason: str = "", cordon: object | None = None) -> State:
        """Make the transition that ``event`` stands for and return the state it led to.

        :param cordon: what begins to be known by this (CORDON), or ends if it still is that one (UNCORDON; ``None``:
            whichever there is). A lease that has run out must not end the one that has replaced it.
        :raises RuntimeError: ``event`` is illegal in this state; nothing has changed.
        """
        with self._changed:
            old = self.state
            try:
                new = TRANSITIONS[old][event]
            except KeyError:
                raise RuntimeError(
                    f"'{event.value}' cannot happen in state {old.name}; {_CURES.get(event, 'it is out of order')}."
                ) from None
            if event is Event.UNCORDON and cordon is not self.cordon and cordon is not None:
                return old
            self._remember(event, reason, cordon)
            if new in (State.READY, State.NOT_READY):
                new, reason = self._as_wished(event, reason)
            self.state = new
            if new is not old or new is State.NOT_READY or event is Event.SET_NOT_READY:
                self.reason = reason
            self.reached_ready = self.reached_ready or new is State.READY
            self._changed.notify_all()
        if new is not old:
            self._notify(old, new, reason)
        return new

    def wait_for(self, wanted: Callable[[State], bool], timeout: float | None) -> bool:
        """Block until the state is one that is wanted; say whether it is. The one method that blocks."""
        with self._changed:
            return self._changed.wait_for(lambda: wanted(self.state), timeout)

    def after_fork(self, *, keep: bool = False) -> None:
        """Be in a forked child as before the start, but for what is wished: who serves there starts for itself.

        :param keep: stay what it is, as the parent's.
        """
        self._changed = threading.Condition()
        if not keep and self.state not in ENDING:
            self.state, self.reason, self.reached_ready = State.STARTING, "starting", False

    def _remember(self, event: Event, reason: str, cordon: object | None) -> None:
        if event is Event.SET_READY or event is Event.SET_NOT_READY:
            self._wish = (event is Event.SET_READY, reason)
        elif event is Event.CORDON:
            self.cordon, self._cordon_reason = reason if cordon is None else cordon, reason
        elif event is Event.UNCORDON:
            self.cordon = None
        elif event is Event.DRAIN and self.state not in ENDING:
            self.was_ready = self.state is State.READY

    def _as_wished(self, event: Event, reason: str) -> tuple[State, str]:
        """Which of READY and NOT_READY it is, and why: a cordon goes before what the application wishes."""
        ready, wished = self._wish
        if self.cordon is not None:
            return State.NOT_READY, self._cordon_reason
        if not ready:
            return State.NOT_READY, wished
        return State.READY, wished if event is Event.STARTED else reason

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
    """Log a change of state and send the signal."""
    logger.info("state %s -> %s", old.name, new.name, extra={"lifecycle_state": new.name, "lifecycle_reason": reason})
    send(state_changed, sender, old=old, new=new, reason=reason)


def send(signal: NamedSignal, sender: Any, **values: Any) -> None:
    """Send a signal; a receiver that raises is logged, and the others still hear it."""
    for receiver in signal.receivers_for(sender):
        try:
            receiver(sender, **values)
        except Exception:
            name = signal.name.removeprefix("lifecycle-").replace("-", "_")
            logger.exception("a receiver of %s failed", name, extra={"lifecycle_signal": name})
