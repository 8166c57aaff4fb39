"""The set of entries under way (requests or work items), without a lock, and the wait until it is empty.

Entering is ``active[entry] = None`` and leaving is ``dict.pop``. Both change one key of a dict, which is atomic in
CPython, with the GIL and without it. Leaving is idempotent. Only the wait needs a lock, because it does not poll.
The waiter writes ``watched`` and then reads the dict; the leaver pops from the dict and then reads ``watched``. Both
interleavings work: if the pop came first, the waiter sees an empty dict and does not sleep; if the waiter's write came
first, the leaver sees it, takes the lock (so the waiter is in ``Condition.wait``, which releases the lock and sleeps in
one step) and notifies. Both cannot miss, because then each read would come before the other's write.

An entry may leave in the waiter's own thread, by a signal handler, or by a finalizer that the garbage collector calls.
The lock is reentrant, so this may happen between the waiter's read and its sleep, where the notification has no effect.
Therefore the waiter reads again every second.

After a fork the child's set is emptied and its lock renewed: the entries belong to threads that exist only in the
parent, and one of them may hold the lock.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from .fork import renew_in_children

# Seconds after which a waiter reads the dict again.
LOOK = 1.0


class Tally:
    """The entries under way. Any thread may call every method; only :meth:`wait_idle` blocks.

    :param clock: a monotonic clock in seconds, for the ages of the entries.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.active: dict[Any, None] = {}
        self.reset()
        _tallies.add(self)

    def reset(self) -> None:
        """Remove all entries, in a forked child."""
        self.active.clear()
        self.left = 0  # how many have left since count_leavers()
        self._idle = threading.Condition()  # held by waiters, and by leavers only while there is a waiter
        self.watched = 0

    def count_leavers(self) -> None:
        """Count leaving entries in ``left`` from now on. Called once, when the drain begins."""
        with self._idle:
            self.watched += 1

    def leave(self, entry: Any) -> None:
        """Remove an entry, unless it has left already."""
        there = self.active.pop(entry, self) is None
        if self.watched:
            self.left_one(there)

    def left_one(self, there: bool) -> None:
        """Count an entry that has left during the drain, and wake the waiters."""
        with self._idle:
            self.left += there
            if self.settled():
                self._idle.notify_all()

    def entries(self) -> list[Any]:
        """The entries under way now."""
        return list(self.active.copy())

    def __len__(self) -> int:
        return len(self.entries())

    def settled(self) -> bool:
        """Whether a drain has nothing to wait for."""
        return not self.active

    def wait_idle(self, timeout: float) -> bool:
        """Block until nothing is under way; ``False`` after the timeout."""
        until = time.monotonic() + timeout
        with self._idle:
            self.watched += 1
            try:
                while not self._idle.wait_for(self.settled, min(LOOK, until - time.monotonic())):
                    if time.monotonic() >= until:
                        return False
                return True
            finally:
                self.watched -= 1


_tallies: weakref.WeakSet[Tally] = weakref.WeakSet()


def _after_fork() -> None:
    for tally in list(_tallies):
        tally.reset()


renew_in_children(_after_fork)
