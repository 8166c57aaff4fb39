"""The delay that ends when it may: whom it waits for, what it takes for new work, and what it says at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._config import Settings
from flask_lifecycle._core.inflight import Ledger
from flask_lifecycle._probes.adaptive_delay import AdaptiveDelay
from flask_lifecycle._probes.clients import Probers
from tests._fakes import ManualClock, enter, make_app, state_of

Happening = tuple[float, Callable[[], object]]


class Stop:
    """An application with an automatic delay, on a clock of the test's, and what happens to it."""

    def __init__(self, kubernetes: bool = False, **settings: Any) -> None:
        self.clock = ManualClock()
        self.probers = Probers(self.clock.monotonic)
        self.ledger = Ledger(self.clock.monotonic)
        self.queued = 0
        self.asked = 0
        self.refusing = False
        self.delayed = AdaptiveDelay(Settings(shutdown_delay="auto", **settings), self.probers, self.ledger, kubernetes)

    def probe(self, agent: str = "", address: str = "10.0.0.1", group: str = "ready") -> None:
        """One visit of a prober."""
        environ = {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address}
        self.probers.note(group, environ, "", refused=self.refusing)

    def regular(self, period: float, first: float = 0.0, until: float = 100.0, **prober: Any) -> list[Happening]:
        """The visits of a regular prober: some before the delay, and those in it."""
        for _ in range(5):
            self.probe(**prober)
            self.clock.advance(period)
        visits = [first + n * period for n in range(100)]
        return [(at, lambda: self.probe(**prober)) for at in visits if at < until]

    def work(self) -> None:
        """One request, which is answered at once."""
        enter(self.ledger).close()

    def delay(self, *happenings: Happening, latest: float = 100.0) -> float:
        """Let it go, as the shutdown does; how long it took."""
        told = threading.Event()
        began = self.clock.now
        self.refusing = True
        self.ledger.count_leavers()
        self.delayed.start(began, began + latest, told)
        coming = sorted(happenings, key=lambda happening: happening[0])
        while True:
            told.clear()
            self.asked += 1
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


def test_without_probers_the_quiet_period_counts() -> None:
    """Where nobody asks, the delay is over when nothing new has come for the quiet period."""
    stop = Stop()
    assert stop.delay() == pytest.approx(1.0)
    assert str(stop.delayed) == "after 1.0 s: no prober to wait for, no new work for 1.0 s"


def test_a_prober_is_told_three_times() -> None:
    """A regular prober has fetched three answers, and then the quiet period passes."""
    stop = Stop()
    assert stop.delay(*stop.regular(0.5, first=0.2)) == pytest.approx(0.2 + 2 * 0.5 + 1.0)
    assert str(stop.delayed) == "after 2.2 s: 1 prober refused 3 times, no new work for 1.0 s"


def test_the_slowest_prober_counts() -> None:
    """Each prober is waited for."""
    stop = Stop()
    slow, quick = stop.regular(2.0, address="10.0.0.2"), stop.regular(0.5)
    assert stop.delay(*slow, *quick) == pytest.approx(2 * 2.0 + 1.0)
    assert str(stop.delayed) == "after 5.0 s: 2 probers refused 3 times, no new work for 1.0 s"


def test_how_often_is_set() -> None:
    """``LIFECYCLE_DELAY_PROBES`` says how many answers each fetches."""
    stop = Stop(delay_probes=1)
    assert stop.delay(*stop.regular(2.0, first=1.0)) == pytest.approx(1.0 + 1.0)


@pytest.mark.parametrize("prober", [{"group": "live"}, {"group": "startup"}, {"agent": "Mozilla/5.0 (X11)"}])
def test_who_does_not_decide_is_not_waited_for(prober: dict[str, Any]) -> None:
    """Liveness and start-up decide nothing about traffic, and browsers neither."""
    stop = Stop()
    assert stop.delay(*stop.regular(2.0, first=1.9, **prober)) == pytest.approx(1.0)


def test_who_is_gone_is_not_waited_for() -> None:
    """A prober that fell silent before the stop holds up nobody, however often it had come."""
    stop = Stop()
    stop.regular(1.0)
    stop.clock.advance(10.0)
    assert stop.delay() == pytest.approx(1.0)
    assert str(stop.delayed) == "after 1.0 s: no prober to wait for, no new work for 1.0 s"


