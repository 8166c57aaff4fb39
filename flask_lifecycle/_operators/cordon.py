"""Operators' actions on one application: to cordon it for a while, and to stop it; by HTTP and by file.

A *cordon* takes the application out of rotation and stops nothing: it is NOT_READY, and requests that still arrive are
served. It is a *lease* that expires, because a forgotten cordon would cost capacity for weeks. There is one at a time;
a new one replaces the old one.

Each lease has a thread of its own, started before the cordon takes effect: a receiver or a log handler may block the
thread that changes the state, and the lease must end all the same. One that ends before it takes effect finds nothing
to end, so the caller checks the time again. A child that is forked meanwhile has no such thread, so its cordon lasts
until it is ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import threading
from typing import Any

from .._config import shown
from .._core.deadline import Clock, Deadline
from .._core.feature import Feature
from .._core.log import logger
from .._core.state import ENDING, Event, State, StateMachine

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


@dataclasses.dataclass(eq=False)
class Lease:
    """One cordon."""

    by: str  # the operator's name
    seconds: float  # its whole length
    until: Deadline  # when it expires
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def reason(self) -> str:
        return f"cordoned by {self.by} for {format_duration(self.seconds)}"


class Control(Feature):
    """Operators' actions on one application. Any thread may call them; none blocks."""

    def __init__(self, application: Any) -> None:
        super().__init__(application)
        self._machine: StateMachine = application.machine
        self.clock = Clock()

    @property
    def lease(self) -> Lease | None:
        lease = self._machine.cordon
        return lease if isinstance(lease, Lease) else None

    def cordon(self, seconds: float, by: str, way: str, left: float | None = None) -> Lease:
        """Answer readiness probes with 503 for some seconds.

        :param way: how the request arrived, for the log.
        :param left: how many of the seconds are left; by default all.
        :raises RuntimeError: a shutdown has begun.
        """
        lease = Lease(by, seconds, Deadline.after(self.clock, seconds if left is None else left))
        replaced = self.lease
        threading.Thread(target=self._wait, args=(lease,), name="lifecycle-cordon", daemon=True).start()
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
        self._application.process.drain(f"drain requested by {by}")
        _log("drain", by, way)

    def _wait(self, lease: Lease) -> None:
        if not self.clock.wait(lease.cancelled, lease.until.remaining()):
            self._end(lease)

    def _end(self, lease: Lease) -> None:
        with contextlib.suppress(RuntimeError):  # a shutdown has begun meanwhile
            self._machine.apply(Event.UNCORDON, f"the cordon by {lease.by} has ended", lease)

    def state_changed(self, new: State, reason: str) -> None:
        """End the lease's thread when a shutdown begins."""
        lease = self.lease
        if new in ENDING and lease is not None:
            lease.cancelled.set()

    def stop(self) -> None:
        self.state_changed(State.STOPPED, "")


def _log(action: str, by: str, way: str, more: str = "") -> None:
    logger.warning(
        "%s%s requested by %s (%s)", action, more, by, way, extra={"lifecycle_action": action, "lifecycle_by": by}
    )


# -- durations ----------------------------------------------------------------------------------------------------

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
# Only ASCII digits: \d and float() also accept those of forty other scripts.
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
# Each unit once, the longer before the shorter: "5m5m" and "1s1h" are probably mistakes, so they are refused.
_DURATION = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in _UNITS))


def parse_duration(name: str, value: str, most: float) -> float:
    """Seconds, from a text such as ``"10m"``, ``"1h30m"`` or ``"5"``.

    :param name: the name of the duration, for the error.
    :param most: the maximum, in seconds.
    :raises ValueError: it is not a duration, not longer than zero, or too long.
    """
    seconds = _seconds(value)
    if not math.isfinite(seconds):
        raise ValueError(
            f"'{name}' must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d,"
            f" not {shown(value)}."
        )
    if seconds <= 0:
        raise ValueError(f"'{name}' must be longer than zero, such as '10m', not {shown(value)}.")
    if seconds > most:
        raise ValueError(f"'{name}' must be at most '{format_duration(most)}', not {shown(value)}; renew it then.")
    return seconds


def format_duration(seconds: float) -> str:
    """As :func:`parse_duration` reads it: ``1h30m`` for 5400, ``0.5s`` for a half."""
    text, left = "", math.floor(seconds)
    for unit in ("d", "h", "m"):
        count, left = divmod(left, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    rest = left + seconds % 1
    return text + (f"{rest:.3g}s" if rest or not text else "")


def _seconds(value: str) -> float:
    """The seconds of a duration; ``nan`` for anything else."""
    text = value.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    numbers = _DURATION.fullmatch(text)
    if not text or numbers is None:
        return math.nan
    return sum(float(number) * unit for number, unit in zip(numbers.groups("0"), _UNITS.values(), strict=True))
