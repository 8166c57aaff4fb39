"""What one machine cannot run: requests lost in a deploy of 10 to 10,000 replicas, and the time it takes.

    python benchmarks/fleet_model.py table [--replicas N] [--delay SECONDS] [--period SECONDS] [--lag MEDIAN P99] ...
    python benchmarks/fleet_model.py check [--stops N] [--json FILE]
    python benchmarks/fleet_model.py plot FILE.svg [--measured FILE]

``table`` prints two fleets, one behind balancers that ask, which is deployed in place, and one of Kubernetes; every
number of theirs is an option, as the lag of a cluster and the length of requests are whoever's who asks. ``check``
prints the model beside real stops behind HAProxy and Envoy, each with the difference in standard errors; it takes ten
minutes, HAProxy and the ``fleet`` extra. ``plot`` draws the picture of docs/delay.md, and takes the ``model`` extra.
``_fleet_model/simulation.py`` explains the model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from _fleet_model.simulation import AUTO, Fleet, Spread, deploy

REPLICAS = (10, 100, 1000, 10_000)
DELAYS = (0.0, 1.0, 2.0, 5.0, 10.0, AUTO)


def behind_balancers(replicas: int) -> Fleet:
    """Three balancers that ask as HAProxy does by default, and a tenth of the instances replaced in place at once."""
    return Fleet(replicas, routers=3, period=2.0, threshold=3, rise=2, unavailable=max(1, replicas // 10))


def in_kubernetes(replicas: int) -> Fleet:
    """The defaults of a Deployment, ten pods to a node; the lag is assumed, and is to be what is measured."""
    return Fleet(
        replicas, routers=max(3, replicas // 10), checks=False, lag=Spread(1.0, 5.0), least=5.0, period=5.0, rise=1,
        in_place=False, surge=math.ceil(replicas / 4), unavailable=replicas // 4,
    )  # fmt: skip


FLEETS = {"balancers": behind_balancers, "kubernetes": in_kubernetes}


def varied(fleet: Fleet, options: argparse.Namespace) -> Fleet:
    """A fleet with the numbers that were given in the place of its own."""
    given: dict[str, Any] = {}
    for name in ("rate", "period", "threshold", "retries", "kept", "grace", "lag", "length", "start"):
        value = getattr(options, name)
        if value is not None:
            given[name] = Spread(*value) if isinstance(value, list) else value
    return fleet._replace(**given)


def table(options: argparse.Namespace) -> None:
    print(
        f"{'fleet':12}{'replicas':>9}{'delay':>7}{'requests':>11}{'again':>9}{'refused':>9}{'raced':>7}{'cut':>6}"
        f"{'lost a stop':>13}{'stop, s':>9}{'deploy, s':>11}"
    )
    for name in options.fleet or FLEETS:
        for replicas in options.replicas or REPLICAS:
            for delay in options.delay or DELAYS:
                outcome = deploy(varied(FLEETS[name](replicas), options)._replace(delay=delay), options.seed)
                print(
                    f"{name:12}{replicas:9}{'auto' if delay == AUTO else f'{delay:g}':>7}{outcome.requests:11}"
                    f"{outcome.again:9}{outcome.refused:9}{outcome.raced:7}{outcome.cut:6}"
                    f"{outcome.lost / replicas:13.3f}{outcome.stop:9.2f}{outcome.seconds:11.1f}",
                    flush=True,
                )


def check(options: argparse.Namespace) -> None:
    from _fleet_model.measured import HEAD, rows

    print(HEAD, flush=True)
    found = []
    for row in rows(options.stops):
        print(row, flush=True)
        found.append(row._asdict())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def plot(options: argparse.Namespace) -> None:
    from _fleet_model.plot import draw

    measured = json.loads(options.measured.read_text()) if options.measured else []
    try:
        draw(options.file, measured, FLEETS)
    except ImportError:
        sys.exit("matplotlib is not installed, which the plot needs; install flask_lifecycle[model].")


def seconds(text: str) -> float:
    return AUTO if text == "auto" else float(text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("table")
    one.set_defaults(run=table)
    one.add_argument("--fleet", action="append", choices=list(FLEETS), help="may be given often")
    one.add_argument("--replicas", action="append", type=int, help="may be given often")
    one.add_argument("--delay", action="append", type=seconds, help="may be given often, or 'auto'")
    for name, kind in {"rate": float, "period": float, "threshold": int, "retries": int, "kept": int}.items():
        one.add_argument(f"--{name}", type=kind)
    one.add_argument("--grace", type=float, help="LIFECYCLE_GRACE_PERIOD")
    for name in ("lag", "length", "start"):
        one.add_argument(f"--{name}", type=float, nargs=2, metavar=("MEDIAN", "P99"), help="in seconds, lognormal")
    one.add_argument("--seed", type=int, default=1)
    two = commands.add_parser("check")
    two.set_defaults(run=check)
    two.add_argument("--stops", type=int, default=10)
    two.add_argument("--json", type=Path)
    three = commands.add_parser("plot")
    three.set_defaults(run=plot)
    three.add_argument("file", type=Path)
    three.add_argument("--measured", type=Path, help="what check has written by --json")
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
