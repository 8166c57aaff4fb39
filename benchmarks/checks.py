"""What health checks cost: in time, in runs of the checks, in threads and in instructions.

Needs valgrind for the instructions. The readiness probe under load is asked on the probe listener and compared with a
bare Flask view that Werkzeug serves on another port of the same process, asked in turns by the same client::

    python benchmarks/checks.py [--probes N]
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overhead import environment, instructions

ROOT = Path(__file__).resolve().parent.parent
TURNS = 5


def make(checks: int, seconds: float, **options: Any) -> tuple[Any, list[str]]:
    """A Flask application in testing mode whose checks sleep, and the list that each run is written to."""
    from flask import Flask

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    app.config["TESTING"] = True
    lifecycle = Lifecycle(app)
    runs: list[str] = []

    def check() -> None:
        runs.append("run")
        time.sleep(seconds)

    for number in range(checks):
        lifecycle.check(f"check {number}", **options)(check)
    return app, runs


def probe(app: Any) -> None:
    with app.test_client() as client:
        client.get("/readyz").close()


def report_ten_checks() -> None:
    app, _runs = make(10, 0.1, ttl=0)
    took = []
    for _ in range(TURNS):
        began = time.monotonic()
        probe(app)
        took.append(time.monotonic() - began)
    one_after_the_other = 10 * 100.0
    print(f"{'one probe of 10 checks of 100 ms':48}{statistics.median(took) * 1000:10.1f} ms", end="")
    print(f"   {statistics.median(took) * 1000 / one_after_the_other:.3f} of one after the other")


def report_fifty_probes() -> None:
    app, runs = make(10, 0.1)
    threads = [threading.Thread(target=probe, args=(app,)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{'runs of 10 checks in 50 probes at once':48}{len(runs):10}      {len(runs) / 500:.3f} of one each")


def report_threads() -> None:
    from flask import Flask

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    app.config["TESTING"] = True
    free = threading.Event()
    Lifecycle(app).check("hung", timeout=0.001)(free.wait)
    before = threading.active_count()
    for _ in range(1000):
        probe(app)
    print(f"{'threads more after 1,000 probes of a hung check':48}{threading.active_count() - before:10}")
    free.set()


# -- instructions -------------------------------------------------------------------------------------------------


def serve_in_process(path: str, count: int) -> None:
    """Call the application as a server does; the readiness probe has one check, whose result is good for long."""
    from flask import Flask
    from werkzeug.test import create_environ

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    app.config["TESTING"] = True

    @app.get("/bare")
    def bare() -> str:
        return "hello\n"

    if path != "/bare":
        Lifecycle(app).check("database", ttl=3600.0)(lambda: {"connections": 3})
    environ = create_environ(path)
    for _ in range(100 + count):
        result = app(dict(environ), lambda status, headers, exc_info=None: lambda data: None)
        for _chunk in result:
            pass
        close = getattr(result, "close", None)
        if close is not None:
            close()


def report_instructions() -> None:
    with tempfile.TemporaryDirectory() as cache:
        for path in ("/bare", "/readyz"):
            subprocess.run([sys.executable, __file__, "--in-process", path, "0"], env=environment(cache), check=True)
        cost = {}
        for path in ("/bare", "/readyz"):
            few, many = (instructions(cache, __file__, "--in-process", path, str(count)) for count in (300, 900))
            cost[path] = (many - few) / 600
    print(f"{'instructions of a bare Flask view':48}{cost['/bare']:10,.0f}")
    ratio = cost["/readyz"] / cost["/bare"]
    print(f"{'instructions of a cached readiness probe':48}{cost['/readyz']:10,.0f}      {ratio:.3f} of the view")


# -- under load ---------------------------------------------------------------------------------------------------


def child() -> None:
    """Serve the probes on the probe listener, and a bare view by Werkzeug on a port of its own."""
    import logging

    from flask import Flask
    from werkzeug.serving import WSGIRequestHandler, make_server

    from flask_lifecycle import Lifecycle

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    app = Flask(__name__)
    app.config.update(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=0)
    lifecycle = Lifecycle(app)
    lifecycle.check("database")(lambda: {"connections": 3})
    bare = Flask("bare")
    bare.add_url_rule("/bare", view_func=lambda: "hello\n", endpoint="bare")
    server = make_server("127.0.0.1", 0, bare, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger().info("bare view on http://127.0.0.1:%d", server.server_port)
    sys.exit(lifecycle.run(app, port=0).exit_code)


def rate(port: int, path: str, count: int) -> float:
    """Requests a second, each on a connection of its own as an orchestrator asks."""
    began = time.monotonic()
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path)
        assert connection.getresponse().read()
        connection.close()
    return count / (time.monotonic() - began)


def report_load(count: int) -> None:
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child"], stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        try:
            ports: dict[str, int] = {}
            text = ""
            patterns = {"/bare": r"bare view on http://127.0.0.1:(\d+)", "/readyz": r"probe listener on .*:(\d+)"}
            while len(ports) < 2 or "READY" not in text:
                time.sleep(0.05)
                log.seek(0)
                text = log.read()
                ports = {path: int(m[1]) for path, pattern in patterns.items() if (m := re.search(pattern, text))}
            rates: dict[str, list[float]] = {path: [] for path in patterns}
            for _ in range(TURNS):
                for path, port in ports.items():
                    rates[path].append(rate(port, path, count))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    medians = {path: statistics.median(values) for path, values in rates.items()}
    print(f"{'a bare view by Werkzeug, requests a second':48}{medians['/bare']:10,.0f}")
    ratio = medians["/readyz"] / medians["/bare"]
    print(f"{'/readyz on the probe listener, requests a second':48}{medians['/readyz']:10,.0f}", end="")
    print(f"      {ratio:.2f} of the view")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--probes", type=int, default=1000, help="in each of five turns of the load")
    parser.add_argument("--in-process", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process:
        serve_in_process(options.in_process[0], int(options.in_process[1]))
    elif options.child:
        child()
    else:
        reports: list[Callable[[], None]] = [
            report_ten_checks,
            report_fifty_probes,
            report_threads,
            report_instructions,
        ]
        for report in reports:
            report()
            sys.stdout.flush()
        report_load(options.probes)


if __name__ == "__main__":
    main()
