"""Health probes and graceful shutdown.

Serve it with ``flask --app examples/quickstart.py lifecycle run -p 8000``. Request ``/healthcheck``, then ``/slow``,
and press Ctrl-C while ``/slow`` runs: it is answered. With ``FLASK_LIFECYCLE_SHUTDOWN_DELAY=5`` in the environment the
process serves for another five seconds while ``/readyz`` answers 503, so that a load balancer can notice.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, request

from flask_lifecycle import Lifecycle

app = Flask(__name__)
app.config.from_prefixed_env()  # FLASK_LIFECYCLE_SHUTDOWN_DELAY=5 sets LIFECYCLE_SHUTDOWN_DELAY, and so on
lifecycle = Lifecycle(app)
pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="work")


@app.get("/")
def index() -> dict[str, object]:
    return {"state": lifecycle.state.name, "in_flight": lifecycle.in_flight}


@app.get("/slow")
def slow() -> dict[str, float]:
    """Take five seconds by default; the pool stays open until this request is answered."""
    seconds = request.args.get("seconds", 5.0, type=float)
    pool.submit(time.sleep, seconds).result()
    return {"slept": seconds}


@lifecycle.check("database", timeout=2)
def database() -> None:
    """The application is ready while the database answers. An exception, or no answer within two seconds, fails."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("SELECT 1")
    finally:
        connection.close()


@lifecycle.on_shutdown
def close_pool() -> None:
    """Runs after the last request has been answered."""
    pool.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    sys.exit(lifecycle.run(app, port=int(os.environ.get("PORT", "8000"))).exit_code)
