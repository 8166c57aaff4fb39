"""Whether two regular probers explain when somebody came, where one does not.

Two checks of one balancer, or two probes of one kubelet, may look alike: the same address, agent and path. What tells
them apart is when they come. One regular prober comes once in each period. Two come in two such rows, laid over each
other, and each row is complete: from any visit on, one is to be found a period before, and so on to the beginning.

So the rows are looked for: the newest visit belongs to one of them, and the one before it in the same row is one of
those that were noted before. Each gives a period; if the row that it makes is complete, and what is left is a complete
row as well, that explains all that happened. Chance does so hardly ever, because not one visit may be missing or left
over. What is irregular is explained by neither, and the answer is that nothing is known.

One prober whose visits come late now and then must not be taken for two of twice its period that take turns. So rows
are looked for only where the gaps differ by more than a fifth from each other; two probers that take turns that evenly
are taken for one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

# Of two rows each is to be seen to be one; a row of two visits is none.
_VISITS = 8
_ROW = 3
_UNEVEN = 0.2
# How far a visit may be from its time: a tenth of the period, and 0.15 s; a busy process takes notice late.
_LATE = 0.1
_LATE_AT_MOST = 0.15
# Nobody asks oftener, and what is closer together is no period but two that came at once.
_SHORTEST = 0.1


def periods(times: Sequence[float]) -> tuple[float, ...]:
    """The periods of the one or two regular probers that explain these visits, shortest first; none if neither does.

    :param times: when they came, in order.
    """
    if len(times) < _VISITS:
        return ()
    gaps = sorted(gaps_of(times))
    middle = gaps[len(gaps) // 2]
    if all(abs(gap - middle) <= _UNEVEN * middle for gap in gaps):
        return (middle,)
    for before in times[-2 : -len(times) // 2 - 1 : -1]:
        first, rest = _row(times, times[-1] - before)
        second = _period(rest)
        if first is not None and second is not None and _spans(times, rest, second):
            return (min(first, second), max(first, second))
    return ()


def gaps_of(times: Sequence[float]) -> list[float]:
    """The seconds between each two that follow each other."""
    return [after - before for before, after in itertools.pairwise(times)]


def _row(times: Sequence[float], period: float) -> tuple[float | None, list[float]]:
    """The period of the complete row that the newest visit ends, if there is one, and what is left over."""
    rest = list(times[:-1])
    row = [times[-1]]
    late = _late(period)
    while period >= _SHORTEST and rest and row[-1] - period >= times[0] - late:
        nearest = min(rest, key=lambda time: abs(time - (row[-1] - period)))
        if abs(nearest - (row[-1] - period)) > late:
            return None, rest
        rest.remove(nearest)
        row.append(nearest)
    return _period(row[::-1]), rest


def _period(row: Sequence[float]) -> float | None:
    """The period of a row of visits; ``None`` if they are not one."""
    if len(row) < _ROW:
        return None
    period = (row[-1] - row[0]) / (len(row) - 1)
    regular = period >= _SHORTEST and all(abs(gap - period) <= _late(period) for gap in gaps_of(row))
    return period if regular else None


def _spans(times: Sequence[float], row: Sequence[float], period: float) -> bool:
    """Whether no visit is missing at either end of a row."""
    most = period + _late(period)
    return row[0] - times[0] <= most and times[-1] - row[-1] <= most


def _late(period: float) -> float:
    return min(_LATE_AT_MOST, _LATE * period)
