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

1. The handler of SIGTERM writes the byte, starts a timer, and queues the signal as gunicorn's own does. A thread would
   not do: the master forks. What the main loop does with the signal then is nothing.
2. Each tick looks, and does not block: first until no worker delays; then it makes the listeners deaf
   (``_closing.py``, where that is permitted) and looks until the workers have accepted all that waits. Then it
   queues SIGTERM once more. So it goes on while the main loop waits for the old workers of a reload.
3. ``handle_term``, called again, does as gunicorn does: close, SIGTERM to the workers, wait, SIGKILL. Each worker
   accepts once more what waits and closes its listeners before it answers that: where they are not deaf somebody may
   have come since the last tick.

Before the first worker has loaded the application nobody knows its settings, and there is nobody to notice that the
instance leaves: the listeners are deaf at once, and what waits in them is waited for as long as gunicorn would wait.

*A worker that cannot start* (its import or its start-up fails) makes gunicorn stop at once. Here it makes it stop in
this same way, as long as other workers serve, and with gunicorn's exit code.

*A worker that comes late*, because another has died or is replaced during the stop, has what is left of the delay and
of the grace period: the page tells when the signal came.

*A SIGTERM that does not come from the master* reaches a worker where all processes of a service get it at once
(systemd's ``KillMode=control-group``, a shell's process group). The master marks whom it dismisses; a worker that is
not marked waits a moment for the master's byte, and without it leaves alone. One that comes while a worker still loads
its application is looked at when it has.

A second SIGTERM meanwhile changes nothing, as under gunicorn; SIGINT and SIGQUIT stop quickly, as under gunicorn.

*A worker* leaves its main loop when gunicorn says so: by SIGTERM (stop, reload, one worker less), or after
``max_requests``. A worker cannot tell which it was, and need not: it never touches the listener. When the loop has
ended it holds the main thread in ``worker_exit`` until the drain is over and the hooks have run, so they run once for
each worker, whatever ended it. A worker that leaves alone has no delay: the others accept.

*What is to happen once for all workers* (``scope="process-group"``) is done by one of them, because without
``--preload`` the master does not have the functions, and no process that is made for it would be there in time. The
first whose own hooks have run takes a lock on a file that all share, and the others leave. It waits until the master
has seen the end of all others, and then acts. If it is killed while it waits, the kernel lets go of the lock, and
another one that ends later takes it. A byte on the page says that it has been done. Where that has not happened,
because the last worker was killed, the master does it with ``--preload``, and else says so and exits with 1. A worker
that leaves alone, to be replaced, does nothing of this: the master says when it stops all, and whom.

*A gevent worker* looks once a second whether it is to leave, and whether its connections have ended: a stop takes up
to two seconds more. It accepts until then, so it need not accept once more what waits. gunicorn waits for silent
connections, too; they have two seconds.

