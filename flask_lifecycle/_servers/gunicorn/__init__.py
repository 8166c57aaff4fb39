"""gunicorn: the functions behind ``flask_lifecycle.gunicorn``.

``worker.py`` and ``master.py`` describe how they work, and ``shared.py`` has the memory that master and workers share.
``unhooked.py`` is the adapter of a worker without these hooks.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from gunicorn.workers.base import Worker

from ..._core.log import logger
from ..adapter import missing
from ..serving import this_process, this_serving
from .master import Master, is_known
from .shared import ABSENT, SharedMemory
from .worker import HookedWorker

# What the hooks use of gunicorn.
_OF_MASTER = ("LISTENERS", "WORKERS", "handle_term", "kill_worker", "kill_workers", "reap_workers", "signal", "stop")
_OF_CLASS = ("handle", "handle_exit", "handle_quit")
_OF_WORKER = ("age", "alive", "cfg", "sockets", "tmp")


class _Here:
    """What the hooks of this process have made. A worker has a copy of what its master had before the fork."""

    shared: SharedMemory | None = None
    master: Master | None = None
    worker: HookedWorker | None = None


here = _Here()


def when_ready(server: Any) -> None:
    """The master listens: take over SIGTERM before the first worker is forked.

    If we do not know the class of its workers, or this version of gunicorn, no hook does anything, and each worker
    stops as with ``init_app`` alone.
    """
    worker_class = server.worker_class
    lacking = missing((server, _OF_MASTER), (worker_class, _OF_CLASS), (Worker.__init__, _OF_WORKER))
    known = is_known(worker_class)
    if lacking or not known:
        unknown = f"a gunicorn without {lacking[0]!r}" if known else f"workers of class {worker_class.__name__}"
        server.log.info("flask_lifecycle does not know %s; each worker stops as with init_app alone", unknown)
        return
    this_process.relay.restore()  # an application that was loaded here has taken signals that are not its own
    shared = here.shared = SharedMemory()
    here.master = this_process.shutdown.peers = Master(server, shared)
    here.master.install()
    if this_process.applications():
        _warn_of_threads()


def _warn_of_threads() -> None:
    """Log which threads the application, loaded before the fork, has started for the master alone."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    names = [name for name in others if not name.startswith("lifecycle-")]
    if names:
        logger.warning(
            "threads that were started before the fork do not exist in the workers: %s; start them in an on_startup"
            " function, or load the application without --preload.",
            ", ".join(names), extra={"lifecycle_threads": names},
        )  # fmt: skip


def pre_fork(server: Any, worker: Any) -> None:
    """A worker is about to be forked: its bytes may be those of one that has gone."""
    if here.shared is not None:
        here.shared.clear(worker.age)


def post_fork(server: Any, worker: Any) -> None:
    """This is a worker: the master's timer is not its own, and SIGTERM is gunicorn's until the application is loaded.

    If the extension took SIGTERM while the application is loaded, as it does elsewhere, a shutdown that meets a worker
    which replaces another one would lose the signal, and gunicorn's loop would run until the grace period is over:

    - The shutdown begins, because discovery finds the worker; then our hooks take over, and when the shutdown is over
      it is not the process that has to end the loop.
    - Our hooks take over while discovery searches; then the shutdown begins, and waits for the loop.
    """
    here.master = None
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    this_process.awaits_master = here.shared is not None


def post_worker_init(worker: Any) -> None:
    """The application is loaded: begin to serve it."""
    shared = here.shared
    if shared is None:
        return
    if not this_process.applications():
        this_process.awaits_master = False
        shared.set_state(worker.age, ABSENT)
    elif worker.alive or not shared.is_dismissed(worker.age) or shared.page.stop_requested:  # else others serve already
        here.worker = HookedWorker(worker, shared, this_serving)
        here.worker.serve()


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """A request has ended, perhaps the last of ``max_requests``."""
    if here.worker is not None and not worker.alive:
        here.worker.wake()


def worker_exit(server: Any, worker: Any) -> None:
    """A worker leaves: drain it and run its hooks. One that could not start makes gunicorn stop, as if it could not be
    loaded. gunicorn calls this in the master as well, for a worker that has gone.
    """
    if here.worker is not None and here.worker.finish():
        sys.exit(server.WORKER_BOOT_ERROR)  # or it would be replaced again and again


def on_exit(server: Any) -> None:
    """The master leaves: with 1 if a worker has not ended clean, or the hooks of the process group have not run."""
    master, shared = here.master, here.shared
    if master is None or shared is None:
        return
    done = True
    if shared.claim_group_hooks():
        done = this_process.shutdown.run_group_hooks(max(0.5, master.left))
        if not this_process.applications():
            server.log.error("No worker was left to run the on_shutdown functions of the process group.")
    if master.exit_code or not done:
        sys.exit(1)
