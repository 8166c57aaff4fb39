"""A loop over jobs, beside a web server or alone: SIGTERM lets the job under way end, and the rest stays for the next.

A job is a file ``*.job`` in the directory ``$SPOOL``. Run the loop in a process of its own, or with a server, by ::

    SPOOL=/tmp/spool python examples/jobs.py
    SPOOL=/tmp/spool flask --app examples/jobs.py lifecycle run -p 8000

Without a server a process that has done some work is drained by SIGTERM like one that serves; one that has done none
is ended by it at once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from flask import Flask

from flask_lifecycle import Lifecycle

SPOOL = Path(os.environ.get("SPOOL", "/tmp/spool"))
PAUSE = 0.1

app = Flask(__name__)
lifecycle = Lifecycle(app)
logger = logging.getLogger("jobs")


def loop() -> None:
    """Take job after job until the shutdown begins."""
    while not lifecycle.draining.wait(PAUSE):
        for path in sorted(SPOOL.glob("*.job"))[:1]:
            # Another look behind the token: the shutdown may have passed between the first and the token, and then it
            # has seen no work.
            with lifecycle.work("job", file=path.name):
                if not lifecycle.draining.is_set():
                    handle(path)


def handle(path: Path) -> None:
    """The job: a file that holds how many seconds it takes."""
    logger.warning("%s begins", path.name)
    time.sleep(float(path.read_text() or 1))
    path.unlink()
    logger.warning("%s ends", path.name)


@lifecycle.on_startup
def start() -> None:
    """Beside a server the loop has a thread, which need not be waited for: the jobs are."""
    threading.Thread(target=loop, name="jobs", daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    loop()
