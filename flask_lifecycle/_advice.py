"""What is wrong with the probes of a pod, as far as their visits tell; said once each, and only in Kubernetes.

Nobody asks whether the pod is ready
------------------------------------

A minute after the process is ready nobody has asked a probe that decides about traffic. With the usual period of ten
seconds six visits are missing. Processes that share a port with others get only a share of the visits, so this is said
only where the server is ours: there is one.

The liveness probe asks the readiness path
------------------------------------------

It would restart a process which is only not ready, as it is in each drain. A kubelet says of its probes what version it
is and not which probe, so this is to be seen in when they come. Two probes of one kubelet at one path are suspicious if
nobody at all asks the liveness path, and if nothing but two probes explains the visits. One probe comes once in its
period, a whole number of seconds, one at least, by a ticker of the kubelet. It also comes

- once out of turn after the start, and after a restart of the kubelet from another moment on;
- late, when the node or this process is busy, and not at all for a while;
- at every second or fifth turn only, where processes share a port: after any number of periods, by chance.

None of that makes visits that are two complete rows, each of a whole number of seconds, of which nothing is missing or
left over among the last sixteen (see ``_rhythm.py``), and whose distance is, again and again, no whole number of
seconds, or less than one, as between two probes that were started at the same time. That is asked for, four times in
sixteen visits. Two probes whole seconds apart are not found, nor is a second one that comes very seldom: a false alarm
is worse than silence. The startup probe may ask the readiness path; it has ended when the others begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ._probers import Prober, Probers
from ._rhythm import gaps_of, periods
from ._scheduler import Scheduler
from ._state import ENDING, State, logger

_LOOK = 60.0  # seconds after ready, and between two looks
_LOOKS = 60  # what is wrong with a manifest shows in an hour
_PROOF = 4
_WHOLE = 0.1
_ODD = 0.2


class Advice:
    """Looks at who has asked, once a minute in the first hour, and says what is wrong.

    :param paths: of ``ready``, ``healthcheck`` and ``live``, by these names.
    :param alone: whether no other process shares the port.
    :param clock: seconds that never go back.
    """

    def __init__(
        self,
        probers: Probers,
        paths: Mapping[str, str],
        alone: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probers = probers
        self._paths = paths
        self._alone = alone
        self._clock = clock
        self.begin()

    # -- along with the application -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Nothing to do yet, but to forget what was in the process that this one was forked from."""
        self._scheduler: Scheduler | None = None
        self._due = 0.0
        self._looks = _LOOKS  # that are left

    def state_changed(self, new: State, reason: str) -> None:
        """Begin to look a minute after it has become ready; no longer when it stops."""
        if new is State.READY and self._scheduler is None:
            self._due = self._clock() + _LOOK
            self._scheduler = Scheduler(self.look, "lifecycle-advice", "probes of the pod")
            self._scheduler.wake()
        elif new in ENDING:
            self._looks = 0

    def end(self) -> None:
        """No further look."""
        if self._scheduler is not None:
            self._scheduler.stop(wait=False)  # it may hang in the log

    # -- in the thread of the scheduler ---------------------------------------------------------------------------

    def look(self) -> float | None:
        """Say what is wrong, if it is time; the seconds until it is time again, ``None`` when it will not be."""
        now = self._clock()
        if self._looks and now >= self._due:
            if self._looks == _LOOKS:
                self._is_readiness_asked()
            self._looks = 0 if self._is_liveness_misled() else self._looks - 1
            self._due = now + _LOOK
        return max(0.0, self._due - now) if self._looks else None

    def _is_readiness_asked(self) -> None:
        if self._alone() and not any(prober.decides for prober in self._probers.all()):
            logger.warning(
                "This process runs in Kubernetes and has been ready for %.0f s, and nobody has asked '%s'; give the pod"
                " a readinessProbe with that path, or it gets traffic whether it is ready or not.",
                _LOOK, self._paths["ready"], extra={"lifecycle_path": self._paths["ready"]},
            )  # fmt: skip

    def _is_liveness_misled(self) -> bool:
        """Whether a liveness probe seems to ask what decides about traffic; if so that is said."""
        probers = self._probers.all()
        if any(prober.group.partition("/")[0] == "live" for prober in probers):
            return False
        for prober in probers:
            rhythm = kubelet_probes(list(prober.arrivals.copy())) if prober.is_kubelet and prober.decides else ()
            if rhythm:
                self._say(prober, rhythm)
                return True
        return False

    def _say(self, prober: Prober, rhythm: Sequence[float]) -> None:
        path = self._paths.get(prober.group)
        logger.warning(
            "The kubelet %s asks %s by two probes, every %.0f s and every %.0f s, and nobody asks '%s'; point the"
            " livenessProbe at that, or the process is restarted when it is only not ready.",
            prober, f"'{path}'" if path else f"the path of '{prober.group}'", *rhythm, self._paths["live"],
            extra={"lifecycle_group": prober.group},
        )  # fmt: skip


def kubelet_probes(times: Sequence[float]) -> tuple[float, ...]:
    """The periods of the two probes of a kubelet that nothing but two explains; none if one may explain the visits."""
    found = periods(times)
    whole = all(period > 1 - _WHOLE and abs(period - round(period)) < _WHOLE for period in found)
    odd = sum(gap < 1 - _ODD or abs(gap - round(gap)) > _ODD for gap in gaps_of(times))
    return found if len(found) == 2 and whole and odd >= _PROOF else ()
