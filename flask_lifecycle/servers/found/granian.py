"""granian, in one of its workers: its main thread waits for an event that its handler of SIGTERM sets.

Theory of operation
-------------------

granian's parent gets SIGTERM and sends it to its workers, whose handler sets an event of granian's. Then a worker
accepts no more, completes all that it has, also what is half received or waits for a thread, and returns from its
function; as a child of multiprocessing it runs no ``atexit`` function.

The handler was installed after ours, and cannot be taken back from a thread. But it is a closure, and the event in it
can be replaced: ours hands the signal to us. When the delay is over the real event is set, and granian does the rest
while the coordinator waits. A finalizer of multiprocessing tells that granian's function has returned, and holds the
process there until the hooks have run.

The worker's main thread waits for that event without a timeout. A signal to the process may be taken by any thread, and
then nothing ends that wait, in which the handler would run: the signal is lost, as it is under granian alone. So the
main thread is woken now and then, by SIGURG, which means nothing here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import CellType, FunctionType
from typing import Any

from ..._inflight import RequestInfo
from ..._parties import ACCEPTED, STARTED
from ..._signals import interrupt_main
from . import Carried, Found, instances, warn_of_limit
from ._attend import Attendance

# How late a signal may be noticed that another thread has taken, in seconds.
_AWAKE = 0.25

_found: FoundGranian | None = None


def find() -> FoundGranian | None:
    """The one whose worker this is."""
    global _found
    cell = _cell(signal.getsignal(signal.SIGTERM), "signal_event")
    if _found is None and multiprocessing.parent_process() is not None:
        _found = FoundGranian(cell)
    return _found


class FoundGranian(Found):
    """granian.

    :param cell: where its handler of SIGTERM has its event; ``None`` in a version that we do not know.
    """

    name = "granian"
    means = "by its handler of SIGTERM"
    promise = ACCEPTED

    def __init__(self, cell: CellType | None) -> None:
        self._cell = cell
        self._event = cell and cell.cell_contents
        self._attendance = Attendance()
        self._told = False
        self._returned = threading.Event()  # granian's function has
        self.ours = cell is not None
        if cell is None:
            self.means, self.promise = "by its modules", STARTED
            self.advice = "call 'flask lifecycle drain' before SIGTERM"

    def begin(self, process: Carried) -> None:
        from multiprocessing import util

        warn_of_limit("granian's", "workers-kill-timeout", _kill_timeout(), process)
        if self._cell is None:
            return
        self._cell.cell_contents = _Event(process)
        for function in list(instances(FunctionType)):
            if function.__qualname__ == "_callback_wrapper.<locals>._runner":
                callback = _cell(function, "callback")
                if callback is not None:
                    callback.cell_contents = self._attendance.attend(callback.cell_contents)

        def returned() -> None:
            self._returned.set()
            process.hold()

        util.Finalize(None, returned, exitpriority=100)
        threading.Thread(target=self._keep_awake, name="lifecycle-granian", daemon=True).start()

    def _keep_awake(self) -> None:
        """Have the main thread run the handlers of signals that others have taken."""
        while not self._returned.wait(_AWAKE) and callable(signal.getsignal(signal.SIGURG)):
            interrupt_main(signal.SIGURG)

    def announce(self) -> None:
        self._attendance.closing = True

    def stop_accepting(self, timeout: float) -> None:
        """Have it stop as it does; what it has, it completes."""
        if self._event is not None:
            self._told = True
            self._event.set()

    def wait_idle(self, timeout: float, linger: float) -> bool:
        return not self.ours or self._returned.wait(timeout)

    def unfinished(self) -> Sequence[RequestInfo]:
        """Whether it still has something that the application does not run; more is not to be seen."""
        waiting = self._told and not self._returned.is_set() and not self._attendance.running
        return [RequestInfo("-", "-", 0.0, stage="receiving")] if waiting else []

    def end(self) -> bool:
        """It leaves by itself, or has."""
        return self.ours


class _Event:
    """In the place of granian's: its handler sets it, in the main thread."""

    def __init__(self, process: Carried) -> None:
        self._process = process

    def set(self) -> None:
        self._process.signalled(signal.SIGTERM)


def _cell(function: Any, name: str) -> CellType | None:
    """Where a closure has its variable of that name."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    return function.__closure__[names.index(name)] if name in names else None


def _kill_timeout() -> float | None:
    """Its option, which the worker is not told; a child of multiprocessing has its parent's arguments."""
    option, text = "--workers-kill-timeout", os.environ.get("GRANIAN_WORKERS_KILL_TIMEOUT")
    for number, argument in enumerate(sys.argv):
        if argument.startswith(option):
            text = argument.partition("=")[2] or "".join(sys.argv[number + 1 : number + 2])
    try:
        return float(text) if text else None
    except ValueError:
        return None
