"""What gunicorn's master and its workers share, made before the first fork."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import tempfile
import time
from collections.abc import Sequence

from ..._config import Settings
from ..._core.log import logger

# The state of a worker; 0 while it loads the application. ABSENT: the extension is in none of its applications. GONE:
# the master has seen its end.
SERVING, DELAYING, DELAYED, CLEAN, UNCLEAN, ABSENT, GONE = range(1, 8)

_WORKERS = 1 << 16  # a worker that is younger by this number has the same bytes: by then the other has gone
_WANTED, _DONE = 1, 2
_TICK = 0.01


class _Page(ctypes.Structure):
    _fields_ = (
        ("delay", ctypes.c_double),
        ("drain", ctypes.c_double),
        ("grace", ctypes.c_double),
        ("stop_requested", ctypes.c_double),
        ("refusing_since", ctypes.c_double),
        ("oldest", ctypes.c_uint64),
        ("newest", ctypes.c_uint64),
        ("group", ctypes.c_uint8),
        ("states", ctypes.c_uint8 * _WORKERS),
        ("dismissed", ctypes.c_uint8 * _WORKERS),
    )


class SharedMemory:
    """A page of memory, and a pipe that wakes all workers when the master stops. Workers are named by their ages."""

    def __init__(self) -> None:
        self._page = _Page.from_buffer(mmap.mmap(-1, ctypes.sizeof(_Page)))
        self._read, self._write = os.pipe()
        with tempfile.TemporaryFile() as file:
            self._lock = os.dup(file.fileno())

    # -- the shutdown -------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Stop all workers. Idempotent. For the master's signal handler."""
        if not self.stop_requested:
            self._page.stop_requested = time.monotonic()
            os.write(self._write, b"x")  # never read, so the pipe stays readable, for workers that come later as well

    @property
    def stop_requested(self) -> float:
        """When all workers were asked to stop, on the clock that all processes share; 0 if they were not."""
        return float(self._page.stop_requested)

    @property
    def refusing_since(self) -> float:
        """Since when the kernel has refused new connections for the master; 0 if it does not."""
        return float(self._page.refusing_since)

    @refusing_since.setter
    def refusing_since(self, now: float) -> None:
        self._page.refusing_since = now

    def wait_for_stop(self, seconds: float) -> bool:
        """Wait until all workers are to stop; say whether they are."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def fileno(self) -> int:
        """What is readable as soon as all workers are to stop."""
        return self._read

    @property
    def limits(self) -> tuple[float, float, float]:
        """Seconds from the signal on: the longest delay, the end of the drain, the grace period.

        All are 0 before a worker has loaded an application.
        """
        return self._page.delay, self._page.drain, self._page.grace

    def publish(self, settings: Sequence[Settings], group_hooks: bool = False) -> None:
        """Write the limits. All workers have the same applications, so they all write the same.

        :param group_hooks: whether one worker has to run the hooks of the process group in the end.
        """
        if group_hooks and not self._page.group:
            self._page.group = _WANTED
        self._page.delay = max(each.longest_delay for each in settings)
        self._page.grace = min(each.grace_period for each in settings)
        self._page.drain = max(0.0, self._page.grace - max(each.hook_reserve for each in settings))

    # -- one worker -------------------------------------------------------------------------------------------------

    def state(self, age: int) -> int:
        return int(self._page.states[age % _WORKERS])

    def set_state(self, age: int, state: int) -> None:
        self._page.states[age % _WORKERS] = state

    def dismiss(self, age: int) -> None:
        """Record that the next SIGTERM of a worker is the master's."""
        self._page.dismissed[age % _WORKERS] = 1

    def is_dismissed(self, age: int) -> bool:
        return bool(self._page.dismissed[age % _WORKERS])

    def clear(self, age: int) -> None:
        """Begin anew, for a worker that is about to be forked."""
        self._page.states[age % _WORKERS] = self._page.dismissed[age % _WORKERS] = 0

    # -- the hooks of the process group -----------------------------------------------------------------------------

    def set_last_workers(self, ages: Sequence[int]) -> None:
        """Record that all workers stop now, and which there are."""
        if ages:
            self._page.oldest, self._page.newest = min(ages), max(ages)

    def is_last(self, age: int, seconds: float) -> bool:
        """Wait until all other workers have gone, unless another one waits already or the master does not stop.

        Return whether this worker has to run the hooks of the process group.
        """
        try:
            # The kernel releases it when a process ends, however it does.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if not self._page.newest:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
            return False
        until = time.monotonic() + seconds
        others = {*range(self._page.oldest, self._page.newest + 1)} - {age}
        while left := [other for other in others if self.state(other) != GONE]:
            if time.monotonic() >= until:
                logger.warning(
                    "%d other workers have not ended; the on_shutdown functions of the process group run now",
                    len(left), extra={"lifecycle_workers": len(left)},
                )  # fmt: skip
                break
            time.sleep(_TICK)
        return self.claim_group_hooks()

    def claim_group_hooks(self) -> bool:
        """Whether the hooks of the process group are still to be run; the caller then runs them.

        For the worker that has the lock, or for the master when no worker is left.
        """
        wanted: bool = self._page.group == _WANTED
        if wanted:
            self._page.group = _DONE
        return wanted
