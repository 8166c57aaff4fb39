"""uWSGI: its signals are its own, so what can be done before it stops is done when somebody says ``drain``.

uWSGI installs its handlers in C, after the application was loaded, and they never run Python's. On the graceful stop
(``hook-master-start = unix_signal:15 gracefully_kill_them_all``) a worker lets each of its threads finish what it runs,
and ends its interpreter, where our hooks run; what waits for a thread is reset.

Told to drain, a worker goes on accepting for the delay and until the accept queue is empty, waits until nothing runs,
refuses what comes after that, and runs its hooks. It stays: the master would start another in its place, which would be
ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import uwsgi

from ..._inflight import RequestInfo
from ..._state import logger
from .._closing import CLOSING_BOUND, QUIET_PERIOD
from . import _TICK, Carried, Found, warn_of_limit

_found: FoundUwsgi | None = None


def find() -> FoundUwsgi | None:
    """The one whose worker this is."""
    global _found
    if _found is None and uwsgi.worker_id():  # 0 in the master
        _found = FoundUwsgi()
    return _found


class FoundUwsgi(Found):
    """uWSGI, in one of its workers."""

    name = "uwsgi"
    means = "by its module 'uwsgi'"
    advice = "to answer what waits in its queues as well, call 'flask lifecycle drain' before SIGTERM"
    ours = True  # in so far as nothing is refused while its queue is being emptied
    stays = True

    def __init__(self) -> None:
        self._process: Carried | None = None

    def begin(self, process: Carried) -> None:
        self._process = process
        lacking = missing(uwsgi.opt)
        if lacking and uwsgi.worker_id() == 1:  # all have the same, and one says so
            logger.warning(
                "uWSGI is not configured for a stop that answers what it runs; set %s.", ", ".join(lacking),
                extra={"lifecycle_missing": lacking},
            )  # fmt: skip
        if uwsgi.worker_id() == 1:
            warn_of_limit("uWSGI's", "worker-reload-mercy", float(uwsgi.opt.get("worker-reload-mercy", 60)), process)

    def stop_accepting(self, timeout: float) -> None:
        """Wait until the workers have taken what waits in the kernel; at the exit nobody takes anything."""
        quiet, pause = time.monotonic(), threading.Event()
        until = quiet + min(timeout, CLOSING_BOUND)
        while threading.main_thread().is_alive() and time.monotonic() < until:
            quiet = time.monotonic() if uwsgi.listen_queue() else quiet
            if time.monotonic() - quiet >= QUIET_PERIOD:
                return
            pause.wait(_TICK)

    def unfinished(self) -> Sequence[RequestInfo]:
        """What a thread has begun to read; uWSGI tells no more than whether the worker is busy."""
        busy = any(each["id"] == uwsgi.worker_id() and each["status"] == b"busy" for each in uwsgi.workers())
        mine = self._process is not None and self._process.coordinator.in_flight
        return [RequestInfo("-", "-", 0.0, stage="receiving")] if busy and not mine else []


def missing(options: Mapping[str, Any]) -> list[str]:
    """What a configuration lacks."""
    lacking = []
    if not options.get("master"):
        lacking.append("'master = true'")
    if not options.get("enable-threads") and not options.get("threads"):
        lacking.append("'enable-threads = true'")
    if not any(options.get(name) for name in ("lazy-apps", "lazy", "py-call-osafterfork")):
        lacking.append("'lazy-apps = true'")
    if b"gracefully_kill_them_all" not in bytes(options.get("hook-master-start", b"")):
        lacking.append("'hook-master-start = unix_signal:15 gracefully_kill_them_all'")
    if options.get("die-on-term"):
        lacking.append("no 'die-on-term'")
    return lacking
