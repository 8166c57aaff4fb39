"""The model of ``benchmarks/fleet_model.py``: what has to hold of it, and a second one that is slow and obvious."""

from __future__ import annotations

import math
import random
import re
import statistics
import sys
from pathlib import Path

import fleet_model
import pytest
from _fleet_model.simulation import AUTO, LINGER, Fleet, Spread, deploy, poisson

SEEDS = range(200)
# Standard errors; with fixed seeds nothing is left to chance, so that this is only what a right model keeps to.
BOUND = 4.0
SHORT = Spread(0.02, 0.02)


def close_to(values: list[float], expected: float) -> bool:
    """Whether the mean of some draws is what is expected, within their own error."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    return abs(statistics.fmean(values) - expected) <= BOUND * error


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(replicas=20, unavailable=5, delay=0.0),
        Fleet(replicas=20, unavailable=5, delay=0.0, retries=1, kept=4),
        Fleet(replicas=20, unavailable=4, surge=4, in_place=False, checks=False, lag=Spread(1, 5), delay=1.0),
    ],
    ids=["refused", "retried", "deletion"],
)
def test_every_request_is_answered_or_lost(fleet: Fleet) -> None:
    """Whatever is lost, as many requests are accounted for as have come in the time that it took."""
    shares = []
    for seed in SEEDS:
        outcome = deploy(fleet, seed)
        shares.append(outcome.requests / (fleet.rate * fleet.replicas * outcome.lasted))
    assert close_to(shares, 1.0)


@pytest.mark.parametrize("lag", [0.0, 1.5])
def test_nothing_is_refused_when_the_delay_is_longer_than_what_it_is_for(lag: float) -> None:
    """Longer than all checks and the lag: no request comes too late, and shorter some do."""
    fleet = Fleet(replicas=200, unavailable=20, period=1.0, threshold=3, lag=Spread(lag, lag), length=SHORT)
    long = deploy(fleet._replace(delay=3.0 + lag))
    assert (long.lost, long.again) == (0, 0)
    assert deploy(fleet._replace(delay=2.8 + lag)).refused > 0


def every_request(fleet: Fleet, stopping: int, seed: int) -> int:
    """What is refused for good when so many replicas stop at once, by following each request."""
    rng = random.Random(seed)
    lost = 0
    for _ in range(fleet.routers):
        learned = [(rng.random() + fleet.threshold - 1) * fleet.period for _ in range(stopping)]
        now, rate = 0.0, fleet.rate * fleet.replicas / fleet.routers
        while (now := now + rng.expovariate(rate)) < fleet.threshold * fleet.period:
            # Those that it sends to: the ones that stay, by None, and the ones of whose stop it has not heard.
            known = [None] * (fleet.replicas - stopping) + [n for n in range(stopping) if learned[n] > now]
            rng.shuffle(known)
            tries = known[: fleet.retries + 1]
            lost += now > fleet.delay and all(chosen is not None for chosen in tries)
    return lost


@pytest.mark.parametrize(("delay", "retries", "stopping"), [(0.0, 0, 1), (1.0, 0, 3), (0.5, 1, 3), (0.5, 2, 4)])
def test_the_model_is_what_each_request_meets(delay: float, retries: int, stopping: int) -> None:
    """Followed one by one as many requests are lost, with one try and with several."""
    fleet = Fleet(
        replicas=stopping * 2, routers=2, rate=10.0, delay=delay, period=0.7, retries=retries, unavailable=stopping,
        length=SHORT, start=Spread(100.0, 100.0),
    )  # fmt: skip
    modelled = [deploy(fleet, seed).lost / 2 for seed in SEEDS]  # a deploy is two such stops
    followed = [float(every_request(fleet, stopping, seed)) for seed in SEEDS]
    error = math.hypot(*(statistics.stdev(each) / math.sqrt(len(SEEDS)) for each in (modelled, followed)))
    assert statistics.fmean(followed) > 5 * error > 0
    assert abs(statistics.fmean(modelled) - statistics.fmean(followed)) <= BOUND * error


def test_a_fleet_that_stops_at_once_answers_nothing_meanwhile() -> None:
    """From the end of the delay until the successors are there, whether or not the balancers know."""
    fleet = Fleet(
        replicas=4, unavailable=4, delay=1.0, period=1e-9, start=Spread(3.0, 3.0), length=Spread(1e-9, 1e-9), retries=3
    )
    # At each of them nobody is sent to before the delay is over, as they learn at once.
    assert close_to([float(deploy(fleet, seed).refused) for seed in SEEDS], 4 * 20.0 * 4.0)


def test_requests_longer_than_the_drain_are_cut_off() -> None:
    """Of those of 30 s that run at any time the ones with more than the 20 s of the deadline before them."""
    fleet = Fleet(replicas=10, rate=2.0, delay=0.0, checks=False, length=Spread(30.0, 30.0))
    cut = [float(deploy(fleet, seed).cut) for seed in SEEDS]
    assert close_to(cut, 10 * 2.0 * (30.0 - fleet.deadline))
    assert deploy(fleet).stop == pytest.approx(fleet.deadline, abs=0.5)


def test_kept_connections_are_served_for_the_linger() -> None:
    """Where there are enough of them nothing is refused before they are closed, and what is on its way then is lost."""
    fleet = Fleet(
        replicas=2, routers=1, rate=50.0, delay=0.0, period=LINGER / 2, threshold=1, kept=1000, flight=0.1, length=SHORT
    )
    assert [deploy(fleet, seed).lost for seed in range(20)] == [0] * 20
    slow = fleet._replace(period=100.0, threshold=2)
    raced = [float(deploy(slow, seed).raced) for seed in SEEDS]
    # In each of two stops 50 requests a second go to the replica that stops.
    assert close_to(raced, 2 * 50.0 * 0.1)
    assert sum(deploy(slow._replace(retries=1), seed).raced for seed in range(20)) == 0


def test_draws_have_the_mean_of_their_distribution() -> None:
    """The residual of a spread is the second moment over twice the first; a Poisson draw is counted or normal."""
    spread, rng = Spread(0.5, 2.0), random.Random(1)
    sigma = math.log(4.0) / 2.3263
    assert close_to([spread.residual(rng) for _ in range(20_000)], 0.5 * math.exp(1.5 * sigma**2) / 2)
    assert close_to([spread.draw(rng) for _ in range(20_000)], spread.mean)
    for mean in (0.0, 0.3, 12.0, 80.0):
        draws = [float(poisson(rng, mean)) for _ in range(5000)]
        assert close_to(draws, mean)
        assert statistics.variance(draws) == pytest.approx(mean, rel=0.1)


def test_a_deploy_takes_what_its_batches_take() -> None:
    """In place, four batches with delay and checks; in Kubernetes no delay, and with a surge one after the other."""
    quick = Fleet(replicas=12, period=1e-9, start=Spread(3.0, 3.0), length=Spread(1e-9, 1e-9))
    assert deploy(quick._replace(unavailable=3, delay=2.0)).seconds == pytest.approx(4 * 5.0)
    surging = quick._replace(surge=4, unavailable=0, in_place=False, checks=False, rise=1)
    assert [deploy(surging._replace(delay=delay)).seconds for delay in (0.0, 20.0)] == pytest.approx([9.0, 9.0])


def test_the_delay_that_ends_when_it_may_is_no_longer_than_it_has_to() -> None:
    """It loses nothing behind checks, and ends a quiet second after the last one, within its maximum."""
    fleet = Fleet(replicas=100, unavailable=10, delay=AUTO, period=1.0, length=SHORT)
    outcome = deploy(fleet)
    assert outcome.lost == 0
    assert 3.0 < outcome.stop < 5.0
    assert deploy(fleet._replace(period=20.0)).stop == pytest.approx(15.0, abs=0.1)


@pytest.mark.parametrize(
    "fleet", [Fleet(unavailable=0), Fleet(unavailable=0, surge=1), Fleet(unavailable=0, in_place=False)]
)
def test_a_deploy_that_can_never_begin_is_refused(fleet: Fleet) -> None:
    """As Kubernetes does it."""
    with pytest.raises(ValueError, match=r"^'unavailable' or, unless it is in place, 'surge' has to be 1 at least\.$"):
        deploy(fleet)


def test_the_table_is_printed_for_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Each fleet and delay has its row, and numbers of the options' own."""
    options = "--replicas 10 --delay 0 --delay auto --lag 1 2 --period 0.5 --retries 3"
    fleet_model.main(["table", *options.split()])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["fleet", "replicas", "delay"]
    assert [tuple(row.split()[:3]) for row in rows] == [
        (name, "10", delay) for name in fleet_model.FLEETS for delay in ("0", "auto")
    ]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing else of the model needs it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    sentence = "matplotlib is not installed, which the plot needs; install flask_lifecycle[model]."
    with pytest.raises(SystemExit, match=f"^{re.escape(sentence)}$"):
        fleet_model.main(["plot", str(tmp_path / "a.svg")])
