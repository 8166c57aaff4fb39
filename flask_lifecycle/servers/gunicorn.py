"""gunicorn, told by hooks of its configuration: its master closes the listener, its workers drain.

Theory of operation
-------------------

On SIGTERM gunicorn's master closes its listeners and sends SIGTERM to the workers, which stop accepting; what is in
the accept queue is reset, and nobody has been told that the instance leaves. Here the master waits before it does that.

*One byte tells all.* The master makes a pipe before it forks and writes one byte into it, which nobody ever reads:
the pipe is readable from then on, and so wakes whoever waits for it, in every worker at once, and in one that is
forked later. A worker begins its shutdown by it: readiness fails, answers tell their connections to close, the delay
runs.

*One page that all share* (:class:`Board`) has a byte for each worker, by the number that gunicorn calls its age:
whether it serves, still delays, no longer delays, has ended clean or not. So the master knows no settings, and a delay
that ends when it may ends when it has in every worker.

*The master* acts in its main loop, where gunicorn does, so that workers that die meanwhile are replaced as ever:

1. The handler of SIGTERM writes the byte and queues the signal as gunicorn's own does.
2. ``handle_term`` finds that nothing has been closed yet and starts a timer. A thread would not do: the master forks.
3. Each tick looks, and does not block: first until no worker delays; then it makes the listeners deaf
   (``_closing.py``, where that is permitted) and looks until the workers have accepted all that waits. Then it
   queues SIGTERM once more.
4. ``handle_term``, called again, does as gunicorn does: close, SIGTERM to the workers, wait, SIGKILL.

*A SIGTERM that does not come from the master* reaches a worker where all processes of a service get it at once
(systemd's ``KillMode=control-group``, a shell's process group). The master marks whom it dismisses; a worker that is
not marked waits a moment for the master's byte, and without it leaves alone.

A second SIGTERM meanwhile changes nothing, as under gunicorn; SIGINT and SIGQUIT stop quickly, as under gunicorn.

*A worker* leaves its main loop when gunicorn says so: by SIGTERM (stop, reload, one worker less), or after
``max_requests``. A worker cannot tell which it was, and need not: it never touches the listener. When the loop has
ended it holds the main thread in ``worker_exit`` until the drain is over and the hooks have run, so they run once for
each worker, whatever ended it. A worker that leaves alone has no delay: the others accept.

Listeners that others go on using (socket activation, ``fd://``, a second master after SIGUSR2, ``reuse_port``) are
neither filtered nor waited for. A Unix socket's path is removed when the delay is over, and its queue then served.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from .._config import Settings
from .._inflight import Load, RequestInfo
from .._parties import FULL
from .._sockets import has_input, socket_identity, unlink
from .._state import logger
from ._closing import CLOSING_BOUND, QUIET_PERIOD, deafen, handshakes

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# What the byte of a worker says; 0 that it has not begun, or has no application that takes part.
SERVING, DELAYING, DELAYED, CLEAN, UNCLEAN = 1, 2, 3, 4, 5

_WORKERS = 1 << 16  # one that is younger by so many has the same bytes: by then the other is gone
_LIMITS = struct.Struct("=dd")
_TICK = 0.005
# A worker that is busy in C code may hear late that the delay begins.
_LATE = 1.0


class Board:
    """What master and workers share; made by the master before it forks."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _LIMITS.size + 2 * _WORKERS)
        self._read, self._write = os.pipe()
        self._told = False

    def tell(self) -> None:
        """All workers stop: for the master's signal handler."""
        if not self._told:
            self._told = True
            os.write(self._write, b"x")

    @property
    def told(self) -> bool:
        """Whether all workers stop."""
        return self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        """Wait until all workers stop; say whether they do."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def fileno(self) -> int:
        """What is readable as soon as all workers stop."""
        return self._read

    @property
    def limits(self) -> tuple[float, float]:
        """For how long a worker delays at most, and for how long it drains, both from the signal on, in seconds."""
        delay, drain = _LIMITS.unpack_from(self._page)
        return delay, drain

    def publish(self, settings: Sequence[Settings]) -> None:
        """Write down how long a worker takes. All workers have the same applications, so they all write the same."""
        delay = max(each.longest_delay for each in settings)
        grace = min(each.grace_period for each in settings)
        reserve = max(each.hook_reserve for each in settings)
        _LIMITS.pack_into(self._page, 0, delay, max(0.0, grace - reserve))

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
        return _LIMITS.size + age % _WORKERS


class Worker:
    """What the coordinator may ask of gunicorn in one of its workers; see :class:`flask_lifecycle._parties.Server`."""

    name = "gunicorn"
    ours = True
    means = "told by the hooks of its configuration"
    promise = FULL
    advice = ""

    def __init__(self, worker: Any, board: Board, in_flight: Callable[[], int]) -> None:
        self.closing = False  # whether answers tell their connections to close
        self.board = board
        self._worker = worker
        self._in_flight = in_flight
        self._leaving = threading.Event()  # gunicorn has been told to end its loop
        self._left = threading.Event()  # its loop has ended
        self._since = 0.0

    def announce(self) -> None:
        self.closing = True
        self.mark(DELAYING)

    def stop_accepting(self, timeout: float) -> None:
        """Say that the delay is over, and wait for the master, who then has the accept queue served."""
        self.mark(DELAYED)
        if not self.board.told:
            self.end_loop()  # the application stops by itself, and this worker alone
        self._leaving.wait(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Wait for the end of gunicorn's loop, which comes when no connection is left."""
        return self._left.wait(timeout)

    def unfinished(self) -> Sequence[RequestInfo]:
        """What a worker with threads has accepted and no application has been called for, while it leaves."""
        if self._left.is_set() or not self._leaving.is_set():
            return ()
        idle = len(getattr(self._worker, "keepalived_conns", ()))
        number = getattr(self._worker, "nr_conns", 0) - idle - self._in_flight()
        age = time.monotonic() - self._since
        return [RequestInfo("-", "-", age, stage="receiving")] * max(0, number)

    def load(self) -> Load | None:
        """Not known."""
        return None

    def canary(self, done: Callable[[], None]) -> bool | None:
        """Nothing: there is no way in."""
        return None

    def stop(self) -> None:
        """The shutdown is over; who still is in the loop is told to leave it."""
        if not self._left.is_set():
            self.end_loop()

    def end_loop(self) -> None:
        """Have gunicorn leave its loop: by the signal that its master would send, and so in the main thread."""
        self.board.dismiss(self._worker.age)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def leaving(self) -> None:
        """gunicorn has been told to end its loop; twice is harmless."""
        self._since = self._since or time.monotonic()
        self._leaving.set()

    def left(self) -> None:
        """gunicorn's loop has ended. The listeners are closed now and not when the hooks have run: who came would wait
        for nothing.
        """
        self.leaving()
        self._left.set()
        for sock in self._worker.sockets:
            sock.close()

    def mark(self, word: int) -> None:
        """Tell the master."""
        self.board.set(self._worker.age, word)