def test_who_dies_in_the_delay_is_not_waited_for() -> None:
    """A prober that misses its turn three times is gone, and the delay goes on without it."""
    stop = Stop()
    visits = stop.regular(0.5, first=0.1, until=0.2)
    took = stop.delay(*visits)
    # 0.1 s, three turns and a second until it is silent, up to two ticks until that is seen, and the quiet period.
    assert took == pytest.approx(0.1 + 1.5 + 1.0 + 0.05 + 1.0)
    assert str(stop.delayed) == f"after {took:.1f} s: 1 prober silent, no new work for 1.0 s"


def test_one_visit_makes_no_prober() -> None:
    """Somebody who came once is not waited for, unless he comes again."""
    stop = Stop()
    stop.probe()
    stop.clock.advance(0.8)
    assert stop.delay() == pytest.approx(1.0)


def test_a_prober_that_has_just_begun() -> None:
    """Who came once before the stop, and comes again in the delay, is one."""
    stop = Stop()
    stop.probe()
    stop.clock.advance(0.8)
    visits = [(at, stop.probe) for at in (0.2, 1.2, 2.2, 3.2)]
    assert stop.delay(*visits) == pytest.approx(2.2 + 1.0)


def test_who_came_once_long_ago_is_not_taken_for_a_slow_one() -> None:
    """Somebody who came yesterday and comes again in the delay does not hold it up."""
    stop = Stop()
    stop.probe()
    stop.clock.advance(86400.0)
    assert stop.delay((0.5, stop.probe)) == pytest.approx(1.0)


def test_who_comes_first_in_the_delay_is_not_waited_for() -> None:
    """Whoever never heard that the instance was ready does not send to it."""
    stop = Stop()
    assert stop.delay(*[(0.1 + n / 2, stop.probe) for n in range(20)]) == pytest.approx(1.0)


def test_a_prober_that_asks_less_often_than_the_maximum() -> None:
    """Who asks once a minute cannot be told within the delay, and is not waited for."""
    stop = Stop()
    stop.regular(60.0)
    assert stop.delay() == pytest.approx(1.0)
    assert str(stop.delayed) == "after 1.0 s: 1 prober asking too rarely, no new work for 1.0 s"


def test_a_prober_that_cannot_come_often_enough() -> None:
    """With an interval of ten seconds the maximum ends the delay, and that is said."""
    stop = Stop()
    assert stop.delay(*stop.regular(10.0, agent="slow/1", first=4.0)) == 15.0
    assert str(stop.delayed) == (
        "at its maximum of 15.0 s: prober 'slow/1' at 10.0.0.1, which asks every 10.0 s, was refused 2 of 3 times"
    )


def test_a_flood_of_probes_holds_for_the_maximum_at_most() -> None:
    """Whoever calls himself a kubelet and asks slowly makes the delay no longer than its maximum."""
    stop = Stop(delay_max=8.0)
    spoofs = [stop.regular(7.0, address=f"10.9.0.{n}", agent="kube-probe/1.30") for n in range(3)]
    assert stop.delay(*(visit for visits in spoofs for visit in visits)) == 8.0


def test_answers_before_the_delay_count() -> None:
    """A balancer that has heard three times that the instance is not ready has taken it out already."""
    stop = Stop()
    stop.refusing = True
    stop.regular(2.0)
    assert stop.delay() == pytest.approx(1.0)
    assert str(stop.delayed) == "after 1.0 s: 1 prober refused 3 times, no new work for 1.0 s"


def test_the_kubelet_is_not_waited_for_in_kubernetes() -> None:
    """A pod that is deleted leaves the endpoints by that; five seconds and the quiet period are for the proxies."""
    stop = Stop(kubernetes=True, delay_min=5.0)
    visits = stop.regular(10.0, agent="kube-probe/1.30", first=9.0)
    assert stop.delay(*visits) == pytest.approx(5.0)
    assert (
        str(stop.delayed)
        == "after 5.0 s: no prober except the kubelet to wait for, no new work for 5.0 s, at least 5.0 s"
    )


