"""What is wrong with the probes of a pod: said once, and never where something else may explain what was seen."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterable, Sequence

import pytest

from flask_lifecycle import State, _advice
from flask_lifecycle._advice import Advice, kubelet_probes
from flask_lifecycle._probers import Probers
from tests._fakes import BOUND, ManualClock, run_python, running, until

PATHS = {"ready": "/readyz", "healthcheck": "/healthcheck", "live": "/livez"}
KUBELET = "kube-probe/1.30"
UNASKED = (
    "This process runs in Kubernetes and has been ready for 60 s, and nobody has asked '/readyz'; give the pod a"
    " readinessProbe with that path, or it gets traffic whether it is ready or not."
)


class NoThread:
    """In the place of the thread that looks."""

    def __init__(self, look: object, name: str, what: str) -> None:
        self.name = name

    def wake(self) -> None: ...

    def stop(self, *, wait: bool) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """A clock of the test's; nobody looks but the test."""
    monkeypatch.setattr(_advice, "Scheduler", NoThread)
    return ManualClock()


def ticks(
    period: float, offset: float = 0.0, *, late: float = 0.05, seed: int = 0, until: float = 200.0
) -> list[float]:
    """When a probe of a kubelet comes: by a ticker, and a little late."""
    random_ = random.Random(seed)
    return [offset + n * period + random_.uniform(0, late) for n in range(int((until - offset) / period))]


