"""What metrics cost: a scrape of fifty checks, and a request with metrics on against one with metrics off.

Needs prometheus_client, and valgrind for the requests::

    python benchmarks/metrics.py [--scrapes N] [--requests N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overhead import environment, instructions
from werkzeug import Request
from werkzeug.test import create_environ

if TYPE_CHECKING:
    from flask import Flask

CHECKS = 50
WARM_UP = 100
OFF, ON = "off", "on"


def make_app(kind: str) -> Flask:
    """An application with fifty checks, in testing mode, so that no listener is opened."""
    from flask import Flask

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    app.testing = True
    if kind == ON:
        app.config.update(LIFECYCLE_METRICS=True, LIFECYCLE_PROBE_PORT=0, LIFECYCLE_PROBE_HOST="127.0.0.1")
    lifecycle = Lifecycle(app)

    @app.get("/")
    def index() -> str:
        return "hello\n"

    for number in range(CHECKS):
        lifecycle.check(f"check {number}", ttl=3600)(lambda: None)
    return app


def call(app: Any, environ: dict[str, Any]) -> int:
    """Call a WSGI application as a server does; return how many bytes it answers."""

    def start_response(status: str, headers: object, exc_info: object = None) -> Any:
        assert status == "200 OK", status

    result = app(dict(environ), start_response)
    size = sum(len(chunk) for chunk in result)
    close = getattr(result, "close", None)
    if close is not None:
        close()
    return size


def serve(kind: str, count: int) -> None:
    app, environ = make_app(kind), create_environ("/")
    for _ in range(WARM_UP + count):
        call(app, environ)


def milliseconds(work: Callable[[], object], times: int) -> tuple[float, float]:
    """The median and the 99th percentile of so many runs."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    return taken[len(taken) // 2], taken[len(taken) * 99 // 100]


def report_scrapes(times: int) -> None:
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    from flask_lifecycle._probes.listener import respond
    from flask_lifecycle.metrics import LifecycleCollector

    bare = CollectorRegistry()
    for number in range(CHECKS):
        Gauge(f"gauge_{number}", "A gauge.", registry=bare).set(number)
    samples = CollectorRegistry()
    app = make_app(ON)
    for path in ("/", "/readyz"):
        call(app, create_environ(path))
    state = app.extensions["lifecycle"]

    def listener(environ: dict[str, Any], start_response: Any) -> Any:
        return respond([state.probes], Request(environ))(environ, start_response)

    collector = LifecycleCollector(app)
    # As many samples as ours, so that what differs is how they are come by.
    many = Gauge("sample", "Samples.", ("check", "status"), registry=samples)
    count = sum(len(family.samples) for family in collector.collect())
    for number in range(count):
        many.labels(f"check {number}", "pass").set(number)
    ours = CollectorRegistry()
    ours.register(collector)
    subjects: list[tuple[str, Callable[[], object]]] = [
        (f"prometheus_client, {CHECKS} gauges", lambda: generate_latest(bare)),
        (f"prometheus_client, {count} samples", lambda: generate_latest(samples)),
        (f"LifecycleCollector, {CHECKS} checks, {count} samples", lambda: generate_latest(ours)),
        ("/metrics of the probe listener, with Python's own", lambda: call(listener, create_environ("/metrics"))),
    ]
    print(f"{'a scrape in process, ms':54}{'median':>9}{'p99':>9}{'ratio':>9}")
    reference = 0.0
    for name, work in subjects:
        milliseconds(work, times // 10)
        median, late = milliseconds(work, times)
        reference = reference or median
        print(f"{name:54}{median:9.3f}{late:9.3f}{median / reference:9.2f}", flush=True)
    state.end()


def report_requests(count: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        found = {}
        for kind in (OFF, ON):
            child = [__file__, "--child", kind]
            subprocess.run([sys.executable, *child, "0"], env=environment(cache), check=True)  # fills the cache
            few, many = (instructions(cache, *child, str(number)) for number in (count, 3 * count))
            found[kind] = (many - few) / (2 * count)
    print(f"{'instructions per request':54}{'off':>9}{'on':>9}{'ratio':>9}")
    print(f"{'GET /':54}{found[OFF]:9,.0f}{found[ON]:9,.0f}{found[ON] / found[OFF]:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scrapes", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, count = options.child
        serve(kind, int(count))
        return
    report_scrapes(options.scrapes)
    print()
    report_requests(options.requests)


if __name__ == "__main__":
    main()
