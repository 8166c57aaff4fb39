"""What gunicorn's master and its workers share, made before the first fork."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from ..._config import Settings
from ..._core.log import logger

# The state of a worker; 0 while it loads the application. ABSENT: the extension is in none of its applications. GONE:
# the master has seen its end.
SERVING, DELAYING, DELAYED, CLEAN, UNCLEAN, ABSENT, GONE = range(1, 8)

_WORKERS = 1 << 16  # a worker that is younger by this number has the same bytes: by then the other has gone
_WANTED, _DONE = 1, 2
_TICK = 0.01


class _Page(ctypes.Structure):
    """Numbers that every process may read at any time. The clock, of ``time.monotonic``, is the same in all of them."""

    _fields_ = (
        # Seconds from the signal on: the longest delay, the end of the drain, the grace period. All are 0 before a
        # worker has loaded an application.
        ("delay", ctypes.c_double),
        ("drain", ctypes.c_double),
        ("grace", ctypes.c_double),
        ("stop_requested", ctypes.c_double),  # when all workers were asked to stop; 0 if they were not
        ("refusing_since", ctypes.c_double),  # when the kernel began to refuse connections for the master; 0 if not
        ("oldest", ctypes.c_uint64),  # of the workers that there are when all stop
        ("newest", ctypes.c_uint64),
        ("group", ctypes.c_uint8),  # whether the hooks of the process group are to run: _WANTED, _DONE
        ("states", ctypes.c_uint8 * _WORKERS),
        ("dismissed", ctypes.c_uint8 * _WORKERS),
    )


class SharedMemory:
    """A page of memory, and a pipe that wakes all workers when the master stops. Workers are named by their ages."""

    def __init__(self) -> None:
        self.page: Any = _Page.from_buffer(mmap.mmap(-1, ctypes.sizeof(_Page)))
        # Readable as soon as all workers are to stop, also for later workers: what is written is never read.
        self.stopping, self._write = os.pipe()
        with tempfile.TemporaryFile() as file:
            self._lock = os.dup(file.fileno())

    # -- the shutdown -------------------------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Stop all workers. Call it once; the master's signal handler may."""
        self.page.stop_requested = time.monotonic()
        os.write(self._write, b"x")

    def publish(self, settings: Sequence[Settings], group_hooks: bool = False) -> None:
        """Write the limits. All workers have the same applications, so they all write the same.

        :param group_hooks: whether one worker has to run the hooks of the process group in the end.
        """
        if group_hooks and not self.page.group:
            self.page.group = _WANTED
        self.page.delay = max(each.longest_delay for each in settings)
        self.page.grace = min(each.grace_period for each in settings)
        self.page.drain = max(0.0, self.page.grace - max(each.hook_reserve for each in settings))

    # -- one worker -------------------------------------------------------------------------------------------------

    def state(self, age: int) -> int:
        return int(self.page.states[age % _WORKERS])

    def set_state(self, age: int, state: int) -> None:
        self.page.states[age % _WORKERS] = state

    def dismiss(self, age: int) -> None:
        """Record that the next SIGTERM of a worker is the master's."""
        self.page.dismissed[age % _WORKERS] = 1

    def is_dismissed(self, age: int) -> bool:
        return bool(self.page.dismissed[age % _WORKERS])

    def clear(self, age: int) -> None:
        """Begin anew, for a worker that is about to be forked."""
        self.page.states[age % _WORKERS] = self.page.dismissed[age % _WORKERS] = 0

    # -- the hooks of the process group -----------------------------------------------------------------------------

    def set_last_workers(self, ages: Sequence[int]) -> None:
        """Record that all workers stop now, and which there are."""
        if ages:
            self.page.oldest, self.page.newest = min(ages), max(ages)

    def is_last(self, age: int, seconds: float) -> bool:
        """Wait until all other workers have gone, unless another one waits already or the master does not stop.

        Return whether this worker has to run the hooks of the process group.
        """
        try:
            # The kernel releases it when a process ends, however it does.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if not self.page.newest:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
            return False
        until = time.monotonic() + seconds
        others = {*range(self.page.oldest, self.page.newest + 1)} - {age}
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
        wanted: bool = self.page.group == _WANTED
        if wanted:
            self.page.group = _DONE
        return wanted
