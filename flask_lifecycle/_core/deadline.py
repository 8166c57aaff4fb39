"""The clock of every wait, and a moment on it."""

from __future__ import annotations

import threading
import time


class Clock:
    """The system's monotonic clock, and the only way in which a shutdown waits; tests put in another."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(max(0.0, timeout))


class Deadline:
    """A moment on a clock, made once and passed down.

    :param seconds: how far away it was when it was made.
    """

    def __init__(self, clock: Clock, at: float, seconds: float = 0.0) -> None:
        self.clock = clock
        self.at = at
        self.seconds = seconds

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        return cls(clock, clock.monotonic() + seconds, seconds)

    def remaining(self) -> float:
        """Seconds left, never less than zero."""
        return max(0.0, self.at - self.clock.monotonic())

    def earlier(self, seconds: float) -> Deadline:
        return Deadline(self.clock, self.at - seconds)
