"""gunicorn's master, which waits for its workers' delays and for the accept queue before it stops them.

It waits in gunicorn's main loop, so gunicorn still replaces workers that die meanwhile. It uses no thread, because the
master forks.

1. The handler of SIGTERM wakes the workers (``shared.py``), starts a timer, and queues the signal as gunicorn's own
   handler does. The main loop then ignores it.
2. Each tick checks, without blocking. When no worker is in its delay, the listeners refuse new connections
   (``_servers/listener.py``, if that is permitted). When the workers have accepted all connections in the queue, the
   tick queues SIGTERM once more. Ticks continue while the main loop waits for the old workers of a reload.
3. ``handle_term``, called again, stops as gunicorn does: close, SIGTERM to the workers, wait, SIGKILL.

Before the first worker has loaded the application there is no delay, and the wait for the queue lasts as long as
gunicorn's own timeout.

Without our hooks, a worker that cannot start (its import or its start-up fails) makes gunicorn stop at once. Here
gunicorn stops in the way above, as long as other workers serve, and with gunicorn's exit code.

A second SIGTERM changes nothing, as under gunicorn; SIGINT and SIGQUIT stop quickly, as under gunicorn.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

from gunicorn.errors import HaltServer

from ..._core.deadline import Deadline
from ..._core.server import Peers
from ..listener import ClosingListener, Listener
from .shared import ABSENT, CLEAN, DELAYED, DELAYING, GONE, SERVING, SharedMemory

TICK = 0.005
_AGAIN = 1.0  # gunicorn 23 drops a signal if its queue has five already
_PROMPT = 0.3  # seconds in which we check for exited workers more often than gunicorn, which does every 0.1 s
_LATE = 1.0  # a worker that is busy in C code may begin its delay late
# The classes of workers that our hooks know. Others have their own loop, such as gunicorn's ``asgi`` and uvicorn's.
_KNOWN = (
    "gunicorn.workers.sync.SyncWorker",
    "gunicorn.workers.gthread.ThreadWorker",
    "gunicorn.workers.base_async.AsyncWorker",
)


def is_known(worker_class: type) -> bool:
    """Whether our hooks support a class of workers, or one of its base classes."""
    return any(f"{each.__module__}.{each.__qualname__}" in _KNOWN for each in worker_class.__mro__)


class Master(Peers):
    """Replaces methods of gunicorn's arbiter. Used by its main thread only.

    It is the peer of an application that it has loaded before the fork, and that ends with it.
    """

    def __init__(self, server: Any, shared: SharedMemory) -> None:
        self._server = server
        self._shared = shared
        self._page = shared.page
        self._pid = os.getpid()
        self._finished = self._stopping = self._dismissed = False
        self._failure: Exception | None = None  # the exit code for which gunicorn would stop at once
        self._closing: dict[ClosingListener, Any] | None = None  # with gunicorn's own objects
        self._stopped: list[int] = []  # the ages of the workers that were to end clean
        self._ended: dict[int, int] = {}  # their last states, by their ages
        self._halt = server.handle_term
        self._stop = server.stop
        self._kill = server.kill_worker
        self._reap = server.reap_workers

    def install(self) -> None:
        """Take over what SIGTERM does."""
        self._server.handle_term = self.term
        self._server.stop = self.stop
        self._server.kill_worker = self.kill_worker
        self._server.reap_workers = self.reap_workers
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGALRM, self._tick)

    def is_last(self, deadline: Deadline) -> bool:
        return self._shared.claim_group_hooks()

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A child that has just been forked, and installs its own handlers in a moment: gunicorn would forget the
            # signal, and ours would stop all workers. It has no request yet.
            os._exit(0)
        self._begin()
        self._server.signal(signum, frame)

    def _begin(self) -> None:
        """Stop the workers, and look from now on whether all is done; also while a reload holds the main loop."""
        if not self._page.stop_requested:
            self._shared.request_stop()
            signal.setitimer(signal.ITIMER_REAL, TICK)

    def term(self) -> None:
        """What gunicorn's main loop does on SIGTERM: first begin, in the end stop."""
        self._begin()  # it may have arrived before the hooks
        if self._finished:
            for each in self._closing or ():  # to gunicorn's log, because the workers set up the application's
                self._server.log.info("listener closed (%s)", each.method)
            if self._failure is not None:
                raise self._failure
            self._halt()

    def kill_worker(self, pid: int, signum: int) -> None:
        """What gunicorn does to end a worker, which has to know that the signal comes from here."""
        if self._dismissed and signum == signal.SIGTERM:
            return  # one is enough: a second would kill a worker whose interpreter is ending
        worker = self._server.WORKERS.get(pid)
        if worker is not None and signum == signal.SIGTERM:
            self._shared.dismiss(worker.age)
        self._kill(pid, signum)
        if worker is not None and pid not in self._server.WORKERS:
            self._note_end(worker.age)

    def reap_workers(self) -> None:
        """What gunicorn does when a worker has ended. If it could not start, all stop, here in the usual way."""
        before = self._states()
        try:
            self._reap()
        except HaltServer as failure:
            if not self._page.stop_requested and not self._stopping:
                self._failure = failure
                self._begin()
        for age in before.keys() - self._states():
            self._note_end(age)

    def _note_end(self, age: int) -> None:
        self._ended[age] = self._shared.state(age)
        self._shared.set_state(age, GONE)

    def stop(self, graceful: bool = True) -> None:
        """What gunicorn does to stop, for whatever reason. It must not remove the path of a Unix socket again."""
        self._stopping = True
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        gone = list((self._closing or {}).values())
        self._server.LISTENERS = [each for each in self._server.LISTENERS if each not in gone]
        for listener in gone:
            listener.close()
        self._shared.set_last_workers(list(self._states()))
        if graceful and self._finished:
            self._stopped = [age for age, state in self._states().items() if state not in (0, ABSENT)]
            if gone:  # else they are open until gunicorn closes them, and that it does first
                self._await_prompt_ends()
            left = max(1, math.ceil(self.left))
            if self._page.grace and self._server.cfg.graceful_timeout > left:
                self._server.cfg.set("graceful_timeout", left)  # a worker that hangs while it loads has no watchdog yet
        self._stop(graceful)

    def _await_prompt_ends(self) -> None:
        """Dismiss the workers, and look closely for a moment; gunicorn waits for those that take longer."""
        self._server.kill_workers(signal.SIGTERM)
        self._dismissed = True
        until = time.monotonic() + _PROMPT
        while self._server.WORKERS and time.monotonic() < until:
            time.sleep(TICK)
            self._server.reap_workers()

    @property
    def left(self) -> float:
        """Seconds left of the grace period."""
        grace, began = self._page.grace, self._page.stop_requested
        return float(grace - (time.monotonic() - began if began else 0.0))

    @property
    def exit_code(self) -> int:
        """1 if a worker has abandoned something, or was killed; 0 if gunicorn has an exit code of its own."""
        states = [self._ended.get(age, self._shared.state(age)) for age in self._stopped]
        return int(self._failure is None and any(state != CLEAN for state in states))

    def _states(self) -> dict[int, int]:
        return {worker.age: self._shared.state(worker.age) for worker in self._server.WORKERS.values()}

    def _tick(self, _signum: int, _frame: FrameType | None) -> None:
        try:
            done = self._finished or self._step(time.monotonic())
        except Exception:  # it would end the master's loop; gunicorn's own stop is what is left
            done = True
        if done:
            self._finished = True
            self._server.signal(signal.SIGTERM, None)
        if not self._stopping:
            # Not by an interval: a tick that takes longer than that, on a busy machine, would be interrupted by the
            # next one, and that by the next.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN if done else TICK)

    def _step(self, now: float) -> bool:
        page = self._page
        # Whether a worker takes part now is not the question: all of them may have been replaced this moment.
        states = self._states().values()
        if ABSENT in states or self._cannot_serve(states):
            return True
        if self._closing is None:
            delaying = SERVING in states or DELAYING in states
            if delaying and now - page.stop_requested < max(page.delay, page.drain) + _LATE:
                return False
            self._closing = {ClosingListener(Listener(each.sock), now): each for each in self._own_listeners()}
            if all(each.method != "quiet period" for each in self._closing):
                page.refusing_since = now
        done = [each.done(now) for each in self._closing]  # each is to look
        # Before a worker has loaded the application nothing but gunicorn's own patience is known.
        return all(done) or now - page.stop_requested >= (page.drain or self._server.cfg.graceful_timeout)

    def _cannot_serve(self, states: Iterable[int]) -> bool:
        """Whether workers cannot start: then those that replace them will not serve what waits either."""
        return self._failure is not None and not any(state in (SERVING, DELAYING, DELAYED) for state in states)

    def _own_listeners(self) -> list[Any]:
        """The listeners that no other process goes on using."""
        server = self._server
        given = server.systemd or any(isinstance(address, int) for address in server.cfg.address)
        # gunicorn notices within a second that a master before this one has gone.
        others = server.reexec_pid or (server.master_pid and server.master_pid == os.getppid())
        return [] if given or others else list(server.LISTENERS)
