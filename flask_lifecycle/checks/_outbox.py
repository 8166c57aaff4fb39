"""Calls that may block, made in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .._core.log import logger


class Outbox:
    """Calls that may block, made in order and by one thread at a time. Any thread may use it.

    A signal receiver or a log handler may block. Calls that come meanwhile wait for the thread that it blocks: with a
    thread for each call, a check that flaps would use up all threads.
    """

    def __init__(self) -> None:
        # Calls that were blocked for so long are too old to be made.
        self._calls: deque[Callable[[], object]] = deque(maxlen=100)
        self._busy = threading.Lock()  # held while a call is made; only acquired without waiting

    def put(self, call: Callable[[], object]) -> None:
        """Add a call. Does not block, so the caller may hold a lock."""
        self._calls.append(call)

    def flush(self) -> None:
        """Make the calls, unless another thread already does.

        Interleaving: another thread puts a call while this one is about to release ``_busy``, does not get it, and
        leaves the call to this thread. So the queue is looked at again after the release.
        """
        while self._calls and self._busy.acquire(blocking=False):
            try:
                if self._calls:  # else another thread made the call between the two conditions
                    self._calls.popleft()()
            except Exception:
                logger.exception(
                    "a change of the health could not be published", extra={"lifecycle_hook": "health_changed"}
                )
            finally:
                self._busy.release()

    def flush_in_thread(self, name: str) -> bool:
        """Flush without blocking the caller, and return whether that was possible."""
        if self._calls and not self._busy.locked():
            try:
                threading.Thread(target=self.flush, name=name, daemon=True).start()
            except RuntimeError:  # the system has no more threads
                return False
        return True
