"""APScheduler 3: a running job finishes before the process exits, and no new one begins.

It needs APScheduler. Serve it with ::

    pip install 'APScheduler<4'
    flask --app examples/scheduler.py lifecycle run -p 8000

and press Ctrl-C when a job has begun. Each serving process has its own scheduler. If you run several, move the jobs
into a separate process.
"""

from __future__ import annotations

import os
import time

from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]  # it has no types
from flask import Flask

from flask_lifecycle import Lifecycle

SECONDS = float(os.environ.get("SECONDS", "2"))

app = Flask(__name__)
lifecycle = Lifecycle(app)
scheduler = BackgroundScheduler()


@scheduler.scheduled_job("interval", seconds=SECONDS / 2, max_instances=2)  # type: ignore[untyped-decorator]  # it has no types
@lifecycle.work("clean up")
def clean_up() -> None:
    """Each call is a work item, and a shutdown waits for it."""
    app.logger.warning("job begins")
    time.sleep(SECONDS)
    app.logger.warning("job ends")


@lifecycle.on_startup(name="scheduler")
def start() -> None:
    scheduler.start()


@lifecycle.on_drain
def pause() -> None:
    """Start no new jobs when the shutdown begins."""
    if scheduler.running:
        scheduler.pause()


@lifecycle.on_shutdown(name="scheduler")
def stop() -> None:
    """Runs when the jobs are done, and waits for those still queued. Does not run if `start` failed."""
    scheduler.shutdown()
