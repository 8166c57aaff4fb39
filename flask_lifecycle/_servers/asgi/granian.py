"""granian, in one of its workers. The worker's main thread waits for an event, which its SIGTERM handler sets.

Theory of operation
-------------------

granian's parent passes SIGTERM on to its workers, whose handler sets the event. Then a worker stops accepting,
completes all its requests, even those half received or waiting for a thread, and returns from its function. As a child
of multiprocessing it runs no ``atexit`` functions.

granian installs its handler after ours, and a thread cannot undo that. But the handler is a closure, so we replace the
event in it by our own, which passes the signal to us. After the delay we set the real event, and granian does the rest
while the shutdown waits. When granian's function has returned, a finalizer of multiprocessing keeps the process alive
until the hooks have run.

The worker's main thread waits for the event without a timeout. If another thread receives the signal, nothing wakes the
main thread, its handler does not run, and the signal is lost, as under granian alone. So we wake the main thread
periodically by SIGURG, which has no other effect here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing import util
from types import CellType, CodeType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from granian.wsgi import _callback_wrapper

from ..._core.inflight import RequestInfo
from ..._core.server import ACCEPTED
from ..._core.signals import interrupt_main
from ..adapter import Adapter, missing, warn_of_limit, watched_only
from ..discovery import made_from
from ..wsgi import WSGIWrapper

if TYPE_CHECKING:
    from ..._core.process import Process

_AWAKE = 0.25  # the longest delay, in seconds, of a signal that another thread has received

_OF_RUNNER = ("callback",)  # granian's variable that holds the application

attached: Adapter | None = None


def find() -> Adapter | None:
    """The adapter of this worker."""
    global attached
    if attached is None and multiprocessing.parent_process() is not None:
        cell = _cell(signal.getsignal(signal.SIGTERM), "signal_event")
        lacking = missing((_callback_wrapper, _OF_RUNNER))
        lacking += ["signal_event"] if cell is None else []
        attached = watched_only("granian", lacking) if cell is None or lacking else Granian(cell)
    return attached


class Granian(Adapter):
    """granian.

    :param cell: the closure cell that holds the event of its SIGTERM handler.
    """

    name = "granian"
    means = "by its handler of SIGTERM"
    guarantee = ACCEPTED
    ours = True

    def __init__(self, cell: CellType) -> None:
        self._cell = cell
        self._event = cell.cell_contents  # granian's own class, which has no is_set()
        self._stopping_since: float | None = None
        self._wrapper = WSGIWrapper()
        self._returned = threading.Event()  # set when granian's function has returned

    def begin(self, process: Process) -> None:
        warn_of_limit("granian's", "workers-kill-timeout", kill_timeout(), process)
        # Its handler sets it, in the main thread.
        self._cell.cell_contents = SimpleNamespace(set=lambda: process.relay.pass_on(signal.SIGTERM))
        for code in _callback_wrapper.__code__.co_consts:
            for function in made_from(code) if isinstance(code, CodeType) else ():
                callback = _cell(function, "callback")
                if callback is not None:
                    callback.cell_contents = self._wrapper.wrap(callback.cell_contents)

        def returned() -> None:
            self._returned.set()
            process.exit.finish()

        util.Finalize(None, returned, exitpriority=100)
        threading.Thread(target=self._keep_awake, name="lifecycle-granian", daemon=True).start()

    def _keep_awake(self) -> None:
        """Make the main thread run the handlers of signals that other threads have received."""
        while not self._returned.wait(_AWAKE) and callable(signal.getsignal(signal.SIGURG)):
            interrupt_main(signal.SIGURG)

    def announce(self) -> None:
        self._wrapper.closing = True

    def stop_accepting(self, timeout: float) -> None:
        """Start granian's own stop, which completes all its requests."""
        self._stopping_since = time.monotonic()
        self._event.set()

    def wait_idle(self, timeout: float, linger: float) -> bool:
        return self._returned.wait(timeout)

    def unfinished(self) -> Sequence[RequestInfo]:
        """What the application runs; if that is nothing, one entry while granian stops. We cannot see more."""
        if self._stopping_since is None or self._returned.is_set():
            return []
        running, age = len(self._wrapper.running), time.monotonic() - self._stopping_since
        return [RequestInfo("-", "-", age, stage="running" if running else "receiving")] * max(1, running)

    def end(self) -> bool:
        """Return ``True``: granian ends its loop itself."""
        return True


def _cell(function: Any, name: str) -> CellType | None:
    """The cell of a closure's variable, ``None`` if it has no such variable."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index(name)] if name in names else None


def kill_timeout() -> float | None:
    """granian's option. The worker does not get it, but a child of multiprocessing has its parent's arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--workers-kill-timeout", type=float, default=os.environ.get("GRANIAN_WORKERS_KILL_TIMEOUT"))
    try:
        limit: float | None = parser.parse_known_args()[0].workers_kill_timeout
    except argparse.ArgumentError:
        return None
    return limit
