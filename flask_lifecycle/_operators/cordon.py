"""Operators' actions on one application: to cordon it for a while, and to stop it; by HTTP and by file.

A *cordon* takes the application out of rotation and stops nothing: it is NOT_READY, and requests that still arrive are
served. It is a *lease* that expires, because a forgotten cordon would cost capacity for weeks. There is one at a time;
a new one replaces the old one.

Each lease has a thread of its own that waits for its end, and no shared scheduler: a receiver or a log handler that is
notified of a change of the state may block the thread that made it, and then no later lease would expire. The thread is
started before the cordon takes effect, for the same reason. If the lease is so short, or the caller held up for so
long, that it expires before that, the thread finds nothing to end; so the caller checks the time again when the cordon
is in effect.

A forked child inherits the lease and not the thread. Its first probe starts one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from .._config import shown
from .._core.deadline import Clock, Deadline
from .._core.feature import Feature
from .._core.state import ENDING, Event, State, StateMachine, logger
from .._operators.duration import format_duration

# Longer than any maintenance, and short enough that a forgotten cordon is found within a week.
LONGEST_CORDON = 7 * 86400.0
_LONGEST_NAME = 64


def check_name(name: str) -> str:
    """Check an operator's name, which is logged and in the answers of probes.

    :raises ValueError: it is empty, too long, or has blanks or line ends.
    """
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or any(map(str.isspace, name)):
        raise ValueError(
            f"'by' must be a name of up to {_LONGEST_NAME} visible characters without blanks, such as 'alice',"
            f" not {shown(name)}."
        )
    return name


class Lease:
    """One cordon.

    :param by: the operator's name.
    :param seconds: its whole length.
    :param until: when it expires.
    """

    def __init__(self, by: str, seconds: float, until: Deadline) -> None:
        self.by = by
        self.seconds = seconds
        self.until = until
        self.cancelled = threading.Event()
        self.watched_in = 0

    @property
    def reason(self) -> str:
        return f"cordoned by {self.by} for {format_duration(self.seconds)}"


class Control(Feature):
    """Operators' actions on one application. Any thread may call them; none blocks.

    :param shutdown: begins the shutdown of the process for a reason, without blocking.
    """

    def __init__(self, machine: StateMachine, shutdown: Callable[[str], object], clock: Clock | None = None) -> None:
        self._machine = machine
        self._shutdown = shutdown
        self._clock = clock or Clock()

    @property
    def lease(self) -> Lease | None:
        """The current cordon."""
        lease = self._machine.cordon
        return lease if isinstance(lease, Lease) else None

    def cordon(self, seconds: float, by: str, way: str, left: float | None = None) -> Lease:
        """Answer readiness probes with 503 for some seconds.

        :param way: how the request arrived, for the log.
        :param left: how many of the seconds are left; by default all.
        :raises RuntimeError: a shutdown has begun.
        """
        lease = Lease(by, seconds, Deadline.after(self._clock, seconds if left is None else left))
        replaced = self.lease
        self._watch(lease)
        try:
            self._machine.apply(Event.CORDON, lease.reason, lease)
        except RuntimeError:
            lease.cancelled.set()
            raise
        if replaced is not None:
            replaced.cancelled.set()
        if not lease.until.remaining():
            self._end(lease)
        _log("cordon", by, way, f" for {format_duration(seconds)}")
        return lease

    def uncordon(self, by: str, way: str, lease: Lease | None = None) -> bool:
        """End the cordon, or only the given one; return whether it was in effect.

        :raises RuntimeError: a shutdown has begun.
        """
        held = self.lease
        self._machine.apply(Event.UNCORDON, f"uncordoned by {by}", lease)
        if lease is not None and held is not lease:
            return False
        if held is not None:
            held.cancelled.set()
        _log("uncordon", by, way)
        return held is not None

    def drain(self, by: str, way: str) -> None:
        """Begin the shutdown of the process, as a signal would."""
        self._shutdown(f"drain requested by {by}")
        _log("drain", by, way)

    def on_probe(self) -> None:
        """Start the thread of an inherited lease in a forked child."""
        lease = self.lease
        if lease is not None and lease.watched_in != os.getpid():
            self._watch(lease)

    def _watch(self, lease: Lease) -> None:
        lease.watched_in = os.getpid()
        threading.Thread(target=self._wait, args=(lease,), name="lifecycle-cordon", daemon=True).start()

    def _wait(self, lease: Lease) -> None:
        if not self._clock.wait(lease.cancelled, lease.until.remaining()):
            self._end(lease)

    def _end(self, lease: Lease) -> None:
        if self._machine.cordon is lease:
            with contextlib.suppress(RuntimeError):  # a shutdown has begun meanwhile
                self._machine.apply(Event.UNCORDON, f"the cordon by {lease.by} has ended", lease)

    @classmethod
    def of(cls, application: Any) -> Control:
        return cls(application.machine, application.process.drain)

    def state_changed(self, new: State, reason: str) -> None:
        """End the lease's thread when a shutdown begins."""
        lease = self.lease
        if new in ENDING and lease is not None:
            lease.cancelled.set()

    def stop(self) -> None:
        """End the lease's thread."""
        self.state_changed(State.STOPPED, "")


def _log(action: str, by: str, way: str, more: str = "") -> None:
    logger.warning(
        "%s%s requested by %s (%s)", action, more, by, way, extra={"lifecycle_action": action, "lifecycle_by": by}
    )
