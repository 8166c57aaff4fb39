"""A thread that does what is due and sleeps until something is due again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ._state import logger


class Scheduler:
    """One such thread, started when it is first woken. Any thread may use it.

    :param tick: does what is due and says in how many seconds to call it again; ``None``: when woken.
    :param name: of the thread.
    :param what: it is that could not be looked after, for the log.
    """

    def __init__(self, tick: Callable[[], float | None], name: str, what: str) -> None:
        self._tick = tick
        self._name = name
        self._what = what
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
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self._woken.set()

    def stop(self, *, wait: bool = True, timeout: float | None = None) -> bool:
        """End the thread and say whether it has ended; twice is harmless.

        :param wait: until it has ended, which is as long as what it does takes.
        :param timeout: but no longer than so many seconds.
        """
        with self._lock:
            self.ended = True
        self._woken.set()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        while not self.ended:
            try:
                pause = self._tick()
            except Exception:
                logger.exception("the %s could not be looked after", self._what, extra={"lifecycle_what": self._what})
                pause = 1.0
            self._woken.wait(pause)
            self._woken.clear()
