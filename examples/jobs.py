"""A job loop, with a web server or without: on SIGTERM the current job finishes, and the others stay in the spool.

A job is a file ``*.job`` in the directory ``$SPOOL``. Run the loop in its own process, or with a server::

    SPOOL=/tmp/spool python examples/jobs.py
    SPOOL=/tmp/spool flask --app examples/jobs.py lifecycle run -p 8000

Without a server, a process that has begun a work item handles SIGTERM gracefully; before that, SIGTERM ends it at once.
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
    """Process jobs until the shutdown begins."""
    while not lifecycle.draining.wait(PAUSE):
        for path in sorted(SPOOL.glob("*.job"))[:1]:
            # Check again inside: a whole shutdown fits between the first check and work(), and sees no work then.
            with lifecycle.work("job", file=path.name):
                if not lifecycle.draining.is_set():
                    handle(path)


def handle(path: Path) -> None:
    """A job is a file that contains how many seconds it takes."""
    logger.warning("%s begins", path.name)
    time.sleep(float(path.read_text() or 1))
    path.unlink()
    logger.warning("%s ends", path.name)


@lifecycle.on_startup
def start() -> None:
    """With a server, the loop runs in a thread. A shutdown waits for the jobs, so the thread may be a daemon."""
    threading.Thread(target=loop, name="jobs", daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    loop()
