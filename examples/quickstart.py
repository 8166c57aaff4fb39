"""The main job: probes that tell the truth and a stop that loses nothing.

Serve it with either of ::

    flask --app examples/quickstart.py lifecycle run -p 8000
    python examples/quickstart.py

then ``curl localhost:8000/healthcheck``; ask for ``/slow`` and press Ctrl-C meanwhile.
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
lifecycle = Lifecycle(app)
pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="work")


@app.get("/")
def index() -> dict[str, object]:
    return {"state": lifecycle.state.name, "in_flight": lifecycle.in_flight}


@app.get("/slow")
def slow() -> dict[str, float]:
    """Take a while, by default five seconds; the pool stays open until this has been answered."""
    seconds = request.args.get("seconds", 5.0, type=float)
    pool.submit(time.sleep, seconds).result()
    return {"slept": seconds}


@lifecycle.check("database", timeout=2)
def database() -> None:
    """Ready only while the database answers; an exception or two seconds of silence say no."""
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