def visit(probers: Probers, clock: ManualClock, agent: str = KUBELET, group: str = "ready", at: float = 0.0) -> None:
    clock.now = at or clock.now
    probers.note(group, {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": "10.0.0.1"}, "pass", refused=False)


def advice(clock: ManualClock, *, alone: bool = True) -> tuple[Advice, Probers]:
    """Of a process; the test looks itself, when it likes."""
    probers = Probers(clock.monotonic)
    return Advice(probers, PATHS, lambda: alone, clock.monotonic), probers


def look_after(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, visits: Iterable[float], group: str = "ready", **more: str
) -> list[str]:
    """What is said of these visits of a kubelet when it is looked at them each minute."""
    subject, probers = advice(clock)
    subject.state_changed(State.READY, "")
    began, due = clock.now, clock.now + 60.0
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        for at in sorted(visits):
            while began + at > due:
                clock.now = due
                pause = subject.look()
                due += 60.0
                assert pause in (None, 60.0)
            visit(probers, clock, group=group, at=began + at, **more)
        clock.now = due
        subject.look()
    subject.end()
    return [record.getMessage() for record in caplog.records]


# -- nobody asks whether the pod is ready -------------------------------------------------------------------------


def test_nobody_asks_for_readiness(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A minute after ready, and not before, it is said once that nobody has asked what decides about traffic."""
    subject, probers = advice(clock)
    subject.state_changed(State.READY, "")
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        clock.advance(59.0)
        visit(probers, clock, group="live")
        visit(probers, clock, agent="Mozilla/5.0", group="healthcheck")
        assert subject.look() == 1.0
        assert caplog.messages == []
        clock.advance(1.0)
        assert subject.look() == 60.0
        clock.advance(60.0)
        assert subject.look() == 60.0
    assert caplog.messages == [UNASKED]
    subject.end()


@pytest.mark.parametrize("group", ["ready", "healthcheck", "search"])
def test_somebody_asks_for_readiness(clock: ManualClock, caplog: pytest.LogCaptureFixture, group: str) -> None:
    """Whoever asks what decides about traffic, once, is enough."""
    assert look_after(clock, caplog, [30.0], group, agent="GoogleHC/1.0") == []


def test_a_share_of_the_visits_tells_nothing(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Where other processes share the port, that none of the visits came here is chance."""
    subject, _ = advice(clock, alone=False)
    subject.state_changed(State.READY, "")
    clock.advance(60.0)
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        subject.look()
    subject.end()
    assert caplog.messages == []


def test_what_stops_is_not_looked_at(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A process that stops within the minute, or is ready twice, is not told anything that no longer matters."""
    subject, _ = advice(clock)
    subject.end()
    for state in (State.NOT_READY, State.READY, State.NOT_READY, State.READY, State.DRAINING):
        subject.state_changed(state, "")
    clock.advance(60.0)
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        assert subject.look() is None
    subject.end()
    assert caplog.messages == []


def test_an_hour_is_enough(clock: ManualClock) -> None:
    """After sixty looks there is no further one."""
    subject, probers = advice(clock)
    visit(probers, clock)
    subject.state_changed(State.READY, "")
    pauses = []
    for _ in range(60):
        clock.advance(60.0)
        pauses.append(subject.look())
    assert pauses == [60.0] * 59 + [None]
    subject.end()


# -- the liveness probe asks the readiness path -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "offset"),
    [
        (10.0, 10.0, 0.002),
        (5.0, 10.0, 0.002),
        (5.0, 5.0, 0.002),
        (1.0, 1.0, 0.3),
        (10.0, 10.0, 3.6),
        (5.0, 15.0, 1.4),
        (3.0, 10.0, 0.5),
        (10.0, 30.0, 0.002),
    ],
)
def test_two_probes_of_a_kubelet(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, first: float, second: float, offset: float
) -> None:
    """A readiness and a liveness probe at one path are found, by whatever periods and at whatever distance."""
    (said,) = look_after(clock, caplog, [*ticks(first), *ticks(second, offset, seed=1)])
    assert said == (
        f"The kubelet '{KUBELET}' at 10.0.0.1 asks '/readyz' by two probes, every {first:.0f} s and every"
        f" {second:.0f} s, and nobody asks '/livez'; point the livenessProbe at that, or the process is restarted when"
        " it is only not ready."
    )


def test_own_groups_are_named(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the path is one of the application's own."""
    (said,) = look_after(clock, caplog, [*ticks(10.0), *ticks(10.0, 0.002)], "search")
    assert " asks the path of 'search' by two probes" in said


def test_somebody_asks_for_liveness(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """If the liveness path is asked, the second probe is somebody's who knows."""
    subject, probers = advice(clock)
    visit(probers, clock, agent="", group="live")
    subject.state_changed(State.READY, "")
    began = clock.now
    for at in sorted([*ticks(10.0), *ticks(10.0, 0.002, seed=1)]):
        visit(probers, clock, at=began + at)
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        subject.look()
    subject.end()
    assert caplog.messages == []


def test_other_agents_may_ask_twice(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Two checks of a balancer are nothing to warn of."""
    assert look_after(clock, caplog, [*ticks(10.0), *ticks(10.0, 0.002)], agent="HAProxy") == []


@pytest.mark.parametrize("period", [1.0, 2.0, 3.0, 5.0, 10.0, 30.0])
@pytest.mark.parametrize("late", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_one_probe(period: float, late: float, seed: int) -> None:
    """One probe is one, however late it comes."""
    assert not _found(sorted(ticks(period, late=late, seed=seed, until=600.0)))


@pytest.mark.parametrize("extra", [0.002, 0.5, 3.3])
@pytest.mark.parametrize("restart", [0.4, 5.5])
def test_one_probe_out_of_turn(extra: float, restart: float) -> None:
    """One visit more after the start, and another moment from a restart of the kubelet on, are no second probe."""
    before = [*ticks(10.0), extra]
    after = ticks(10.0, 200.0 + restart, until=500.0)
    assert not _found(sorted([*before, *after]))


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(25))
def test_one_probe_that_workers_share(workers: int, seed: int) -> None:
    """The share of a worker, by chance or in turn, is no second probe."""
    random_ = random.Random(seed)
    visits = ticks(5.0, late=0.1, seed=seed, until=3000.0)
    assert not _found([at for at in visits if random_.randrange(workers) == 0])
    assert not _found(visits[seed % workers :: workers])
    assert not _found([at for n, at in enumerate(visits) if n % workers])


@pytest.mark.parametrize("seed", range(25))
def test_two_probes_that_workers_share(seed: int) -> None:
    """A share of two probes proves nothing, and nothing is said."""
    random_ = random.Random(seed)
    visits = sorted([*ticks(5.0, until=3000.0), *ticks(10.0, 0.002, until=3000.0)])
    assert not _found([at for at in visits if random_.randrange(2)])


@pytest.mark.parametrize("seed", range(25))
def test_a_process_that_stalls(seed: int) -> None:
    """Visits that are answered late and then at once, because the process stood still, are no second probe."""
    random_ = random.Random(seed)
    visits, stalled = [], 0.0
    for at in ticks(1.0, until=300.0):
        stalled = at + random_.uniform(0.5, 1.5) if random_.random() < 0.3 else stalled
        visits.append(max(at, stalled))
    assert not _found(sorted(visits))


def test_two_probes_whole_seconds_apart() -> None:
    """What one probe that is shared may look like is not taken for two."""
    assert not _found(sorted([*ticks(10.0), *ticks(10.0, 4.0, seed=1)]))


def test_half_a_second_is_no_period_of_a_kubelet() -> None:
    """Two that are no kubelet's, by their periods, are not taken for one's."""
    assert not _found(sorted([*ticks(0.5, late=0.0), *ticks(0.5, 0.1, late=0.0)]))
    assert not _found(sorted([*ticks(2.5, late=0.0), *ticks(2.5, 0.3, late=0.0)]))


def _found(visits: Sequence[float]) -> bool:
    """Whether two probes are found in these visits, at any moment from the start to the end."""
    return any(kubelet_probes(visits[max(0, n - 16) : n]) for n in range(len(visits) + 1))


# -- in an application --------------------------------------------------------------------------------------------


LOOKS = """
from flask import Flask
from flask_lifecycle import Lifecycle

app = Flask("testing")
app.config["LIFECYCLE_READY"] = "manual"
Lifecycle(app)
print([type(each).__name__ for each in app.extensions["lifecycle"].companions])
"""


def test_only_in_kubernetes() -> None:
    """An application has somebody who looks only where the environment says that it is a pod."""
    assert run_python(LOOKS).stdout == "[]\n"
    assert run_python(LOOKS, environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).stdout == "['Advice']\n"


def test_the_thread_looks_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Once ready there is a thread that looks when the time has come; a child that was forked makes its own."""
    said = threading.Event()
    subject = Advice(Probers(), PATHS, lambda: said.set() or True)  # type: ignore[func-returns-value]
    subject._clock = iter([0.0, *[100.0] * 10]).__next__
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        subject.state_changed(State.READY, "")
        assert said.wait(BOUND)
        until(lambda: bool(caplog.messages))  # it asks first and says then
        subject.end()
    assert caplog.messages == [UNASKED]
    subject.begin()
    assert subject._scheduler is None


def test_a_log_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may be in a log that hangs when the process ends, which goes on without it."""
    hanging, free = threading.Event(), threading.Event()

    def hang(*arguments: object, **more: object) -> None:
        hanging.set()
        free.wait(BOUND)

    monkeypatch.setattr("flask_lifecycle._advice.logger.warning", hang)
    subject = Advice(Probers(), PATHS, lambda: True)
    subject._clock = iter([0.0, *[100.0] * 10]).__next__
    subject.state_changed(State.READY, "")
    assert hanging.wait(BOUND)
    with running(subject.end) as ending:
        ending.join(BOUND / 2)
        assert not ending.is_alive()
    free.set()
