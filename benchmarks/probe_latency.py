"""How long a liveness probe waits while every worker of a waitress server is busy.

Asked 200 times, each on a new connection as an orchestrator does it, on the probe listener and on
the main port: while nothing else runs, while all workers sleep, and while all four compute in
Python::

    python benchmarks/probe_latency.py [--probes N]
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
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = 4


def child() -> None:
    """Be the measured server."""
    import logging

    from flask import Flask

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    app.config["LIFECYCLE_PROBE_HOST"] = "127.0.0.1"
    app.config["LIFECYCLE_PROBE_PORT"] = 0
    lifecycle = Lifecycle(app)
    released = threading.Event()

    @app.get("/sleep")
    def sleep() -> str:
        released.wait()
        return "slept\n"

    @app.get("/compute")
    def compute() -> str:
        number = 0
        while not released.is_set():
            for _ in range(10_000):
                number = (number * 3 + 1) % 1_000_003
        return "computed\n"

    # The drain ends what keeps the workers busy.
    lifecycle.on_drain(released.set)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(lifecycle.run(app, port=0, threads=THREADS).exit_code)


class Server:
    """A server process, its two ports, and the requests that keep it busy."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.ports: dict[str, int] = {}
        for line in self.process.stderr:
            if found := re.search(r"(listening|probe listener) on http://127\.0\.0\.1:(\d+)", line):
                self.ports[found[1]] = int(found[2])
            if len(self.ports) == 2:
                break
        else:
            sys.exit("the server did not start")
        self._drain = threading.Thread(target=self.process.stderr.read)
        self._drain.start()
        self._busy: list[threading.Thread] = []

    def occupy(self, path: str) -> None:
        """Give every worker a request that lasts until the server stops."""
        main = self.ports["listening"]
        self._busy = [threading.Thread(target=get, args=(main, path)) for _ in range(THREADS)]
        for thread in self._busy:
            thread.start()
        time.sleep(0.5)

    def probe(self, listener: str, count: int) -> list[float]:
        """Milliseconds of each of ``count`` probes."""
        lags = []
        for _ in range(count):
            since = time.perf_counter()
            assert get(self.ports[listener], "/livez") == 200
            lags.append((time.perf_counter() - since) * 1000)
            time.sleep(0.005)
        return lags

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        for thread in self._busy:
            thread.join()
        code = self.process.wait()
        self._drain.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        if code:
            sys.exit(f"the server left with {code}, not with 0")


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    loads: dict[str, Callable[[Server], None]] = {
        "idle": lambda server: None,
        f"{THREADS} workers asleep": lambda server: server.occupy("/sleep"),
        f"{THREADS} workers computing": lambda server: server.occupy("/compute"),
    }
    title = f"ms, {options.probes} probes"
    print(f"{title:44}{'median':>9}{'worst':>9}{'median : idle':>16}{'worst : idle':>14}")
    idle: dict[str, tuple[float, float]] = {}
    for load, occupy in loads.items():
        server = Server()
        occupy(server)
        for listener, name in (("probe listener", "probe listener"), ("listening", "main port")):
            lags = server.probe(listener, options.probes)
            median, worst = statistics.median(lags), max(lags)
            base = idle.setdefault(name, (median, worst))
            ratios = f"{median / base[0]:16.2f}{worst / base[1]:14.2f}"
            print(f"{f'{load}, {name}':44}{median:9.2f}{worst:9.2f}{ratios}", flush=True)
        server.stop()


if __name__ == "__main__":
    main()
