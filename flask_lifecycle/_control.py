"""What operators may ask of an application: to be out of rotation for a while, and to stop; by HTTP and by file.

A *cordon* takes the application out of rotation and stops nothing: it is NOT_READY, and what comes all the same is
served. It is a *lease*, because a cordon that somebody has forgotten costs capacity for weeks: it ends by itself. One
is held at a time, and a new one takes the place of the old one.

Every lease has a thread of its own, which waits for its end, and no scheduler that all share: whoever is told of a
change of the state (a receiver, a handler of the log) may block the thread that made it, and then no later lease would
end. The thread is started before the cordon takes effect, for the same reason. If the lease were so short, or the
caller held up for so long, that it ended before that, the thread would find nothing to end; so the caller looks at the
time once more when the cordon is there.

A forked child has the lease and not the thread. It gets one from its first probe on; whoever is never asked whether it
is ready need not know.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

from ._deadline import Clock, Deadline
from ._duration import format_duration, shown
from ._state import ENDING, Event, State, StateMachine, logger

# Longer than any maintenance takes, and short enough that a forgotten cordon is found in the week it was made.
LONGEST_CORDON = 7 * 86400.0
_LONGEST_NAME = 64


def check_name(name: str) -> str:
    """The name of who asks for something: it goes to the log and into what probes are answered.

    :raises ValueError: it could be taken for something else there: it has blanks or line ends, or is none.
    """
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or any(map(str.isspace, name)):
        raise ValueError(
            f"'by' must be a name of up to {_LONGEST_NAME} visible characters without blanks, such as 'alice',"
            f" not {shown(name)}."
        )
    return name


class Lease:
    """One cordon.

    :param by: who asked for it.
    :param seconds: how long it is in all.
    :param until: when it ends.
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


class Control:
    """What operators ask of one application. Any thread may call it; nothing waits for what it begins.

    :param shutdown: begins the shutdown of the process for a reason, and does not wait.
    """

    def __init__(self, machine: StateMachine, shutdown: Callable[[str], object], clock: Clock | None = None) -> None:
        self._machine = machine
        self._shutdown = shutdown
        self._clock = clock or Clock()

    @property
    def lease(self) -> Lease | None:
        """The cordon that holds now."""
        lease = self._machine.cordon
        return lease if isinstance(lease, Lease) else None

    def cordon(self, seconds: float, by: str, way: str, left: float | None = None) -> Lease:
        """Answer readiness probes with 503 for so long.

        :param way: how it was asked for, for the log.
        :param left: so many of the seconds are left; by default all.
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
        """End the cordon, or a certain one if it still holds; say whether there was one.

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

    @property
    def draining(self) -> bool:
        """Whether the shutdown has begun."""
        return self._machine.ending

    def drain(self, by: str, way: str) -> None:
        """Begin the shutdown of the process, as a signal would."""
        self._shutdown(f"drain asked for by {by}")
        _log("drain", by, way)

    def nudge(self) -> None:
        """A probe has come: see to it that the lease ends in this process, too."""
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
            with contextlib.suppress(RuntimeError):  # a shutdown was quicker
                self._machine.apply(Event.UNCORDON, f"the cordon by {lease.by} has ended", lease)

    # -- as a companion of the application --------------------------------------------------------------------------

    def begin(self) -> None:
        """Nothing is to be done before somebody asks for it."""

    def state_changed(self, new: State, reason: str) -> None:
        """In a shutdown nobody waits for the end of a cordon."""
        lease = self.lease
        if new in ENDING and lease is not None:
            lease.cancelled.set()

    def end(self) -> None:
        """The shutdown is over, and with it every lease."""
        self.state_changed(State.STOPPED, "")


def _log(action: str, by: str, way: str, more: str = "") -> None:
    logger.warning(
        "%s%s asked for by %s (%s)", action, more, by, way, extra={"lifecycle_action": action, "lifecycle_by": by}
    )