def test_other_probers_are_waited_for_in_kubernetes() -> None:
    """A balancer that asks pods itself is waited for there as well."""
    stop = Stop(kubernetes=True, delay_min=5.0)
    assert stop.delay(*stop.regular(3.0, agent="GoogleHC/1.0", first=1.0)) == pytest.approx(8.0)


def test_the_kubelet_is_a_prober_elsewhere() -> None:
    """Outside of Kubernetes who calls himself a kubelet is a prober like others."""
    stop = Stop()
    assert stop.delay(*stop.regular(1.0, agent="kube-probe/1.30", first=0.5)) == pytest.approx(3.5)


# -- work that arrives --------------------------------------------------------------------------------------------


def test_new_work_begins_the_quiet_period_anew() -> None:
    """As long as new work comes the delay goes on; each 50 ms it is looked for."""
    stop = Stop()
    took = stop.delay(*[(n / 2, stop.work) for n in range(1, 7)])
    assert took == pytest.approx(3.0 + 1.0, abs=0.051)
    assert str(stop.delayed) == f"after {took:.1f} s: no prober to wait for, no new work for 1.0 s"


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
        assert stop.delayed.pause(stop.clock.now, queued)
        assert not looks
        stop.probe()
        assert told.is_set()
    told.clear()
    assert stop.delayed.pause(stop.clock.now, queued) == pytest.approx(0.05)
    assert len(looks) == 1
    stop.probe("flood")
    assert not told.is_set()


def test_work_that_does_not_end_is_not_new() -> None:
    """A long request that was there before holds up the drain and not the delay."""
    stop = Stop()
    enter(stop.ledger)
    assert stop.delay() == pytest.approx(1.0)


def test_work_that_ends_is_not_new() -> None:
    """A request that is answered in the delay changes nothing."""
    stop = Stop()
    body = enter(stop.ledger)
    assert stop.delay((0.5, body.close)) == pytest.approx(1.0)


def test_work_that_waits_in_the_server_is_new_once() -> None:
    """What the server holds counts when it comes, and not again when the application gets it."""
    stop = Stop()

    def come() -> None:
        stop.queued += 1

    def hand_over() -> None:
        stop.queued -= 1
        enter(stop.ledger)

    assert stop.delay((0.5, come), (1.2, hand_over)) == pytest.approx(1.5, abs=0.051)


def test_work_does_not_wake_the_wait_for_probers() -> None:
    """While probers are waited for nobody looks for work: what counts is what comes afterwards."""
    stop = Stop()
    stop.delay(*stop.regular(2.0, first=1.0), *[(n / 10, stop.work) for n in range(40)])
    assert stop.asked < 3 + 1.0 / 0.05 + 5


def test_work_that_goes_on_ends_with_the_maximum() -> None:
    """Somebody who goes on sending although everybody was refused is not waited for longer than the maximum."""
    stop = Stop(delay_max=3.0)
    assert stop.delay(*[(n / 2, stop.work) for n in range(100)]) == pytest.approx(3.0)
    assert str(stop.delayed) == "at its maximum of 3.0 s: new work kept arriving"


def test_the_grace_period_may_cut_it_short() -> None:
    """Where another application leaves less time, that is the maximum."""
    stop = Stop()
    assert stop.delay(*stop.regular(2.0, first=1.0), latest=4.0) == pytest.approx(4.0)
    assert str(stop.delayed) == (
        "at its maximum of 4.0 s: prober at 10.0.0.1, which asks every 2.0 s, was refused 2 of 3 times"
    )


# -- in an application --------------------------------------------------------------------------------------------


def test_who_has_a_fixed_delay_has_no_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an automatic delay is found out about; the kubelet is known where the environment says so."""
    fixed, auto = make_app(), make_app(LIFECYCLE_SHUTDOWN_DELAY="auto")
    Lifecycle(fixed)
    Lifecycle(auto)
    assert state_of(fixed).adaptive_delay is None
    notice = state_of(auto).adaptive_delay
    assert isinstance(notice, AdaptiveDelay)
    assert not notice._kubernetes
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    inside = make_app(LIFECYCLE_SHUTDOWN_DELAY="auto", LIFECYCLE_GRACE_PERIOD=30.0)
    Lifecycle(inside)
    notice = state_of(inside).adaptive_delay
    assert isinstance(notice, AdaptiveDelay)
    assert notice._kubernetes
