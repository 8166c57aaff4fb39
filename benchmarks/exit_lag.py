"""From SIGTERM to gone, and from the last byte of the last answer to gone.

A baseline leaves by ``sys.exit`` in its signal handler; it has imported and built the same, so
that it shows what this interpreter needs to finalize. All are measured in turns, in one run::

    python benchmarks/exit_lag.py [--rounds N] [--server waitress|werkzeug]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ("waitress", "werkzeug")


def child(kind: str) -> None:
    """Be the measured process: a server, or the baseline of it (``exit-`` before its name)."""
    import importlib
    import logging

    from flask import Flask

    from flask_lifecycle import Lifecycle

    server = kind.removeprefix("exit-")
    app = Flask(__name__)
    lifecycle = Lifecycle(app)

    @app.get("/slow")
    def slow() -> str:
        time.sleep(0.3)
        return "done\n"

    if kind == server:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        sys.exit(lifecycle.run(app, port=0, server=server).exit_code)

    logging.basicConfig(level=logging.INFO)
    importlib.import_module(f"flask_lifecycle._servers.{server}")
    importlib.import_module("waitress.server" if server == "waitress" else "werkzeug.serving")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    print("listening on http://127.0.0.1:0", file=sys.stderr, flush=True)
    while True:
        signal.pause()


@contextlib.contextmanager
def started(kind: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that is up and has had a moment to come to rest, and its port."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", kind],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as stderr:
        try:
            for line in stderr:
                if found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                sys.exit(f"{kind} did not start")
            drain = threading.Thread(target=stderr.read)
            drain.start()
            time.sleep(0.3)
            yield process, int(found[1])
            drain.join()
        finally:
            process.kill()
            process.wait()


def left(process: subprocess.Popen[str], since: float) -> float:
    """Milliseconds from a moment until the process is gone."""
    code = process.wait()
    lag = (time.perf_counter() - since) * 1000
    if code:
        sys.exit(f"left with {code}, not with 0")
    return lag


def idle_exit(kind: str) -> float:
    with started(kind) as (process, _):
        since = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        return left(process, since)


def exit_after_answer(kind: str) -> float:
    """SIGTERM comes while a request is in flight; the client hangs up when it has the last byte."""
    with started(kind) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/slow")
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        body = connection.getresponse().read()
        since = time.perf_counter()
        connection.close()
        assert body == b"done\n"
        return left(process, since)


def row(label: str, lags: list[float], baseline: float) -> None:
    median = statistics.median(lags)
    beyond, ratio = median - baseline, median / baseline
    print(f"{label:44}{median:9.1f}{max(lags):9.1f}{beyond:+11.1f}{ratio:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--server", choices=SERVERS, action="append")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    print(f"{f'ms, {options.rounds} rounds':44}{'median':>9}{'worst':>9}{'beyond':>11}{'ratio':>8}")
    for server in options.server or SERVERS:
        plain, idle, answered = [], [], []
        for _ in range(options.rounds):
            plain.append(idle_exit(f"exit-{server}"))
            idle.append(idle_exit(server))
            answered.append(exit_after_answer(server))
        baseline = statistics.median(plain)
        row(f"sys.exit with the imports of {server}", plain, baseline)
        row(f"{server}: SIGTERM to gone, idle", idle, baseline)
        row(f"{server}: last byte of last answer to gone", answered, baseline)


if __name__ == "__main__":
    main()
