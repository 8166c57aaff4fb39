"""gunicorn without our hooks, in one of its workers: its master stops as it does, and nothing here can hold it.

The master has the objects of its workers as well, with their process ids; a worker has its own, and one forked from a
master the objects of those that were there before it. So the one whose number is this process's is this worker.
"""

from __future__ import annotations

import os
from typing import Any

from gunicorn.workers.base import Worker

from . import Found, inside, instances


def find() -> FoundGunicorn | None:
    """The worker that this process is; ``None`` in the master, and in a worker that could not load the application."""
    mine = (worker for worker in instances(Worker) if worker.pid == os.getpid())
    return next((FoundGunicorn(each) for each in mine if each.booted or inside(Worker.load_wsgi, self=each)), None)


class FoundGunicorn(Found):
    """gunicorn, in one of its workers."""

    name = "gunicorn"
    advice = (
        "to answer what is half received or queued as well, have 'from flask_lifecycle.gunicorn import *' in"
        " gunicorn.conf.py"
    )

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def serving(self) -> bool:
        """Whether the application is loaded; before, our hooks may still come."""
        booted: bool = self._worker.booted
        return booted
