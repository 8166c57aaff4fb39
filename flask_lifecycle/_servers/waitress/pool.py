"""waitress' pools of workers: their load, a ping that goes through them, and dedicated workers for probes.

The *ping* is a task that does nothing. It goes to the head of the queue, and not through ``add_task``, which puts it
behind the requests, waits for the pool's lock without a limit, and holds that lock while it warns of the queue's depth
in a log that may block. From the worker the ping goes to the loop by its trigger. ``pull_trigger`` would wait for a
lock, which a thunk that hangs in the loop holds, and for room in a pipe that is no longer read. So we wait a second at
most for the lock, and write a byte only if there is room. A closed trigger is not used: its number may belong to
another descriptor by now.

*Dedicated workers*: each probe has its own task dispatcher with one thread, made when it is first asked. So a probe
never queues behind requests, and liveness never queues behind a readiness probe that waits for a hung check.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from waitress.task import ThreadedTaskDispatcher

from ..._core.inflight import Load
from ..adapter import LOCK_PATIENCE, put_ahead

NEXT_PATIENCE = 1.0  # seconds for the next lock, in the worker that forwards a ping
# Outside the tree of loggers, so that no handler gets its records.
_UNHEARD = logging.Logger("waitress.queue", logging.CRITICAL)


def pool_load(pools: Iterable[Any]) -> Load:
    """The load of waitress' task dispatchers."""
    now = time.time()
    threads = wanted = 0
    oldest = 0.0
    for pool in pools:
        waiting = [task for task in pool.queue.copy() if not isinstance(task, Ping)]
        threads += len(pool.threads) - pool.stop_count
        wanted += pool.active_count + len(waiting)  # a thread that is on its way to a queued task is busy already
        oldest = max([oldest, *(now - channel.last_activity for channel in waiting)])
    return Load(max(0, wanted - threads), threads, min(threads, wanted), oldest)


def distinct(things: Iterable[Any]) -> list[Any]:
    """Without repetitions, also for objects that cannot be hashed."""
    return list({id(thing): thing for thing in things}.values())


class Ping:
    """A task for waitress that only reports that a worker has run it."""

    def __init__(self, done: Callable[[], object]) -> None:
        self.service = done

    def cancel(self) -> None:
        """The pool is being emptied; there is no answer."""


def send_ahead(pool: Any, ping: Ping, patience: float = LOCK_PATIENCE) -> bool:
    """Put a ping at the head of the pool's queue; ``False`` if its lock was not free in time."""
    return put_ahead(pool.queue, pool.queue_cv, ping, patience)


def send_through(servers: Sequence[Any], done: Callable[[], None]) -> bool | None:
    """Send a ping through the pools of servers and then through their loops; ``None`` if a pool cannot be entered."""
    if not servers:
        return None
    step: Callable[[], object] = done
    for server in servers:
        step = functools.partial(through_loop, server.trigger, step)
    first, *others = distinct(server.task_dispatcher for server in servers)
    for pool in others:
        step = functools.partial(send_ahead, pool, Ping(step), NEXT_PATIENCE)
    return send_ahead(first, Ping(step))


def through_loop(trigger: Any, done: Callable[[], object]) -> bool:
    """Have the loop of a trigger call a function; ``False`` if that would block the calling thread."""
    if trigger._closed or not trigger.lock.acquire(timeout=NEXT_PATIENCE):
        return False
    try:
        trigger.thunks.append(done)
    finally:
        trigger.lock.release()
    wake(trigger)
    return True


def wake(trigger: Any) -> None:
    """Wake a trigger's loop. If its pipe is full, the loop wakes anyway. Does not block."""
    if trigger._closed:
        return
    poll = select.poll()
    poll.register(trigger.trigger, select.POLLOUT)
    if poll.poll(0):
        with contextlib.suppress(OSError):
            os.write(trigger.trigger, b"x")


class ProbeWorkers:
    """The dedicated workers of probes, by the names of the probes."""

    def __init__(self) -> None:
        self.name_of: Callable[[str], str | None] = lambda path: None  # names the probe that a request path asks for
        self.pools: dict[str, ThreadedTaskDispatcher] = {}
        self._lock = threading.Lock()  # guards the making of a pool

    def chooser(self, server: Any) -> Callable[[Any], None]:
        """Return a function that takes the place of the server's ``add_task``.

        The loop or a worker calls it for each request, with the channel's requests_lock held, so it takes no lock and
        makes no system call.
        """
        add_work = server.task_dispatcher.add_task
        prefix = server.adj.url_prefix

        def add_task(channel: Any) -> None:
            request = channel.requests[0]
            # Only what the middleware takes for a probe. A request that could not be parsed has no path.
            name = None if request.error else self.name_of(request.path.removeprefix(prefix))
            if name is None or request.command not in ("GET", "HEAD"):
                add_work(channel)
            else:
                self._pool(name).add_task(channel)

        return add_task

    def _pool(self, name: str) -> ThreadedTaskDispatcher:
        with self._lock:
            if name not in self.pools:
                pool = self.pools[name] = ThreadedTaskDispatcher()
                # Its warnings would look like those of the request queue: a new thread counts as busy until it waits.
                pool.queue_logger = _UNHEARD
                pool.set_thread_count(1)
            return self.pools[name]
