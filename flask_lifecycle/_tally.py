"""What is under way, counted without a lock, and the wait until it is over.

Entering is ``active[entry] = None`` and leaving is ``dict.pop``: one key of a dict, which is atomic in CPython, with
the GIL and without it. Who leaves twice finds nothing the second time. The lock is there for the wait alone, which is a
wake-up and not polling. The waiter writes ``_watchers`` and then looks at the dict; the leaver pops from the dict and
then looks at ``_watchers``. Both interleavings end well: if the pop came first, the waiter sees an empty dict and does
not sleep; if the waiter's write came first, the leaver sees it, takes the lock (so the waiter is asleep in
``Condition.wait``, which lets go of the lock in the same step) and notifies. For both looks to miss, each would have to
come before the other's write.

One who leaves in the waiter's own thread (a finalizer that the garbage collector calls, a signal handler) gets the
lock, because it is that thread's already, and may come between the look and the sleep, where nobody hears it. Therefore
the waiter looks again each second.

During a drain it is counted as well how many have left; until then nobody pays for that.

After a fork the child's tally is emptied and its lock made anew: what is under way belongs to threads that exist only
in the parent, and one of them may have held the lock.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

# Seconds after which a waiter looks again, unasked.
_LOOK = 1.0


class Tally:
    """What is under way. Every method may be called from any thread; only :meth:`wait_idle` blocks.

    :param clock: seconds that never go back, for the ages of the entries.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.active: dict[Any, None] = {}
        self.reset()
        _tallies.add(self)

    def reset(self) -> None:
        """Forget everything: for a forked child, in which none of the threads exists that these entries are of."""
        self.active.clear()
        self.left = 0  # how many have left since count_leavers()
        self._idle = threading.Condition()  # held by waiters, and by leavers only while somebody watches
        self._watchers = 0

    def count_leavers(self) -> None:
        """From now on count in ``left`` what leaves. For the one who begins the drain, once."""
        with self._idle:
            self._watchers += 1

    def leave(self, entry: Any) -> None:
        """Count out an entry; one that is not there has left already."""
        there = self.active.pop(entry, self) is None
        if self._watchers:
            with self._idle:
                self.left += there
                if not self.active:
                    self._idle.notify_all()

    def __len__(self) -> int:
        return len(self.active)

    def wait_idle(self, timeout: float) -> bool:
        """Block until nothing is under way, at most ``timeout`` seconds; say whether that is so."""
        until = time.monotonic() + timeout
        with self._idle:
            self._watchers += 1
            try:
                while not self._idle.wait_for(lambda: not self.active, min(_LOOK, until - time.monotonic())):
                    if time.monotonic() >= until:
                        return False
                return True
            finally:
                self._watchers -= 1


_tallies: weakref.WeakSet[Tally] = weakref.WeakSet()


def after_fork() -> None:
    """Forget, in a forked child, what its parent has counted."""
    for tally in list(_tallies):
        tally.reset()


os.register_at_fork(after_in_child=after_fork)
