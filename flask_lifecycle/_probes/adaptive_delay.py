"""The adaptive shutdown delay: ``LIFECYCLE_SHUTDOWN_DELAY = "auto"``.

A load balancer learns from the readiness probe that this instance stops, so the process can see when. The delay ends
when each prober has been refused ``LIFECYCLE_DELAY_PROBES`` times in a row, and after that no new work has arrived for
one second. ``docs/delay.md`` says which probers count, and why.

Silence counts during the delay as well, so a prober that dies does not hold it up. Refusals before the delay count: a
balancer that took the instance out when a check failed need not be refused again. If a prober asks too rarely to be
refused often enough, the delay takes its maximum, and the log names the prober.

How new work is seen
--------------------

The number of arrived requests is the sum of those that have left since the drain began, those that the application
runs, and those that wait in the server. A request that moves from the server's queue to the application does not change
the sum. We read the application first, so such a request may be missed once but is not counted twice. Leaving takes two
steps (see ``_core/tally.py``). Between them the sum is one too low, and the next sum is one higher, which makes the
delay a little longer.

A refused prober wakes the wait by an event. New work does not, because that would cost every request: we poll for it
every 50 ms, only during the delay.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from .._config import DELAY_QUIET, Settings
from .._core.feature import Feature
from .._core.inflight import Ledger
from .clients import Prober, Probers

_TICK = 0.05


class AdaptiveDelay(Feature):
    """Decides when the delay of one application ends. For the shutdown's thread alone."""

    def __init__(self, application: Any) -> None:
        self._settings: Settings = application.settings
        self._probers: Probers = application.probes.probers
        self._ledger: Ledger = application.ledger
        self._kubernetes = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        self._waited_for: list[Prober] = []
        self._seldom: list[Prober] = []
        self._began = self._latest = self._quiet_since = self._now = 0.0
        self._arrived = 0
        self._refused: threading.Event | None = None
        self._waited = False  # whether the last look found a prober to wait for
        self._cut = False  # whether the maximum ended the delay

    def start(self, now: float, latest: float, refused: threading.Event) -> None:
        self._began = self._now = self._quiet_since = now
        self._latest = min(latest, now + self._settings.delay_max)
        self._refused = refused
        here = [prober for prober in self._probers.all() if self._counts(prober, now)]
        self._seldom = [prober for prober in here if prober.interval > self._settings.delay_max]
        self._waited_for = [prober for prober in here if prober not in self._seldom]

    def _counts(self, prober: Prober, now: float) -> bool:
        if not prober.decides or self._is_local_kubelet(prober):
            return False
        # A prober that has asked once, and lately, may have just begun: it counts as soon as it asks again.
        return now - prober.last <= self._settings.delay_max if prober.count == 1 else not prober.silent(now)

    def _is_local_kubelet(self, prober: Prober) -> bool:
        return self._kubernetes and prober.agent.startswith("kube-probe/")

    def pause(self, now: float, queued: Callable[[], int]) -> float:
        """Return the seconds until the next look; 0 ends the delay."""
        self._now = now
        self._probers.on_refusal = self._refused  # before the look, so that no refusal in between is missed
        waiting = self._waiting()
        if waiting:
            # A tick later than the moment at which it counts as silent.
            pause = min(prober.silent_at() for prober in waiting) + _TICK - now
        else:
            # Any probe sets the event, thousands of times in a flood, and each look at the server is expensive.
            self._probers.on_refusal = None
            self._look_for_work(now, queued)
            quiet = min(DELAY_QUIET, self._settings.delay_max)
            left = max(self._quiet_since + quiet, self._began + self._settings.delay_min) - now
            pause = max(0.0, min(left, _TICK))
        self._waited = bool(waiting)
        self._cut = pause > 0 and now >= self._latest
        return min(pause, max(0.0, self._latest - now))

    def _look_for_work(self, now: float, queued: Callable[[], int]) -> None:
        """Restart the quiet period if work has arrived, or if this is the first look."""
        arrived = self._ledger.left + len(self._ledger) + queued()
        if arrived > self._arrived or self._waited:
            self._quiet_since = now
        self._arrived = arrived

    def _waiting(self) -> list[Prober]:
        """The probers that have not been refused often enough."""
        return [
            prober
            for prober in self._waited_for
            if prober.count > 1 and prober.refused < self._settings.delay_probes and not prober.silent(self._now)
        ]

    def __str__(self) -> str:
        needed = self._settings.delay_probes
        if self._cut:
            late = [
                f"prober {each}, which asks every {each.interval:.1f} s, was refused {each.refused} of {needed} times"
                for each in self._waiting()
            ]
            why = ", ".join(late) or "new work kept arriving"
            return f"at its maximum of {self._latest - self._began:.1f} s: {why}"
        refused = [prober for prober in self._waited_for if prober.refused >= needed]
        silent = [prober for prober in self._waited_for if prober not in refused and prober.count > 1]
        parts = [_number(refused, f"refused {needed} times")] if refused else []
        parts += [_number(silent, "silent")] if silent else []
        parts += [_number(self._seldom, "asking too rarely")] if self._seldom else []
        kubelet = " except the kubelet" if any(map(self._is_local_kubelet, self._probers.all())) else ""
        minimum = f", at least {self._settings.delay_min:.1f} s" if self._settings.delay_min else ""
        return (
            f"after {self._now - self._began:.1f} s: {', '.join(parts) or f'no prober{kubelet} to wait for'},"
            f" no new work for {self._now - self._quiet_since:.1f} s{minimum}"
        )


def _number(probers: list[Prober], what: str) -> str:
    return f"{len(probers)} prober{'s' if len(probers) > 1 else ''} {what}"