class Listener:
    """One listener of the master on its way to being closed. Nothing here blocks or logs: a signal handler calls it."""

    def __init__(self, listener: Any, now: float) -> None:
        self.listener = listener
        self.path: str | None = None
        self._sock = listener.sock
        self._began = self._busy = now
        self._settled = 0
        name = self._sock.getsockname()
        if self._sock.family == socket.AF_UNIX:
            self.method = "unix"
            if isinstance(name, str) and name:  # an abstract one has no path
                self.path = name
                unlink(name, socket_identity(name))
        else:
            self.method = deafen(self._sock) or "quiet period"

    def done(self, now: float) -> bool:
        """Whether nothing waits to be accepted, and nothing more will."""
        if has_input(self._sock):
            self._busy, self._settled = now, 0
            return False
        if self.method == "unix":
            return True
        if self.method == "quiet period":
            return now - self._busy >= QUIET_PERIOD or now - self._began >= CLOSING_BOUND
        # A SYN that passed on another processor just before the listener was deaf shows in the table a moment later:
        # look again, and believe the second look.
        under_way = handshakes(self._sock)
        self._settled += not under_way
        return self._settled > 1 or now - self._began >= CLOSING_BOUND


class Master:
    """gunicorn's master, told to wait before it stops. For its main thread alone."""

    def __init__(self, server: Any, board: Board) -> None:
        self._server = server
        self._board = board
        self._began = 0.0
        self._ticking = self._finished = False
        self._listeners: list[Listener] | None = None
        self._stopped: list[int] = []  # the ages of the workers that were to end clean
        self._halt = server.handle_term
        self._stop = server.stop
        self._kill = server.kill_worker

    def install(self) -> None:
        """Take over what SIGTERM does."""
        self._server.handle_term = self.term
        self._server.stop = self.stop
        self._server.kill_worker = self.kill_worker
        signal.signal(signal.SIGTERM, self._signalled)
        signal.signal(signal.SIGALRM, self._tick)

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        self._began = self._began or time.monotonic()
        self._board.tell()
        self._server.signal(signum, frame)

    def term(self) -> None:
        """What gunicorn's main loop does on SIGTERM: first begin, in the end stop."""
        # Not whether a worker takes part now: all of them may have been replaced this moment.
        if self._finished or not self._board.limits[1]:
            self._log()
            self._halt()
        elif not self._ticking:
            self._ticking = True
            signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)

    def kill_worker(self, pid: int, signum: int) -> None:
        """What gunicorn does to end a worker: it is to know that this comes from here."""
        worker = self._server.WORKERS.get(pid)
        if worker is not None and signum == signal.SIGTERM:
            self._board.dismiss(worker.age)
        self._kill(pid, signum)

    def stop(self, graceful: bool = True) -> None:
        """What gunicorn does to stop, whyever; a path that is removed already is not to be removed again."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        gone = [each.listener for each in self._listeners or () if each.path is not None]
        self._server.LISTENERS = [each for each in self._server.LISTENERS if each not in gone]
        for listener in gone:
            listener.close()
        if graceful and self._finished:
            self._stopped = self._taking_part()
        self._stop(graceful)

    @property
    def exit_code(self) -> int:
        """1 if a worker has left something behind, or was killed."""
        return int(any(self._board.get(age) != CLEAN for age in self._stopped))

    def _taking_part(self) -> list[int]:
        return [worker.age for worker in self._server.WORKERS.values() if self._board.get(worker.age)]

    def _tick(self, _signum: int, _frame: FrameType | None) -> None:
        try:
            done = self._step(time.monotonic())
        except Exception:  # it would end the master's loop; gunicorn's own stop is what is left
            done = True
        if done and not self._finished:
            self._finished = True
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            self._server.signal(signal.SIGTERM, None)

    def _step(self, now: float) -> bool:
        delay, drain = self._board.limits
        if self._listeners is None:
            delaying = any(self._board.get(age) in (SERVING, DELAYING) for age in self._taking_part())
            if delaying and now - self._began < max(delay, drain) + _LATE:
                return False
            self._listeners = [Listener(each, now) for each in self._own_listeners()]
        done = [each.done(now) for each in self._listeners]  # each is to look
        return all(done) or now - self._began >= drain

    def _own_listeners(self) -> list[Any]:
        """The listeners that nobody else goes on using."""
        server = self._server
        given = server.systemd or any(isinstance(address, int) for address in server.cfg.address)
        return [] if given or server.reexec_pid or server.master_pid else list(server.LISTENERS)

    def _log(self) -> None:
        for each in self._listeners or ():
            # To gunicorn's log: that of the application is set up in the workers.
            self._server.log.info("listener closed (%s)", each.method)


def closing_answers(app: WSGIApplication, worker: Worker) -> WSGIApplication:
    """The application, whose answers tell their connections to close once the shutdown has begun.

    By gunicorn's own response, because it drops the header of an application.
    """

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(*arguments: Any) -> Any:
            if worker.closing:
                force_close = getattr(getattr(start_response, "__self__", None), "force_close", None)
                if force_close is not None:  # HTTP/2 has none
                    force_close()
            return start_response(*arguments)

        return app(environ, start)

    return application


def warn_of_timeout(graceful_timeout: float, settings: Sequence[Settings]) -> None:
    """Say what ``graceful_timeout`` is to be, if gunicorn would kill a worker before its grace period is over.

    It begins when the delay is over and the accept queue is served.
    """
    needed = max(
        each.grace_period - (0.0 if isinstance(each.shutdown_delay, str) else each.shutdown_delay) for each in settings
    )
    if graceful_timeout < needed:
        logger.warning(
            "gunicorn's graceful_timeout is %g s, and a worker may need %g s after the delay; set 'graceful_timeout' to"
            " %.0f, or a shorter 'LIFECYCLE_GRACE_PERIOD'.",
            graceful_timeout, needed, -(-needed // 1), extra={"lifecycle_graceful_timeout": needed},
        )  # fmt: skip
