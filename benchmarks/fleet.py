"""Rolling restarts of three instances behind a real balancer under load: what is lost, and what becomes of latency.

Each instance in turn gets SIGTERM, is waited for, started again on its port, and the next one follows when the balancer
has it back. Meanwhile clients on kept and on new connections ask for small answers, 50 ms of work, digests of bodies
that they post, some in two halves, and streams, and check every answer to its last byte. ``kubernetes`` stands for pods
that are replaced, on nodes that hear of it late; there a connection goes straight to a pod. Needs the ``fleet``
extra, HAProxy and nginx::

    python benchmarks/fleet.py [--balancer haproxy] [--server waitress] [--requests 200000] [--restarts 100] [--delay 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import sys
from pathlib import Path

from _fleet.balancers import BALANCERS
from _fleet.kubelet import Deployment
from _fleet.roll import FleetError, Outcome, Plan, Pods, Roll, Shape, quantile

SERVERS = ("waitress", "gunicorn")
KINDS = (*BALANCERS, Deployment.kind)
HEAD = (
    f"{'balancer':18}{'server':10}{'delay':>6}{'requests':>10}{'restarts':>9}{'lost':>6}{'again':>6}"
    f"{'p50 ratio':>11}{'p99 ratio':>11}{'slowest, s':>12}{'requests/s':>12}"
)


def row(outcome: Outcome) -> str:
    """A line of the table; the ratios are of rolling to steady."""
    ratios = [quantile(outcome.rolling, share) / quantile(outcome.steady, share) for share in (0.5, 0.99)]
    return (
        f"{outcome.balancer:18}{outcome.server:10}{outcome.delay:>6}{outcome.requests:10}{outcome.restarts:9}"
        f"{len(outcome.lost):6}{outcome.again:6}{ratios[0]:11.2f}{ratios[1]:11.2f}"
        f"{max(outcome.rolling, default=0.0):12.2f}{outcome.requests / outcome.lasted:12.0f}"
    )


def record(outcome: Outcome) -> dict[str, object]:
    """The same for programs."""
    found = outcome._asdict() | {"steady": len(outcome.steady), "rolling": len(outcome.rolling)}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        found[f"steady_{name}"] = quantile(outcome.steady, share)
        found[f"rolling_{name}"] = quantile(outcome.rolling, share)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--balancer", action="append", choices=KINDS, help="may be given often")
    parser.add_argument("--server", action="append", choices=SERVERS, help="may be given often")
    parser.add_argument("--requests", type=int, default=2000, help="at least, of each balancer")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--delay", default="1", help="LIFECYCLE_SHUTDOWN_DELAY")
    parser.add_argument("--rate", type=float, default=700.0, help="requests a second")
    parser.add_argument("--together", action="store_true", help="all balancers at once, in front of the same instances")
    parser.add_argument("--no-net-admin", action="store_true", help="instances cannot stop their listeners accepting")
    parser.add_argument("--redispatch", action="store_true", help="HAProxy tries another server; not its default")
    parser.add_argument("--signal", default="SIGTERM", help="what stops an instance; SIGKILL shows what a loss is")
    parser.add_argument("--seed", type=int, default=1)
    pods = parser.add_argument_group(Deployment.kind)
    pods.add_argument("--shape", type=int, nargs=3, default=Shape(), metavar=("REPLICAS", "SURGE", "UNAVAILABLE"))
    pods.add_argument("--lag", type=float, default=0.8, help="seconds within which each node hears of a change")
    pods.add_argument("--pre-stop", type=pre_stop, help="seconds to sleep, or a command to run")
    pods.add_argument("--grace", type=float, default=30.0, help="seconds until SIGKILL")
    parser.add_argument("--json", type=Path, help="write all figures and losses to this file")
    return parser.parse_args()


def pre_stop(text: str) -> float | list[str]:
    try:
        return float(text)
    except ValueError:
        return shlex.split(text)


def plans(options: argparse.Namespace) -> list[Plan]:
    kinds = options.balancer or KINDS
    real = [kind for kind in kinds if kind in BALANCERS]
    groups = [real] if real and options.together else [[kind] for kind in real]
    groups += [[kind] for kind in kinds if kind not in BALANCERS]
    pods = Pods(Shape(*options.shape), options.lag, options.pre_stop, options.grace)
    return [
        Plan(
            group,
            server,
            options.delay,
            options.requests,
            options.restarts,
            options.rate,
            seed=options.seed,
            capable=not options.no_net_admin,
            number=signal.Signals[options.signal],
            redispatch=options.redispatch,
            deployment=None if set(group) & set(BALANCERS) else pods,
        )
        for server in options.server or SERVERS
        for group in groups
    ]


async def measure(options: argparse.Namespace) -> list[Outcome]:
    """Run all plans; SIGTERM and SIGINT end the processes of the one that runs as well."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    outcomes = []
    for plan in plans(options):
        for outcome in await Roll(plan, lambda text: print(f"    {text}", file=sys.stderr, flush=True)).run():
            print(row(outcome), flush=True)
            for line in (*outcome.unclean, *outcome.lost[:20]):
                print(f"    {line}", flush=True)
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    options = parse()
    print(HEAD, flush=True)
    try:
        outcomes = asyncio.run(measure(options))
    except FleetError as error:
        sys.exit(str(error))
    except asyncio.CancelledError:
        sys.exit("ended by a signal")
    if options.json:
        options.json.write_text(json.dumps([record(outcome) for outcome in outcomes], indent=1))


if __name__ == "__main__":
    main()
