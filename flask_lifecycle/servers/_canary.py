"""The canary: a task that does nothing, sent through waitress to see whether it gets on.

It is put ahead of the pool's queue and not through ``add_task``, which would put it behind the work, wait for the
pool's lock for as long as it takes, and, with that lock held, warn of the queue's depth in a log that may block.

From the worker it goes on to the loop. Our own has a queue and a pipe that never block. A loop that somebody else runs
has its trigger, and ``pull_trigger`` would wait for a lock (a thunk that hangs in the loop holds it), and for room in a
pipe that nobody empties any more: so the lock is given up after a second, and a byte is written only if there is room.
A trigger that is closed keeps its number, which may be somebody else's by now: it is left alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
from collections.abc import Callable, Sequence
from typing import Any

from ._pools import distinct

# With locks that are held for a few instructions: a probe's, and that of a worker which takes a canary further.
_PATIENCE = 0.01
_NEXT_PATIENCE = 1.0


class Canary:
    """A task for waitress that does nothing but say that a worker has come to it."""

    lifecycle_canary = True  # so that it is not taken for work

    def __init__(self, done: Callable[[], object]) -> None:
        self.service = done

    def cancel(self) -> None:
        """The pool is being emptied; there is no answer."""


def send_ahead(pool: Any, canary: Canary, patience: float = _PATIENCE) -> bool:
    """Put a canary ahead of all that waits for a worker; ``False`` if the pool's lock was not to be had."""
    if not pool.lock.acquire(timeout=patience):
        return False
    try:
        pool.queue.appendleft(canary)
        pool.queue_cv.notify()
    finally:
        pool.lock.release()
    return True


def send_through(servers: Sequence[Any], done: Callable[[], None]) -> bool | None:
    """Send one through the pools of servers and then through their loops; ``None`` if there is no way in."""
    if not servers or not all(map(is_known, servers)):
        return None
    step: Callable[[], object] = done
    for server in servers:
        step = functools.partial(through_loop, server.trigger, step)
    first, *others = distinct(server.task_dispatcher for server in servers)
    for pool in others:
        step = functools.partial(send_ahead, pool, Canary(step), _NEXT_PATIENCE)
    return send_ahead(first, Canary(step))


def is_known(server: Any) -> bool:
    """Whether the pool and the trigger of a server are as we know them."""
    parts = {server.task_dispatcher: ("lock", "queue", "queue_cv"), server.trigger: ("lock", "thunks", "_closed")}
    return all(hasattr(part, name) for part, names in parts.items() for name in names)


def through_loop(trigger: Any, done: Callable[[], object]) -> None:
    """Have the loop of a trigger call a function, unless that would hold up the worker that asks for it."""
    if trigger._closed or not trigger.lock.acquire(timeout=_NEXT_PATIENCE):
        return
    try:
        trigger.thunks.append(done)
    finally:
        trigger.lock.release()
    poll = select.poll()
    poll.register(trigger.trigger, select.POLLOUT)
    if poll.poll(0):
        with contextlib.suppress(OSError):
            os.write(trigger.trigger, b"x")
