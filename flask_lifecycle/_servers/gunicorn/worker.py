"""A worker of gunicorn whose configuration has our hooks.

Theory of operation
-------------------

On SIGTERM gunicorn's master closes its listeners, which resets the connections in the accept queue, and stops the
workers before load balancers notice. With our hooks the master waits before it does that (``master.py``).

*One byte stops all workers*, by a pipe that the master makes before it forks. Each worker begins its shutdown:
readiness fails, responses say ``Connection: close``, the delay runs. A worker forked meanwhile has the rest of the
delay and the grace period. Each worker has a state in shared memory (``shared.py``), so the master waits for the delays
without knowing the settings, and an adaptive delay ends when it has ended in every worker.

*The master decides when a worker leaves.* A worker never touches the listener, and leaves gunicorn's loop on SIGTERM (a
stop, a reload, one worker less) or after ``max_requests``; it does not need to know which. ``worker_exit`` then blocks
the main thread until the drain is over and the hooks have run. A worker that leaves alone has no delay, because the
others accept.

*A SIGTERM that the master did not send* reaches a worker if a service manager signals all processes at once (systemd's
``KillMode=control-group``, a shell's process group). The master marks the workers that it dismisses. A worker without
the mark waits a moment for the master's byte, and leaves alone if there is none. If it is still loading its
application, it does this afterwards.

*The hooks of the process group* (``scope="process-group"``) run in one worker: without ``--preload`` the master does
not have them, and a new process would not be ready in time. The first worker whose own hooks have run locks a shared
file, and the others exit. It waits until the master has seen their ends, and runs the hooks. If it is killed meanwhile,
the kernel releases the lock, and the next worker takes it. If no worker has run them, the master runs them with
``--preload``, and otherwise logs an error and exits with 1.

*The accept queue.* When the master dismisses them, gthread and sync workers accept the connections in the queue once
more, because the kernel may have completed a handshake since the master's last check. A gevent worker accepts until it
leaves its loop, which checks for that once a second.

Listeners that other processes keep using (socket activation, ``fd://``, a second master after SIGUSR2,
``SO_REUSEPORT``) stay open.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from types import FrameType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..._config import Settings
from ..._core.deadline import Deadline
from ..._core.inflight import RequestInfo
from ..._core.log import logger
from ..._core.server import ALL_CONNECTIONS, Peers
from ..._core.shutdown import StopRequest
from ..._core.signals import interrupt_main
from ..adapter import TICK, Adapter
from ..listener import CLOSING_BOUND
from ..serving import Serving
from ..sockets import has_input
from .connections import Connections, request_calls, running
from .shared import CLEAN, DELAYED, DELAYING, SERVING, UNCLEAN, SharedMemory

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A service manager signals all processes within microseconds; the master may be busy with a reload of its own log.
_MOMENT = 0.5
_STARTS = ("startup", "task", "listener")


class HookedWorker(Adapter, Peers):
    """One worker. Its hooks run in the main thread."""

    name = "gunicorn"
    ours = True
    means = "hooks in gunicorn.conf.py"
    guarantee = ALL_CONNECTIONS

    def __init__(self, worker: Any, shared: SharedMemory, serving: Serving) -> None:
        self._worker = worker
        self._shared = shared
        self._serving = serving
        self._process = serving.process
        self._linger = 0.0  # seconds that a connection may wait while the worker leaves
        self._leaving = threading.Event()  # gunicorn is to end its loop
        self._left = threading.Event()  # gunicorn's loop has ended
        self._since = 0.0  # when it was to leave
        self._rest_accepted = False
        self._connections = Connections(worker)
        self._quitting: set[int] = set()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        # gunicorn closes its own heartbeat file before the hooks run, and would then kill the worker as hung.
        self._heartbeat = os.dup(worker.tmp.fileno())

    # -- hooks ------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Begin to serve the application, which is loaded now."""
        members = self._process.applications()
        settings = [member.settings for member in members]
        self._shared.publish(settings, any(member.hooks.for_group for member in members))
        if self._worker.age == 1:  # one warning for all workers
            warn_of_timeout(self._worker.cfg.graceful_timeout, settings)
        self._linger = max(each.keepalive_linger for each in settings)
        self._set_state(SERVING)
        self._process.shutdown.peers = self
        attached = self._serving.serve_in_worker(self)
        signal.signal(signal.SIGTERM, self._signalled)
        signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn does; signal() has reset it
        if not hasattr(self._worker, "timeout_ctx"):  # gevent's, which ends greenlets
            for signum in (signal.SIGINT, signal.SIGQUIT):
                signal.signal(signum, self._quit)
        # A signal that came while the application was loaded is handled now; one that comes in between, twice.
        if not self._worker.alive or self._shared.is_dismissed(self._worker.age):
            self._worker.alive = True
            self._signalled(signal.SIGTERM, None)
        if not attached:  # the application has shut itself down while it was loaded
            self._end_loop()
        threading.Thread(target=self._watch, name="lifecycle-gunicorn", daemon=True).start()

    def wake(self) -> None:
        """Wake the watching thread, because gunicorn may end this worker. Signal handlers may call this."""
        os.write(self._wake_write, b"x")

    def finish(self) -> bool:
        """After gunicorn's loop, block until the shutdown is over. Return whether the start failed."""
        self._leave_loop()
        self._process.begin(StopRequest("gunicorn ends this worker", delay=False))
        self._process.shutdown.delay.cut()
        report = self._process.exit.wait(self._show_life)
        self._set_state(CLEAN if report is not None and report.exit_code == 0 else UNCLEAN)
        return report is not None and any(h.kind in _STARTS and h.outcome != "ok" for h in report.hooks)

    # -- signals ----------------------------------------------------------------------------------------------------

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        if self._is_dismissed():
            queue = getattr(self._worker, "method_queue", None)  # of gthread's loop
            if queue is not None and self._shared.page.stop_requested:
                queue.defer(self._accept_rest_and_leave, signum, frame)
            else:
                self._worker.handle_exit(signum, frame)
        self.wake()

    def _quit(self, signum: int, frame: FrameType | None) -> None:
        """A quick stop. gunicorn's handler raises ``SystemExit`` in the main thread: in the request that a sync worker
        runs, which it then answers with 500, or in the drain, if a terminal and the master have sent a signal each. So
        the worker leaves as soon as the running requests are answered. gunicorn has the next signal of the kind, and
        one that comes during a shutdown.
        """
        if signum in self._quitting or self._shared.page.stop_requested:
            self._worker.handle_quit(signum, frame)
        self._quitting.add(signum)
        self._worker.cfg.worker_int(self._worker)
        self._worker.handle_exit(signum, frame)
        self.wake()

    def _end_loop(self) -> None:
        """End gunicorn's loop by the signal that its master would send, and so in the main thread."""
        self._shared.dismiss(self._worker.age)
        interrupt_main(signal.SIGTERM)

    # -- the watching thread ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Begin the shutdown when the master stops all workers, or gunicorn ends this one."""
        if self._all_stop():
            late = time.monotonic() - self._shared.page.stop_requested
            self._process.begin(StopRequest("SIGTERM", signal.SIGTERM, late=late))
            while not self._leaves():
                _wait_for(self._wake_read)
                os.read(self._wake_read, 1)
        else:
            self._process.begin(StopRequest("gunicorn ends this worker", delay=False))
        self._process.shutdown.delay.cut()
        self._leave()

    def _all_stop(self) -> bool:
        """Block until all workers stop, or this one leaves; return whether it is all."""
        if self._shared.stopping in _wait_for(self._shared.stopping, self._wake_read):
            return True
        os.read(self._wake_read, 1)
        if self._leaves():
            return False
        if _wait_for(self._shared.stopping, seconds=_MOMENT):
            return True
        self._end_loop()
        return False

    def _leaves(self) -> bool:
        return not self._worker.alive or self._is_dismissed()

    def _is_dismissed(self) -> bool:
        return self._shared.is_dismissed(self._worker.age)

    def is_last(self, deadline: Deadline) -> bool:
        return self._shared.is_last(self._worker.age, deadline.remaining() / 2)

    # -- the adapter --------------------------------------------------------------------------------------------------

    def announce(self) -> None:
        self._connections.leaving = True
        self._worker.wsgi = _closing(self._worker.wsgi)
        for call in request_calls(self._worker):  # those for which gunicorn has read worker.wsgi before
            _force_close(call.get("resp"))
        self._set_state(DELAYING)

    def stop_accepting(self, timeout: float) -> None:
        """Report that the delay is over, and wait until the master, which has the accept queue served, dismisses us."""
        self._set_state(DELAYED)
        if not self._shared.page.stop_requested:
            self._end_loop()  # the application stops by itself, and this worker alone
        # The connection that a sync worker reads from holds up the accept queue, which the master waits for.
        self._await(self._leaving, timeout, self._linger)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Wait for the end of gunicorn's loop, which comes when no connection is left."""
        return self._await(self._left, timeout, linger)

    def _await(self, event: threading.Event, timeout: float, linger: float) -> bool:
        """Block, and hang up waiting connections meanwhile."""
        until = time.monotonic() + timeout
        while not event.wait(max(0.0, min(TICK, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
            self._connections.hang_up(linger, self._since or math.inf, self._shared.page.refusing_since)
        return True

    def unfinished(self) -> Sequence[RequestInfo]:
        """The requests of a leaving worker; of those that it has accepted only, gthread knows the number."""
        if self._left.is_set() or not self._leaving.is_set():
            return ()
        requests = [*running(self._worker).values()]
        idle = len(getattr(self._worker, "keepalived_conns", ()))
        number = getattr(self._worker, "nr_conns", 0) - idle - max(len(requests), self._process.shutdown.in_flight)
        return [*requests, *[RequestInfo("-", "-", time.monotonic() - self._since, stage="receiving")] * number]

    def load(self) -> None:
        """Unknown."""

    def stop(self) -> None:
        """End the loop if it still runs, after the shutdown."""
        if not self._left.is_set():
            self._end_loop()

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self._since = self._since or time.monotonic()
        self._leaving.set()

    def _leave_loop(self) -> None:
        """gunicorn's loop has ended. Close the listeners now: clients need not wait until the hooks have run."""
        self._leave()
        if self._shared.page.stop_requested and hasattr(self._worker, "accept") and not hasattr(self._worker, "tpool"):
            self._accept_rest()  # a sync worker
        self._left.set()
        for sock in self._worker.sockets:
            sock.close()

    def _accept_rest_and_leave(self, signum: int, frame: FrameType | None) -> None:
        try:
            self._worker.set_accept_enabled(False)
            self._accept_rest()
        finally:
            self._worker.handle_exit(signum, frame)

    def _accept_rest(self) -> None:
        """Accept what still waits, close the listeners, and only then serve it, in the main thread.

        Clients that are not answered yet do not connect again, so the queue runs empty.
        """
        if self._rest_accepted:
            return
        self._rest_accepted = True
        until = time.monotonic() + CLOSING_BOUND / 2
        accepted = []
        for listener in self._worker.sockets:
            name = listener.getsockname()
            with contextlib.suppress(OSError):  # another worker has accepted it, or no descriptor is left
                while has_input(listener) and time.monotonic() < until:
                    accepted.append(_as_listener(listener.accept(), name))
            listener.close()
            listener.sock = _Closed()
        for each in accepted:
            self._worker.accept(each)

    def _show_life(self) -> None:
        """Update the heartbeat for gunicorn's master, as the worker's loop does."""
        now = time.monotonic()
        os.utime(self._heartbeat, (now, now))

    def _set_state(self, state: int) -> None:
        self._shared.set_state(self._worker.age, state)


def _closing(app: WSGIApplication) -> WSGIApplication:
    """The application, with answers that ask clients to close."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        _force_close(getattr(start_response, "__self__", None))
        return app(environ, start_response)

    return application


def _force_close(response: Any) -> None:
    """Let gunicorn's own response say "Connection: close", because gunicorn drops the header of an application.

    Not if its head is made already: the client may be sending its next request, and would lose it.
    """
    if hasattr(response, "force_close") and response.status is None:
        response.force_close()


def _wait_for(*descriptors: int, seconds: float | None = None) -> list[int]:
    """Wait until some of these are readable, and return them."""
    poll = select.poll()  # a blocking read would stop all greenlets, if threads are greenlets
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)]


def _as_listener(connection: tuple[Any, Any], name: Any) -> SimpleNamespace:
    """A connection that was accepted before gunicorn asked for it, in the place of its listener."""
    return SimpleNamespace(accept=lambda: connection, getsockname=lambda: name)


class _Closed:
    """In the place of a listening socket, because gunicorn's loop may have seen already that a connection waits."""

    def accept(self) -> Any:
        raise BlockingIOError(errno.EAGAIN, "closed")

    def close(self) -> None:
        """Do nothing."""


def warn_of_timeout(graceful_timeout: float, settings: Sequence[Settings]) -> None:
    """Log what ``graceful_timeout`` has to be, if gunicorn would kill a worker before its grace period is over.

    It begins when the delay is over and the accept queue is served.
    """
    needed = max(
        each.grace_period - (0.0 if isinstance(each.shutdown_delay, str) else each.shutdown_delay) for each in settings
    )
    if graceful_timeout < needed:
        logger.warning(
            "gunicorn's graceful_timeout is %g s, but a worker may need %g s after the delay; set 'graceful_timeout' to"
            " %.0f, or a shorter 'LIFECYCLE_GRACE_PERIOD'.",
            graceful_timeout, needed, -(-needed // 1), extra={"lifecycle_graceful_timeout": needed},
        )  # fmt: skip
