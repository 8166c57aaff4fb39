"""The picture of docs/delay.md: what a delay saves, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .simulation import Fleet, Spread, deploy

Fleets = Mapping[str, Callable[[int], Fleet]]

_DELAYS = [number / 4 for number in range(61)]
_REPLICAS = (10, 100, 1000, 10_000)
_LEAST = 0.003  # below it no curve is drawn: two thousand stops lose too few for it to be smooth


def draw(file: Path, measured: Sequence[Mapping[str, Any]], fleets: Fleets) -> None:
    """Write the plot.

    :param measured: rows of the check, drawn as points.
    :param fleets: by name, made for a number of replicas.
    :raises ImportError: there is no matplotlib.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "flask_lifecycle", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    _losses(left, measured, fleets)
    _times(right, fleets)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _losses(axes: Any, measured: Sequence[Mapping[str, Any]], fleets: Fleets) -> None:
    # No replica comes back before the last balancer has noticed: a quick start makes up for a short delay.
    checked = fleets["balancers"](2000)._replace(start=Spread(60.0, 60.0))
    # On average a few routers lose what many do.
    deleted = fleets["kubernetes"](2000)._replace(routers=5)
    curves = {
        "checked every 0.5 s, 3 failures": checked._replace(period=0.5),
        "checked every 2 s, 3 failures": checked,
        "checked every 5 s, 3 failures": checked._replace(period=5.0),
        "Kubernetes, lag 1 s (p99 5 s)": deleted,
        "Kubernetes, lag 3 s (p99 10 s)": deleted._replace(lag=Spread(3.0, 10.0)),
    }
    for label, fleet in curves.items():
        # What is cut off at the deadline depends on the length of requests, and not on the delay.
        lost = [deploy(fleet._replace(delay=delay)).refused / fleet.replicas / fleet.rate for delay in _DELAYS]
        axes.plot(_DELAYS, [each if each >= _LEAST else None for each in lost], label=label)
    for period, color in ((0.5, "C0"), (2.0, "C1")):
        rows = [row for row in measured if row["kind"] == "haproxy" and row["period"] == period and row["measured"]]
        values, errors = ([row[key] / row["rate"] for row in rows] for key in ("measured", "error"))
        axes.errorbar([row["delay"] for row in rows], values, errors, fmt="o", color=color, capsize=3, markersize=4)
    axes.set(yscale="log", ylim=(_LEAST, 30), xlim=(-0.3, 15.3))
    axes.set(xlabel="delay, s", ylabel="lost per shutdown, where 1 request/s\ngoes to the replica")
    axes.set_title("Lost requests without retries (points: measured)", fontsize=9)
    axes.legend(fontsize=7, loc="upper right")
    axes.grid(alpha=0.3)


def _times(axes: Any, fleets: Fleets) -> None:
    for number, replicas in enumerate(_REPLICAS):
        for name, style in (("balancers", "-"), ("kubernetes", "--")):
            # The time does not depend on how many requests there are, or in Kubernetes on who sends them.
            fleet = fleets[name](replicas)._replace(rate=0.1)
            fleet = fleet if fleet.checks else fleet._replace(routers=1)
            found = [deploy(fleet._replace(delay=delay)).seconds for delay in _DELAYS[::4]]
            label = f"{replicas:,} replicas" if name == "balancers" else None
            axes.plot(_DELAYS[::4], found, style, color=f"C{number}", label=label)
    axes.set(xlabel="delay, s", ylabel="deploy, s", ylim=(0, None), xlim=(-0.3, 15.3))
    axes.set_title("Deploy in place, 10 % at once; dashed: Kubernetes, 25 %", fontsize=9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
