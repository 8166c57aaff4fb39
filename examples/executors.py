"""Work that continues after the request is answered: a shutdown waits for it, as for requests.

Serve it with ::

    flask --app examples/executors.py lifecycle run -p 8000

then ``curl -X POST localhost:8000/reports/may``, and press Ctrl-C in the first terminal: the report is written, then
the pool is closed, and the exit code is 0. With ``pool.submit`` alone the report would be lost.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, request

from flask_lifecycle import Lifecycle, Work

app = Flask(__name__)
lifecycle = Lifecycle(app)
pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="reports")


def write_report(name: str, seconds: float) -> None:
    app.logger.warning("report %s begins", name)
    time.sleep(seconds)
    app.logger.warning("report %s is written", name)


@app.post("/reports/<name>")
def report(name: str) -> tuple[dict[str, str], int]:
    """Submit the work to an executor. It is a work item from now on, also while it waits for a thread."""
    lifecycle.submit(pool, write_report, name, request.args.get("seconds", 5.0, type=float))
    return {"accepted": name}, 202


@app.post("/mails/<name>")
def mail(name: str) -> tuple[dict[str, str], int]:
    """Start a thread. The work item begins before the thread, so a shutdown in between waits for it too."""
    token = lifecycle.work("mail", to=name)
    threading.Thread(target=send_mail, args=(token, name)).start()
    return {"accepted": name}, 202


def send_mail(token: Work, name: str) -> None:
    try:
        write_report(f"to {name}", 0.5)
    finally:
        token.done()


@lifecycle.on_shutdown
def close_pool() -> None:
    """Runs when all work is done."""
    pool.shutdown()
