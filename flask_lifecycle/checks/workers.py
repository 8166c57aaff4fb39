"""The pool of worker threads that runs the application: queued requests, running requests, and their age.

The extension knows the server (``Application.load``). The check asks it through the application context in which every
check runs, because a check may not import a server. Under ``run`` dedicated workers answer probes, so this check
answers even if all workers are busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._config import LONGEST
from .._core.inflight import Load
from . import _validation
from ._check import CheckResult


class WorkerPoolCheck:
    """Checks whether requests wait for a worker, and whether the workers make progress.

    ::

        lifecycle.add_check(WorkerPoolCheck(fail_queue=100))

    Warns at ``warn_queue`` queued requests and fails at ``fail_queue``, which is off by default: when all replicas are
    overloaded, an instance out of rotation moves its share to the others. A request older than ``max_age`` warns; if no
    thread is idle either, the check fails.

    Use it for readiness. A stuck pool, which needs a restart, is a matter of liveness and of more than one old request:
    ``LIFECYCLE_STUCK_AFTER``, see ``_monitors/stuck_workers.py``.

    It sees one moment, so let several failures in a row count (``fail_after``). Where the server is unknown, as in a
    shell or under gunicorn, it passes and says so. Werkzeug has a thread for each connection and no queue, so only
    ``max_age`` means something there.

    :param load: called instead of asking the server of this process; returns a :class:`Load`, or ``None`` where it is
        not known.
    :param warn_queue: by default the number of threads: each has one request to finish first.
    :param max_age: seconds since the server received the whole request and it was due for a thread.
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
            _validation.positive("max_age", max_age, "a number of seconds", LONGEST)
        self.name = name
        self._load = load or _load_of_this_process
        self._queue = _validation.thresholds("queue", warn_queue, fail_queue, "a number of requests")
        self._max_age = max_age

    def __call__(self) -> CheckResult:
        load = self._load()
        if load is None:
            return CheckResult(output="The server of this process does not report its load.")
        status, output = self._status(load)
        observed: dict[str, Any] = {"queued": load.queued, "threads": load.threads, "busy": load.busy}
        observed |= {"idle": load.idle, "oldest": round(load.oldest, 3)}
        return CheckResult(status, output, observed, load.queued, "requests")

    def _status(self, load: Load) -> tuple[str, str]:
        warn, fail = self._queue
        late = self._max_age is not None and load.oldest >= self._max_age
        by_queue = _validation.status_of(load.queued, (load.threads or None) if warn is None else warn, fail)
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
