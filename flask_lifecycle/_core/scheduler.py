"""A thread that runs a function whenever it is due."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .log import logger


class Scheduler:
    """Starts its thread at the first wake-up. Any thread may use it.

    :param tick: returns the seconds until its next call; ``None``: call it at the next wake-up.
    :param name: of the thread.
    :param what: the task, as the log names it if it fails, once until it succeeds. A failed call is repeated after a
        second.
    """

    def __init__(self, tick: Callable[[], float | None], name: str, what: str) -> None:
        self._tick = tick
        self._name = name
        self._what = what
        self._lock = threading.Lock()  # guards _thread: two wake-ups and a shutdown may come at once
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()
        self.ended = False

    def wake(self) -> None:
        """Call the function now; start the thread if this is the first time."""
        with self._lock:
            if self.ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._woken.set()

    def stop(self, *, wait: bool = True, timeout: float | None = None) -> bool:
        """End the thread and return whether it has ended. Idempotent.

        :param wait: wait until it has ended, as long as the function runs.
        :param timeout: the longest wait in seconds.
        """
        with self._lock:
            self.ended = True
        self._woken.set()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        failing = False
        while not self.ended:
            try:
                pause = self._tick()
                failing = False
            except Exception:
                if not failing:  # once, and not every second
                    logger.exception("%s failed; will retry", self._what, extra={"lifecycle_what": self._what})
                failing, pause = True, 1.0
            self._woken.wait(pause)
            self._woken.clear()
