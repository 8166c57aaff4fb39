"""The pool of worker threads that carries the application: what waits, what runs, and for how long.

Which server that is, the extension knows (``AppState.load``); it is asked through the application context in which
every check runs, because a check may not import a server. Probes have lanes of their own under ``run``, so this check
gives its answer also when no worker is free, which is when it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._inflight import Load
from . import _arguments
from ._check import CheckResult

_REQUESTS = "a number of requests"


class WorkerPoolCheck:
    """See whether requests wait for a worker, and whether the workers get on.

    ::

        lifecycle.add_check(WorkerPoolCheck(fail_queue=100))

    Warns at ``warn_queue`` waiting requests and fails at ``fail_queue``, which is off by default: when all replicas
    have too much to do, an instance out of rotation gives its share to the others. A request older than ``max_age``
    warns; if no thread is idle either, the check fails, until the load has gone elsewhere.

    It is for readiness. That the pool is stuck, so that a restart is due, is for liveness to say, and takes more than
    one old request: ``LIFECYCLE_STUCK_AFTER``, see ``_stuck.py``.

    What it sees is one moment: let a few in a row fail before they count (``fail_after``). Where the server is unknown,
    as in a shell or under gunicorn, it passes and says so. Werkzeug has a thread for each connection and no queue, so
    that only ``max_age`` means something there.

    :param load: asked in place of the server that carries this process; returns a :class:`Load`, or ``None`` where it
        is not known.
    :param warn_queue: by default as many as there are threads: each has one request to do before those.
    :param max_age: seconds since the server had a request whole and its turn to be given to a thread had come.
    """

    scope = "local"

    def __init__(
        self,
        load: Callable[[], Load | None] | None = None,
        *,
        warn_queue: int | None = None,
        fail_queue: int | None = None,
        max_age: float | None = None,
        name: str = "workers",
    ) -> None:
        if load is not None and not callable(load):
            raise TypeError(f"'load' must be a function without arguments, not {load!r}.")
        if max_age is not None:
            _arguments.positive("max_age", max_age, "a number of seconds")
        self.name = name
        self._load = load or _load_of_this_process
        self._queue = _arguments.thresholds("queue", warn_queue, fail_queue, _REQUESTS)
        self._max_age = max_age

    def __call__(self) -> CheckResult:
        load = self._load()
        if load is None:
            return CheckResult(output="The server of this process does not tell its load.")
        status, output = self._judge(load)
        observed: dict[str, Any] = {"queued": load.queued, "threads": load.threads, "busy": load.busy}
        observed |= {"idle": load.idle, "oldest": round(load.oldest, 3)}
        return CheckResult(status, output, observed, load.queued, "requests")

    def _judge(self, load: Load) -> tuple[str, str]:
        warn, fail = self._queue
        late = self._max_age is not None and load.oldest >= self._max_age
        by_queue = _arguments.judge(load.queued, (load.threads or None) if warn is None else warn, fail)
        if late and load.idle == 0:
            return "fail", f"All {load.threads} workers are busy, and a request is {load.oldest:.1f} s old."
        if by_queue != "pass":
            return by_queue, f"{load.queued} requests wait for a worker."
        if late:
            return "warn", f"A request is {load.oldest:.1f} s old."
        return "pass", ""


def _load_of_this_process() -> Load | None:
    from flask import current_app

    load: Load | None = current_app.extensions["lifecycle"].load()
    return load
