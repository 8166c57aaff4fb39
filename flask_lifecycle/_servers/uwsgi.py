"""uWSGI, in one of its workers. We cannot handle its signals, so ``flask lifecycle drain`` must come before them.

uWSGI installs its signal handlers in C, after the application was loaded, and they do not run Python's. In its graceful
stop (``hook-master-start = unix_signal:15 gracefully_kill_them_all``) a worker's threads finish their requests, and
then the interpreter ends, where our hooks run. Requests that wait for a thread are reset.

During ``drain`` a worker accepts until the delay is over and the accept queue is empty, waits until no request runs,
refuses later requests, and runs its hooks. The worker then stays, because the master would replace it by a ready one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import uwsgi

from .._core.inflight import RequestInfo
from .._core.log import logger
from .adapter import TICK, Adapter, warn_of_limit
from .listener import CLOSING_BOUND, QUIET_PERIOD

if TYPE_CHECKING:
    from .._core.process import Process

# The exit code of a worker that could not load its application: with need-app the master stops with the same code.
_FAILED_APP = 22  # UWSGI_FAILED_APP_CODE in uwsgi.h

attached: Uwsgi | None = None


def find() -> Uwsgi | None:
    """The adapter of this worker."""
    global attached
    if attached is None and uwsgi.worker_id():  # 0 in the master
        attached = Uwsgi()
    return attached


class Uwsgi(Adapter):
    """uWSGI, in one of its workers."""

    name = "uwsgi"
    means = "by its module 'uwsgi'"
    advice = "to answer queued requests as well, call 'flask lifecycle drain' before SIGTERM"
    ours = True  # so the guard refuses no request while the accept queue is emptied
    stays = True

    def __init__(self) -> None:
        self._process: Process | None = None
        self.start_error = _FAILED_APP if uwsgi.masterpid() else 1

    def begin(self, process: Process) -> None:
        self._process = process
        if uwsgi.worker_id() != 1:
            return  # one warning for all workers
        lacking = missing(uwsgi.opt)
        if lacking:
            logger.warning(
                "uWSGI is not configured to finish running requests during a shutdown; set %s.", ", ".join(lacking),
                extra={"lifecycle_missing": lacking},
            )  # fmt: skip
        warn_of_limit("uWSGI's", "worker-reload-mercy", float(uwsgi.opt.get("worker-reload-mercy", 60)), process)

    def stop_accepting(self, timeout: float) -> None:
        """Wait until the workers have accepted all connections in the queue, unless the process is about to exit."""
        quiet, pause = time.monotonic(), threading.Event()
        until = quiet + min(timeout, CLOSING_BOUND)
        while threading.main_thread().is_alive() and time.monotonic() < until:
            quiet = time.monotonic() if uwsgi.listen_queue() else quiet
            if time.monotonic() - quiet >= QUIET_PERIOD:
                return
            pause.wait(TICK)

    def unfinished(self) -> Sequence[RequestInfo]:
        """One entry if a thread is reading a request; uWSGI shows only whether the worker is busy."""
        busy = any(each["id"] == uwsgi.worker_id() and each["status"] == b"busy" for each in uwsgi.workers())
        mine = self._process is not None and self._process.shutdown.in_flight
        return [RequestInfo("-", "-", 0.0, stage="receiving")] if busy and not mine else []


def missing(options: Mapping[str, Any]) -> list[str]:
    """The options that a configuration lacks, and without which a shutdown loses running requests."""
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
