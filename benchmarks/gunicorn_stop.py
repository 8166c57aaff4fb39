"""From SIGTERM to gone: gunicorn with our hooks beside gunicorn alone, idle or with a connection that waits.

gunicorn alone serves the same application without the extension. Both are measured in turns, in one run::

    python benchmarks/gunicorn_stop.py [--rounds N] [--workers N] [--worker-class sync|gthread]
        [--connection none|kept|silent]
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from flask import Flask

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("sync", "gthread")
CONNECTIONS = ("none", "kept", "silent")


def alone() -> Flask:
    """Make the application that gunicorn serves alone."""
    return Flask(__name__)


def hooked() -> Flask:
    """Make the one that has the extension."""
    from flask_lifecycle import Lifecycle

    app = alone()
    Lifecycle(app)
    return app


def connect(port: int, connection: str) -> socket.socket | None:
    """Open a connection that waits: after an answer, or without a byte sent."""
    if connection == "none":
        return None
    sock = socket.create_connection(("127.0.0.1", port))
    if connection == "kept":
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(65536)
    return sock


def stop(worker_class: str, workers: int, make: str, connection: str) -> float:
    """Milliseconds from SIGTERM until the master is gone; it is up and has had a moment to come to rest."""
    config = ROOT / "examples" / "gunicorn" / "gunicorn.conf.py" if make == "hooked" else "/dev/null"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "gunicorn", "--config", str(config), "--worker-class", worker_class, "--threads", "4",
            "--workers", str(workers), "--bind", "127.0.0.1:0", f"gunicorn_stop:{make}()",
        ],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as stderr:
        try:
            booted = port = 0
            while booted < workers:
                line = stderr.readline()
                if not line:
                    sys.exit(f"gunicorn ({worker_class}, {make}) did not start")
                booted += "Booting worker with pid" in line
                if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                    port = int(found[1])
            drain = threading.Thread(target=stderr.read)
            drain.start()
            time.sleep(1.0)
            waiting = connect(port, connection)
            time.sleep(0.2)
            since = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
            lag = (time.perf_counter() - since) * 1000
            drain.join()
            if waiting is not None:
                waiting.close()
            if code:
                sys.exit(f"gunicorn ({worker_class}, {make}) left with {code}, not with 0")
            return lag
        finally:
            process.kill()
            process.wait()


def row(label: str, lags: list[float], baseline: float) -> None:
    median = statistics.median(lags)
    print(f"{label:36}{median:9.1f}{min(lags):9.1f}{max(lags):9.1f}{median / baseline:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--worker-class", choices=CLASSES, action="append")
    parser.add_argument("--connection", choices=CONNECTIONS, default="none")
    options = parser.parse_args()
    print(f"{f'ms, {options.rounds} rounds':36}{'median':>9}{'best':>9}{'worst':>9}{'ratio':>8}")
    for worker_class in options.worker_class or CLASSES:
        lags: dict[str, list[float]] = {"alone": [], "hooked": []}
        for _ in range(options.rounds):
            for make, of_kind in lags.items():
                of_kind.append(stop(worker_class, options.workers, make, options.connection))
        baseline = statistics.median(lags["alone"])
        row(f"gunicorn alone, {worker_class}", lags["alone"], baseline)
        row(f"gunicorn with our hooks, {worker_class}", lags["hooked"], baseline)


if __name__ == "__main__":
    main()
