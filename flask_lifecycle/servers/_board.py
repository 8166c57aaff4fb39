"""What gunicorn's master and its workers share: one page of memory and one pipe, made before the first fork."""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Sequence

from .._config import Settings

# What the byte of a worker says; 0 that it loads the application. ABSENT: none of its applications takes part.
SERVING, DELAYING, DELAYED, CLEAN, UNCLEAN, ABSENT = 1, 2, 3, 4, 5, 6

_WORKERS = 1 << 16  # one that is younger by so many has the same bytes: by then the other is gone
_LIMITS = struct.Struct("=ddd")
_MOMENT = struct.Struct("=d")
_HEAD = _LIMITS.size + _MOMENT.size


class Board:
    """One byte in a pipe that nobody reads, which tells all that they stop, and some bytes for each worker."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _HEAD + 2 * _WORKERS)
        self._read, self._write = os.pipe()

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

    def publish(self, settings: Sequence[Settings]) -> None:
        """Write down how long a worker takes. All workers have the same applications, so they all write the same."""
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

    @staticmethod
    def _place(age: int) -> int:
        return _HEAD + age % _WORKERS
