"""The delay that ends when it may: whom it waits for, what it takes for new work, and what it says at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle import Lifecycle
from tests._fakes import ManualClock, enter, make_app, state_of

Happenings = list[tuple[float, Callable[[], object]]]


class Stop:
    """An application with an automatic delay, on a clock of the test's, and what happens to it."""

    def __init__(self, kubernetes: bool = False, **settings: Any) -> None:
        self.clock = ManualClock()
        config = {f"LIFECYCLE_{name.upper()}": value for name, value in settings.items()}
        self.app = make_app(LIFECYCLE_SHUTDOWN_DELAY="auto", LIFECYCLE_GRACE_PERIOD=30.0, **config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1" if kubernetes else "")
            Lifecycle(self.app)
        state = state_of(self.app)
        self.probers, self.ledger = state.probes.probers, state.ledger
        self.probers.clock = self.ledger.clock = self.clock.monotonic
        self.queued = 0
        self.refusing = False
        delayed: Any = state.adaptive_delay
        self.delayed = delayed

    def probe(self, agent: str = "", address: str = "10.0.0.1", group: str = "ready") -> None:
        """One visit of a prober."""
        environ = {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address}
        self.probers.note(group, environ, "", refused=self.refusing)

    def regular(self, period: float, first: float = 0.0, until: float = 100.0, **prober: Any) -> Happenings:
        """The visits of a regular prober: some before the delay, and those in it."""
        for _ in range(5):
            self.probe(**prober)
            self.clock.advance(period)
        visits = [first + n * period for n in range(100)]
        return [(at, lambda: self.probe(**prober)) for at in visits if at < until]

    def gone(self, period: float, before: float = 0.0, refused: bool = False) -> Happenings:
        """A regular prober that does not come in the delay, and fell silent some time before it."""
        self.refusing = refused
        self.regular(period)
        self.clock.advance(before)
        return []

    def once(self, before: float) -> Happenings:
        """One visit before the delay."""
        self.probe()
        self.clock.advance(before)
        return []

    def work(self) -> None:
        """One request, which is answered at once."""
        enter(self.ledger).close()

    def queue(self) -> None:
        """One request waits in the server."""
        self.queued += 1

    def unqueue(self) -> None:
        """The application gets the request that has waited."""
        self.queued -= 1
        enter(self.ledger)

    def delay(self, happenings: Happenings, latest: float = 100.0) -> float:
        """Let it go, as the shutdown does; how long it took."""
        told = threading.Event()
        began = self.clock.now
        self.refusing = True
        self.ledger.count_leavers()
        self.delayed.start(began, began + latest, told)
        coming = sorted(happenings, key=lambda happening: happening[0])
        while True:
            told.clear()
            pause = self.delayed.pause(self.clock.now, lambda: self.queued)
            if not pause:
                return self.clock.now - began
            until = self.clock.now + pause
            while coming and began + coming[0][0] <= until and not told.is_set():
                at, happen = coming.pop(0)
                self.clock.now = max(self.clock.now, began + at)
                happen()
            if not told.is_set():
                self.clock.now = until


NOBODY, THRICE = "no prober to wait for", "1 prober refused 3 times"
IN_KUBERNETES = {"kubernetes": True, "delay_min": 5.0}
KUBELET = "kube-probe/1.30"
CASES: dict[str, tuple[dict[str, Any], Callable[[Stop], Happenings], float, str]] = {
    "nobody asks": ({}, lambda stop: [], 1.0, NOBODY),
    "a regular prober fetches three answers": ({}, lambda stop: stop.regular(0.5, first=0.2), 2.2, THRICE),
    "each prober is waited for": (
        {},
        lambda stop: stop.regular(2.0, address="10.0.0.2") + stop.regular(0.5),
        5.0,
        "2 probers refused 3 times",
    ),
    "LIFECYCLE_DELAY_PROBES": ({"delay_probes": 1}, lambda stop: stop.regular(2.0, first=1.0), 2.0, "1 prober refused"),
    # Liveness and start-up decide nothing about traffic, and browsers neither.
    "liveness": ({}, lambda stop: stop.regular(2.0, first=1.9, group="live"), 1.0, NOBODY),
    "a check of liveness": ({}, lambda stop: stop.regular(2.0, first=1.9, group="live/worker"), 1.0, NOBODY),
    "a check of readiness": ({}, lambda stop: stop.regular(0.5, first=0.2, group="ready/db"), 2.2, THRICE),
    "start-up": ({}, lambda stop: stop.regular(2.0, first=1.9, group="startup"), 1.0, NOBODY),
    "a browser": ({}, lambda stop: stop.regular(2.0, first=1.9, agent="Mozilla/5.0 (X11)"), 1.0, NOBODY),
    "who fell silent before": ({}, lambda stop: stop.gone(1.0, before=10.0), 1.0, NOBODY),
    # 0.1 s, three turns and a second until it is silent, up to two ticks until that is seen, and the quiet period.
    "who dies in the delay": ({}, lambda stop: stop.regular(0.5, first=0.1, until=0.2), 3.65, "1 prober silent"),
    "who came once": ({}, lambda stop: stop.once(0.8), 1.0, NOBODY),
    "who came once and comes again is one": (
        {},
        lambda stop: stop.once(0.8) + [(at, stop.probe) for at in (0.2, 1.2, 2.2, 3.2)],
        3.2,
        THRICE,
    ),
    "who came once yesterday": ({}, lambda stop: [*stop.once(86400.0), (0.5, stop.probe)], 1.0, NOBODY),
    # Whoever never heard that the instance was ready does not send to it.
    "who comes first in the delay": ({}, lambda stop: [(0.1 + n / 2, stop.probe) for n in range(20)], 1.0, NOBODY),
    "who asks less often than the maximum": ({}, lambda stop: stop.gone(60.0), 1.0, "1 prober asking too rarely"),
    "who cannot come often enough": (
        {},
        lambda stop: stop.regular(10.0, agent="slow/1", first=4.0),
        15.0,
        "prober 'slow/1' at 10.0.0.1, which asks every 10.0 s, was refused 2 of 3 times",
    ),
    # A balancer that has heard three times that the instance is not ready has taken it out already.
    "who was refused before the delay": ({}, lambda stop: stop.gone(2.0, refused=True), 1.0, THRICE),
    # A pod that is deleted leaves the endpoints by that; five seconds and the quiet period are for the proxies.
    "the kubelet in Kubernetes": (
        IN_KUBERNETES,
        lambda stop: stop.regular(10.0, agent=KUBELET, first=9.0),
        5.0,
        "no prober except the kubelet to wait for, no new work for 5.0 s, at least 5.0 s",
    ),
    "others in Kubernetes": (
        IN_KUBERNETES,
        lambda stop: stop.regular(3.0, agent="GoogleHC/1.0", first=1.0),
        8.0,
        "1 prober refused 3 times, no new work for 1.0 s, at least 5.0 s",
    ),
    "the kubelet elsewhere": ({}, lambda stop: stop.regular(1.0, agent=KUBELET, first=0.5), 3.5, THRICE),
    "work begins the quiet period anew": ({}, lambda stop: [(n / 2, stop.work) for n in range(1, 7)], 4.0, NOBODY),
    "work that was there before": ({}, lambda stop: [(9.0, enter(stop.ledger).close)], 1.0, NOBODY),
    "work that ends": ({}, lambda stop: [(0.5, enter(stop.ledger).close)], 1.0, NOBODY),
    # It counts when it comes, and not again when the application gets it.
    "work that waits in the server": ({}, lambda stop: [(0.5, stop.queue), (1.2, stop.unqueue)], 1.5, NOBODY),
    "work that goes on": (
        {"delay_max": 3.0},
        lambda stop: [(n / 2, stop.work) for n in range(100)],
        3.0,
        "new work kept arriving",
    ),
}


@pytest.mark.parametrize(("settings", "happens", "took", "why"), CASES.values(), ids=CASES.keys())
def test_how_long_the_delay_lasts(
    settings: dict[str, Any], happens: Callable[[Stop], Happenings], took: float, why: str
) -> None:
    """The delay ends when every prober has been refused often enough and nothing new has come, and says why."""
    stop = Stop(**settings)
    maximum = settings.get("delay_max", 15.0)
    assert stop.delay(happens(stop)) == pytest.approx(took, abs=0.051)
    begins = f"at its maximum of {took:.1f} s: {why}" if took == maximum else f"after {took:.1f} s: {why}"
    assert str(stop.delayed).startswith(begins)
    assert took == maximum or ", no new work for" in str(stop.delayed)


def test_a_flood_of_probes_costs_no_looks_at_the_server() -> None:
    """While a prober is waited for the server is not looked at; afterwards it is, and no probe wakes the wait."""
    stop = Stop()
    stop.regular(1.0)
    told, looks = threading.Event(), []

    def queued() -> int:
        looks.append(stop.clock.now)
        return 0

    stop.refusing = True
    stop.delayed.start(stop.clock.now, stop.clock.now + 10, told)
    for _ in range(3):
        assert stop.delayed.pause(stop.clock.now, queued) > 1  # it does not poll
        assert not looks
        stop.probe()
        assert told.is_set()
    told.clear()
    assert stop.delayed.pause(stop.clock.now, queued) == pytest.approx(0.05)
    assert len(looks) == 1
    stop.probe("flood")
    assert not told.is_set()


def test_only_an_automatic_delay_is_adaptive() -> None:
    """An application with a fixed delay has no adaptive one."""
    Lifecycle(app := make_app(LIFECYCLE_SHUTDOWN_DELAY=2.0))
    assert state_of(app).adaptive_delay is None


def test_the_grace_period_may_cut_it_short() -> None:
    """Where another application leaves less time, that is the maximum."""
    stop = Stop()
    assert stop.delay(stop.regular(2.0, first=1.0), latest=4.0) == pytest.approx(4.0)
    assert str(stop.delayed) == (
        "at its maximum of 4.0 s: prober at 10.0.0.1, which asks every 2.0 s, was refused 2 of 3 times"
    )
