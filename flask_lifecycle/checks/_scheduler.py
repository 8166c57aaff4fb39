"""When the checks that run in the background run."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .._state import logger


class Scheduler:
    """The one thread that runs background checks. It sleeps until something is due.

    :param tick: does what is due and says in how many seconds to call it again; ``None``: when woken.
    """

    def __init__(self, tick: Callable[[], float | None]) -> None:
        self._tick = tick
        self._lock = threading.Lock()  # guards _thread against two wake-ups, and a stop, at once
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()
        self.ended = False

    def wake(self) -> None:
        """Look again what is due; begin if this is the first time."""
        with self._lock:
            if self.ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lifecycle-checks", daemon=True)
                self._thread.start()
        self._woken.set()

    def stop(self) -> None:
        """End the thread, and wait for it; twice is harmless."""
        with self._lock:
            self.ended = True
        self._woken.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self.ended:
            try:
                pause = self._tick()
            except Exception:
                logger.exception("the background checks could not be looked after")
                pause = 1.0
            self._woken.wait(pause)
            self._woken.clear()
