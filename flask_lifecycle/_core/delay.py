"""The delay of a shutdown: requests are still accepted and served while load balancers notice that it has begun.

It ends after a number of seconds, or when the adaptive delay allows it, but not before the ``on_drain`` functions that
keep the listener open have returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .deadline import Clock, Deadline
from .log import logger
from .server import AdaptiveDelay, Application


class Plan(NamedTuple):
    """The longest delay, and what ends it: a number of seconds, and adaptive delays."""

    seconds: float
    fixed: float
    adaptive: Sequence[AdaptiveDelay]

    @classmethod
    def of(cls, applications: Iterable[Application], late: float, until: Deadline) -> Plan:
        """Plan a delay that ends by a deadline.

        :param late: the number of seconds since other processes at this address began their delay.
        """
        # A balancer never sent requests to an application that was never ready, so it does not have to notice.
        noticed = [each for each in applications if each.machine.reached_ready]
        longest = max((each.settings.longest_delay for each in noticed), default=0.0)
        fixed = max((each.settings.longest_delay for each in noticed if each.adaptive_delay is None), default=0.0)
        seconds = min(max(0.0, longest - late), until.remaining())
        return cls(seconds, min(seconds, fixed), [each.adaptive_delay for each in noticed if each.adaptive_delay])

    def __str__(self) -> str:
        return f"{'auto, at most ' if self.adaptive else ''}{self.seconds:.1f} s"


class Delay:
    """Waits for the end of the delay, in the shutdown's thread; any thread may call :meth:`cut` and :meth:`release`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._cut = threading.Event()
        self._released = threading.Event()
        self._ask_again = threading.Event()

    def cut(self) -> None:
        """End or skip the delay, because no connection is accepted any more."""
        self._cut.set()
        self._released.set()
        self._ask_again.set()

    def release(self) -> None:
        """Let the delay end: no ``on_drain`` function keeps the listener open any more."""
        self._released.set()

    def wait(self, plan: Plan, until: Deadline, queued: Callable[[], int]) -> None:
        """Block until the delay is over.

        :param queued: returns the number of requests that wait in the server.
        """
        began = self.clock.monotonic()
        self._wait_adaptive(plan.adaptive, Deadline(self.clock, began + plan.seconds), queued)
        self.clock.wait(self._cut, began + plan.fixed - self.clock.monotonic())
        if plan.adaptive and not self._cut.is_set():
            logger.info(
                "delay ended %s", "; ".join(map(str, plan.adaptive)),
                extra={"lifecycle_delay": self.clock.monotonic() - began},
            )  # fmt: skip
        if not self._released.is_set():
            logger.info(
                "delay continues because an on_drain function keeps the listener open",
                extra={"lifecycle_delay": self.clock.monotonic() - began},
            )
            self.clock.wait(self._released, until.remaining())

    def _wait_adaptive(self, delays: Sequence[AdaptiveDelay], latest: Deadline, queued: Callable[[], int]) -> None:
        for delay in delays:
            delay.start(self.clock.monotonic(), latest.at, self._ask_again)
        while True:
            self._ask_again.clear()  # before asking, so that an event meanwhile ends the wait below
            # Ask all of them each time: new work may revoke the consent of one.
            pauses = [delay.pause(self.clock.monotonic(), queued) for delay in delays]
            if not any(pauses) or self._cut.is_set():
                return
            self.clock.wait(self._ask_again, min(pause for pause in pauses if pause))
