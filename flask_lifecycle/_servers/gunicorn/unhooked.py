"""A worker of gunicorn whose configuration lacks our hooks: its master stops at once, and nothing here can hold it.

The master has objects of all its workers, with their process ids, and a worker has copies of those that were forked
before it. So this worker is the object with the id of this process.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from ..._core.inflight import RequestInfo
from ..adapter import Adapter
from ..discovery import inside, instances
from .connections import running
from .master import is_known

_OF_UVICORN = ("uvicorn.workers", "uvicorn_worker._workers")


def worker() -> Worker | None:
    """The worker that this process is; ``None`` in the master, and without gunicorn."""
    return next((each for each in instances(Worker) if each.pid == os.getpid()), None)


def find() -> UnhookedGunicorn | None:
    """The adapter of this worker; ``None`` in the master, and in a worker that could not load the application."""
    mine = worker()
    return UnhookedGunicorn(mine) if mine and (mine.booted or inside(Worker.load_wsgi, self=mine)) else None


class UnhookedGunicorn(Adapter):
    """gunicorn, in one of its workers."""

    name = "gunicorn"

    start_error = Arbiter.WORKER_BOOT_ERROR  # the master then stops, instead of replacing the worker again and again

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._awaited: Collection[Any] = ()  # the requests that a shutdown waits for, as gunicorn's own objects
        if is_known(type(worker)):
            self.advice = (
                "to answer half-received and queued requests as well, put 'from flask_lifecycle.gunicorn import *' in"
                " gunicorn.conf.py"
            )

    def serving(self) -> bool:
        """Whether the application is loaded: before that our hooks may still run. In uvicorn's workers uvicorn serves,
        and discovery finds that then.
        """
        booted: bool = self._worker.booted
        if booted and any(each.__module__ in _OF_UVICORN for each in type(self._worker).__mro__):
            from ..asgi import uvicorn

            return uvicorn.find() is not None
        return booted

    def stop_accepting(self, timeout: float) -> None:
        """Wait for the requests that run now. The listener stays open, so later ones could hold up the drain forever:
        the guard refuses those of the application, and gunicorn finishes the others after the shutdown.
        """
        self._awaited = running(self._worker)

    def unfinished(self) -> Sequence[RequestInfo]:
        if not self._awaited:  # the status document asks too, before a shutdown
            return ()
        return [info for request, info in running(self._worker).items() if request in self._awaited]
