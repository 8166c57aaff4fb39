"""Whether one regular prober explains when somebody came, or two, or neither."""

from __future__ import annotations

import random

import pytest

from flask_lifecycle._rhythm import periods

ROOM = 16  # as many visits as the ledger keeps


def row(period: float, offset: float = 0.0, jitter: float = 0.0, seed: int = 1) -> list[float]:
    """When a regular prober comes, in ten minutes."""
    random_ = random.Random(seed)
    return [offset + n * period + random_.uniform(0, jitter) for n in range(int(600 / period))]


def last(*rows: list[float], at: float = 500.0) -> list[float]:
    """The last visits of all before a moment, as the ledger keeps them."""
    return sorted(time for each in rows for time in each if time < at)[-ROOM:]


@pytest.mark.parametrize("period", [0.5, 1.0, 2.0, 5.0, 10.0, 30.0])
@pytest.mark.parametrize("lateness", [0.0, 0.09])
def test_one_prober(period: float, lateness: float) -> None:
    """One regular prober is found, also if it is now and then late."""
    (found,) = periods(last(row(period, jitter=lateness * period)))
    assert found == pytest.approx(period, rel=0.2)


@pytest.mark.parametrize(
    ("first", "second", "offset"),
    [
        (10.0, 10.0, 0.003),
        (10.0, 10.0, 3.7),
        (1.0, 1.0, 0.003),
        (5.0, 10.0, 0.002),
        (5.0, 10.0, 1.3),
        (3.0, 7.0, 0.4),
        (2.0, 5.0, 0.9),
        (0.5, 0.5, 0.1),
        (0.5, 2.0, 0.2),
    ],
)
@pytest.mark.parametrize("at", [500.0, 501.5, 503.1, 507.7])
def test_two_probers(first: float, second: float, offset: float, at: float) -> None:
    """Two that look like one are found, whatever their periods, the time between them and the moment of asking."""
    jitter = min(0.02 * first, 0.05)
    found = periods(last(row(first, jitter=jitter), row(second, offset, jitter, seed=2), at=at))
    assert found == pytest.approx((first, second), rel=0.05)


def test_two_that_take_turns_evenly_are_taken_for_one() -> None:
    """Two of the same period, half of it apart, cannot be told from one that asks twice as often."""
    assert periods(last(row(10.0), row(10.0, 5.0))) == (5.0,)


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("seed", range(20))
def test_visits_shared_among_workers(workers: int, seed: int) -> None:
    """Who gets one in so many visits of a prober by chance, as a worker of a prefork server does, finds no two."""
    random_ = random.Random(seed)
    seen = [time for time in row(5.0, jitter=0.05) if random_.randrange(workers) == 0]
    assert len(periods(last(seen, at=1e9))) < 2


@pytest.mark.parametrize("seed", range(50))
def test_chance(seed: int) -> None:
    """What comes by chance is explained by nobody."""
    random_ = random.Random(seed)
    assert periods(sorted(random_.uniform(0, 100) for _ in range(ROOM))) == ()


@pytest.mark.parametrize("missing", range(1, 15))
def test_a_missing_visit(missing: int) -> None:
    """Where one visit of two probers is missing, or one too many is there, nothing is known."""
    times = last(row(10.0), row(10.0, 3.7))
    assert periods(times[:missing] + times[missing + 1 :]) == ()
    assert periods(sorted([*times, (times[missing] + times[missing - 1]) / 2 + 0.3])) == ()


def test_too_few_visits() -> None:
    """Of fewer than eight visits nothing is said."""
    assert periods(row(5.0)[:7]) == ()
    assert periods([]) == ()


def test_visits_at_once() -> None:
    """What comes all at the same moment has no rhythm that could be looked for."""
    assert periods([5.0] * 15 + [9.0]) == ()