Listeners that others go on using (socket activation, ``fd://``, a second master after SIGUSR2, ``reuse_port``) are
neither filtered nor waited for. A Unix socket's path is removed when the delay is over, and its queue then served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from .._config import Settings
from .._inflight import Load, RequestInfo
from .._parties import FULL
from .._signals import interrupt_main
from .._sockets import has_input
from .._state import logger
from ._board import DELAYED, DELAYING, Board
from ._closing import CLOSING_BOUND

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# How long a connection may wait for a request once a worker leaves: gunicorn's own default of ``keepalive``.
_PATIENCE = 2.0


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
        self._rest_accepted = False
        self._waiting = Waiting(worker) if hasattr(worker, "timeout_ctx") else None
        # gunicorn closes its own before the hooks run, and would then take the worker for one that hangs.
        self._sign_of_life = os.dup(worker.tmp.fileno())

    def announce(self) -> None:
        self.closing = True
        self.mark(DELAYING)

    def stop_accepting(self, timeout: float) -> None:
        """Say that the delay is over, and wait for the master, who then has the accept queue served."""
        self.mark(DELAYED)
        if not self.board.told_at:
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
        interrupt_main(signal.SIGTERM)

    def leave(self, signum: int, frame: FrameType | None) -> None:
        """gunicorn's master ends this worker; for the signal handler."""
        queue = getattr(self._worker, "method_queue", None)  # of its loop, where that hands on to threads
        if queue is not None and self.board.told_at:
            queue.defer(self._leave_with_rest, signum, frame)
        else:
            self._worker.handle_exit(signum, frame)

    def _leave_with_rest(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._worker.set_accept_enabled(False)
            self._accept_rest()
        finally:
            self._worker.handle_exit(signum, frame)

    def _accept_rest(self) -> None:
        """Accept whatever still waits, close the listeners, and serve it only then: who is not answered does not come
        again, so the queue runs empty. For the main thread.
        """
        if self._rest_accepted:
            return
        self._rest_accepted = True
        until = time.monotonic() + CLOSING_BOUND / 2
        accepted = []
        for listener in self._worker.sockets:
            name = listener.getsockname()
            with contextlib.suppress(OSError):  # another worker was quicker, or no descriptor is left
                while has_input(listener) and time.monotonic() < until:
                    accepted.append(_Accepted(listener.accept(), name))
            listener.close()
            listener.sock = _Closed()
        for each in accepted:
            self._worker.accept(each)

    def leaving(self) -> None:
        """gunicorn has been told to end its loop; twice is harmless."""
        self._since = self._since or time.monotonic()
        self._leaving.set()

    def hang_up_waiting(self) -> None:
        """Until gunicorn's loop has ended let nobody hold it who asks for nothing; blocks."""
        while self._waiting is not None and not self._left.wait(_PATIENCE / 4):
            self._waiting.hang_up()

    def left(self) -> None:
        """gunicorn's loop has ended. The listeners are closed now and not when the hooks have run: who came would wait
        for nothing.
        """
        self.leaving()
        if self.board.told_at and hasattr(self._worker, "accept") and not hasattr(self._worker, "tpool"):
            self._accept_rest()  # a worker that does one thing after the other
        self._left.set()
        for sock in self._worker.sockets:
            sock.close()

    def live(self) -> None:
        """Show gunicorn's master that the worker does not hang, as its loop does."""
        now = time.monotonic()
        os.utime(self._sign_of_life, (now, now))

    def mark(self, word: int) -> None:
        """Tell the master."""
        self.board.set(self._worker.age, word)


class Waiting:
    """The connections of a gevent worker on which no request is under way. When it leaves gunicorn waits for each of
    them as long as ``keepalive`` says, which behind a balancer is longer than any grace period.
    """

    def __init__(self, worker: Any) -> None:
        self._since: dict[socket.socket, float] = {}
        self._handle, self._handle_request = worker.handle, worker.handle_request
        self._handle_http2: Any = getattr(worker, "handle_http2", None)  # a release before it has none, and calls none
        worker.handle, worker.handle_request, worker.handle_http2 = self._connection, self._request, self._http2

    def hang_up(self) -> None:
        """Read no more from those that have waited for so long: what is there already is answered."""
        now = time.monotonic()
        for sock, since in self._since.copy().items():
            if now - since >= _PATIENCE:
                with contextlib.suppress(OSError):  # it has gone
                    # Not gevent's own, which makes an error of it for whoever waits.
                    getattr(sock, "_sock", sock).shutdown(socket.SHUT_RD)

    def _connection(self, listener: Any, client: socket.socket, addr: Any) -> None:
        self._since[client] = time.monotonic()
        try:
            self._handle(listener, client, addr)
        finally:
            self._since.pop(client, None)

    def _request(self, listener_name: Any, req: Any, client: socket.socket, addr: Any) -> Any:
        self._since.pop(client, None)
        answered = self._handle_request(listener_name, req, client, addr)
        self._since[client] = time.monotonic()  # and not after an exception, which ends the connection
        return answered

    def _http2(self, listener: Any, client: socket.socket, *arguments: Any, **keywords: Any) -> None:
        self._since.pop(client, None)  # it has streams, and says goodbye itself
        self._handle_http2(listener, client, *arguments, **keywords)


class _Accepted:
    """A connection that was accepted before gunicorn asked for it, in the place of its listener."""

    def __init__(self, accepted: tuple[socket.socket, Any], name: Any) -> None:
        self._accepted = accepted
        self._name = name

    def accept(self) -> tuple[socket.socket, Any]:
        return self._accepted

    def getsockname(self) -> Any:
        return self._name


class _Closed:
    """In the place of a listening socket, because the loop may have heard already that somebody waits there."""

    def accept(self) -> Any:
        raise BlockingIOError(errno.EAGAIN, "closed")

    def close(self) -> None:
        """Nothing."""


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
