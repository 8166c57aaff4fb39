"""What gunicorn's master and its workers share: one page of memory and one pipe, made before the first fork."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import struct
import tempfile
import time
from collections.abc import Sequence

from .._config import Settings
from .._state import logger

# What the byte of a worker says; 0 that it loads the application. ABSENT: none of its applications takes part.
# GONE: the master has seen its end.
SERVING, DELAYING, DELAYED, CLEAN, UNCLEAN, ABSENT, GONE = range(1, 8)

_WORKERS = 1 << 16  # one that is younger by so many has the same bytes: by then the other is gone
_LIMITS = struct.Struct("=ddd")
_MOMENT = struct.Struct("=d")
_AGES = struct.Struct("=QQ")
_AGES_AT = _LIMITS.size + _MOMENT.size
_ONCE_AT = _AGES_AT + _AGES.size
_WANTED, _DONE = 1, 2
_HEAD = _ONCE_AT + 1
_LOOK = 0.01


class Board:
    """One byte in a pipe that nobody reads, which tells all that they stop, and some bytes for each worker."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _HEAD + 2 * _WORKERS)
        self._read, self._write = os.pipe()
        with tempfile.TemporaryFile() as file:
            self._claim = os.dup(file.fileno())

    def tell(self) -> None:
        """All workers stop; twice is harmless. For the master's signal handler."""
        if not self.told_at:
            _MOMENT.pack_into(self._page, _LIMITS.size, time.monotonic())
            os.write(self._write, b"x")

    @property
    def told_at(self) -> float:
        """When all workers were told to stop, on the clock that all processes share; 0 if they were not."""
        moment: float = _MOMENT.unpack_from(self._page, _LIMITS.size)[0]
        return moment

    def wait(self, seconds: float) -> bool:
        """Wait until all workers stop; say whether they do."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def fileno(self) -> int:
        """What is readable as soon as all workers stop."""
        return self._read

    @property
    def limits(self) -> tuple[float, float, float]:
        """How long a worker delays at most, how long it drains, and when it is gone, in seconds from the signal on.

        All 0 while no worker has ever taken part.
        """
        delay, drain, grace = _LIMITS.unpack_from(self._page)
        return delay, drain, grace

    def publish(self, settings: Sequence[Settings], for_group: bool = False) -> None:
        """Write down how long a worker takes. All workers have the same applications, so they all write the same.

        :param for_group: whether one of them has to act for all in the end.
        """
        if for_group and not self._page[_ONCE_AT]:
            self._page[_ONCE_AT] = _WANTED
        delay = max(each.longest_delay for each in settings)
        grace = min(each.grace_period for each in settings)
        reserve = max(each.hook_reserve for each in settings)
        _LIMITS.pack_into(self._page, 0, delay, max(0.0, grace - reserve), grace)

    def get(self, age: int) -> int:
        """What the byte of a worker says."""
        return self._page[self._place(age)]

    def set(self, age: int, word: int) -> None:
        """Write the byte of a worker."""
        self._page[self._place(age)] = word

    def dismiss(self, age: int) -> None:
        """The worker is to leave."""
        self._page[self._place(age) + _WORKERS] = 1

    def dismissed(self, age: int) -> bool:
        """Whether the worker is to leave."""
        return bool(self._page[self._place(age) + _WORKERS])

    def clear(self, age: int) -> None:
        """A new worker has this number."""
        self._page[self._place(age)] = self._page[self._place(age) + _WORKERS] = 0

    def stops(self, ages: Sequence[int]) -> None:
        """These workers are dismissed now, and are all that there are."""
        if ages:
            _AGES.pack_into(self._page, _AGES_AT, min(ages), max(ages))

    def last(self, age: int, seconds: float) -> bool:
        """Wait until all workers but this one have gone, if they all stop and no other waits already; say whether it is
        this one that acts for all. See the head of ``gunicorn.py``.
        """
        oldest, newest = _AGES.unpack_from(self._page, _AGES_AT)
        try:
            # The kernel lets go of it when a process ends, however it does.
            fcntl.lockf(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        if not newest:
            fcntl.lockf(self._claim, fcntl.LOCK_UN)
            return False
        until = time.monotonic() + seconds
        others = [other for other in range(oldest, newest + 1) if other != age]
        while any(self.get(other) != GONE for other in others):
            if time.monotonic() >= until:
                logger.warning(
                    "workers are left, and the on_shutdown functions of the process group run all the same",
                    extra={"lifecycle_workers": sum(self.get(other) != GONE for other in others)},
                )
                break
            time.sleep(_LOOK)
        return self.claim()

    def claim(self) -> bool:
        """Whether somebody has to act for all, and nobody has; who asks does. For who holds the lock, or is alone."""
        wanted = self._page[_ONCE_AT] == _WANTED
        if wanted:
            self._page[_ONCE_AT] = _DONE
        return wanted

    @staticmethod
    def _place(age: int) -> int:
        return _HEAD + age % _WORKERS
