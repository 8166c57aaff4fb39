"""What takes part in a shutdown: applications, the server they run in, other processes at the same address."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .._config import Settings
from .deadline import Deadline
from .hooks import Hooks
from .inflight import Ledger, Load, RequestInfo
from .report import ShutdownReport
from .startup import Startup, StartupTasks
from .state import StateMachine
from .work import WorkLedger

if TYPE_CHECKING:
    from .process import Process
    from .shutdown import StopRequest

# The guarantees of servers, from the strongest to the weakest.
ALL_CONNECTIONS, ACCEPTED, STARTED = "all connections", "accepted requests", "started requests"
IN_WORDS = {
    ALL_CONNECTIONS: "a shutdown answers every accepted connection",
    ACCEPTED: "a shutdown answers accepted requests, but not those in the kernel's queue at the exit",
    STARTED: "a shutdown answers requests that the application has started",
}


class ServerInfo(NamedTuple):
    """The server that the process runs in, and its guarantee for a shutdown.

    :param name: ``waitress``, ``gunicorn``, ...; ``unknown`` for any other server.
    :param means: how it was detected.
    :param guarantee: which requests a shutdown answers. ``all connections``: those on connections that the kernel has
        accepted. ``accepted requests``: those that the server has, even queued or half received. ``started requests``:
        those that the application has been called for.
    :param advice: how to get a stronger guarantee; empty if there is none.
    """

    name: str
    means: str
    guarantee: str
    advice: str = ""

    def __str__(self) -> str:
        more = f"; {self.advice}" if self.advice else ""
        return f"server {self.name} ({self.means}): {IN_WORDS[self.guarantee]}{more}"


class AdaptiveDelay(Protocol):
    """Decides when a delay may end. Used by the shutdown's thread only; ``str`` gives the reason for the end."""

    def start(self, now: float, latest: float, ask_again: threading.Event) -> None:
        """Begin a delay that ends at ``latest``; set the event when :meth:`pause` may return another value."""

    def pause(self, now: float, queued: Callable[[], int]) -> float:
        """The number of seconds until the next call; 0 if the delay may end. ``queued`` counts requests that wait."""


class Application(Protocol):
    """One application, as the process and the shutdown see it."""

    settings: Settings

    machine: StateMachine
    ledger: Ledger
    hooks: Hooks
    startup: Startup  # a new one after a fork

    @property
    def adaptive_delay(self) -> AdaptiveDelay | None:
        """Of ``LIFECYCLE_SHUTDOWN_DELAY=auto``."""

    @property
    def work(self) -> WorkLedger:
        """Its work items, which all applications of a ``Lifecycle`` share."""

    @property
    def tasks(self) -> StartupTasks:
        """Its startup tasks, shared in the same way."""

    @property
    def refused(self) -> int:
        """The number of requests that it has refused because of the drain."""

    @property
    def served(self) -> int:
        """The number of requests answered since the drain began, without refused ones."""

    def context(self) -> AbstractContextManager[Any]:
        """An application context."""

    def open(self) -> None:
        """Bind the sockets of its features.

        :raises OSError: one cannot be bound.
        """

    def open_or_fail(self) -> bool:
        """As :meth:`open`, but a failure fails the start-up and returns ``False``."""

    def begin_serving(self) -> None:
        """Handle signals and begin the features, because the process serves, or is about to."""

    def check_setup(self) -> None:
        """Log settings that have no effect."""

    def start_checks(self) -> None:
        """Start the checks that have an interval."""

    def after_fork(self, *, answers: bool = False) -> None:
        """Reset the application in a forked child, unless the child answers a request for its parent."""

    def probe_worker(self, path: str) -> str | None:
        """The name of the probe at a request path, if there is one."""

    def begin_drain(self, request: StopRequest) -> Callable[[], object]:
        """Fail readiness from now on; return what announces it, which may block in a log or a receiver."""

    def refuse(self) -> None:
        """Answer new requests with 503 from now on. Idempotent."""

    def listener_closed(self) -> None:
        """Make readiness fail from now on, even if it passed at the beginning of the drain."""

    def stopped(self, report: ShutdownReport) -> None:
        """Send the report to the application's receivers, after the shutdown."""

    def end(self) -> None:
        """Stop the features. Idempotent."""


class Peers:
    """The other processes at this address, or of this process group. Here there are none; subclasses have some."""

    first = True  # whether this process serves at once, not only when it is ready
    probes: Any = None  # the listening socket of the probes, from the previous process
    one_application = False  # whether only one application opens its probe listener

    def attach(self, process: Process, application: Any, server: Any, log_addresses: Callable[[], None]) -> None:
        """Called when the server is about to serve.

        :param log_addresses: logs the addresses of its listeners.
        """
        log_addresses()

    def notify(self, text: str) -> bool:
        """Pass a message on to the service manager; ``False`` if this process has to send it."""
        return False

    def await_sole_owner(self, timeout: float) -> None:
        """Block until no other process has the listeners open, or another one keeps serving them."""

    def is_last(self, deadline: Deadline) -> bool:
        """Block until the other processes of the group have exited; return whether this one runs the group's hooks."""
        return True


class Servers:
    """Finds the server that the process runs in. This class finds none; ``_servers/serving.py`` has the subclass."""

    reloads = False  # whether this is a reloader's child, whose parent passes signals on to it

    def find(self) -> Server | None:
        """Search for the server."""
        return None

    def look(self) -> None:
        """Watch for a server that begins to serve, because an application was added."""

    def attach(self) -> None:
        """Prepare the discovered server, and log which server it is, once."""

    def prepare_exit(self) -> None:
        """Prepare to end the server with an exit code, because the start-up has failed."""

    def in_loop(self) -> bool:
        """Whether the calling thread runs the server's loop."""
        return False

    def has_listened(self) -> bool:
        """Whether this process has served at any time."""
        return False

    # -- signals

    def keeps_all_signals(self) -> bool:
        """Whether neither our signal handlers nor the threads that wait for signals and servers may exist here."""
        return False

    def signals_taken(self) -> None:
        """Called in the main thread when our handlers are installed, because a server may replace them."""

    def takes_signal(self, signum: int) -> bool:
        """Handle a signal that is meant for another process; ``False`` if it is meant for this one."""
        return False

    def postpones_signal(self, signum: int) -> bool:
        """Postpone a signal until this process serves; ``False`` if it need not wait."""
        return False

    # -- forks

    def renew(self) -> None:
        """Forget the server."""

    def leave_to_parent(self) -> bool:
        """In a forked child: leave the listeners to the parent. Return whether the child answers one request for it."""
        return False

    def begin_in_child(self, answers: bool) -> None:
        """Begin in a forked child, after the applications were reset."""


class Server:
    """A server, as a shutdown sees it. Any thread except that of the server's loop may call every method.

    The defaults are for a server that we can only watch: its listener stays open during the drain, the guard refuses
    new work, and in the end the server gets the signal. Adapters override what they can do better, and state the result
    in ``guarantee``.
    """

    name = "unknown"
    means = "detected"  # this and the next two are for ServerInfo
    guarantee = STARTED
    advice = ""
    ours = False  # whether we close its listener
    start_error = 1  # the exit code of a process whose start-up has failed
    stays = False  # whether a process drained by an operator keeps running until it is stopped

    def announce(self) -> None:
        """Close the connection after every response from now on."""

    def stop_accepting(self, timeout: float) -> None:
        """Close the listener without losing a connection. Blocks for ``timeout`` seconds at most."""

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Hang up connections idle for ``linger`` seconds and block until none is left; ``False`` after the timeout."""
        raise NotImplementedError

    def unfinished(self) -> Sequence[RequestInfo]:
        """Its requests that it has not answered, of every stage: the applications have counted the ``running`` ones."""
        return ()

    def load(self) -> Load | None:
        """The load now; ``None`` if unknown. By default only that of the application, which its ledger counts."""
        return Load(0)

    def ping(self, done: Callable[[], None]) -> bool | None:
        """Send a task that only calls ``done`` along the path of a request, ahead of requests that wait for a worker.

        ``done`` must not block. Returns ``None`` if the server does not support this, ``False`` if a lock was taken.
        Blocks for a few milliseconds at most.
        """
        return None

    def end(self) -> bool:
        """End its loop as the signal would; ``False`` if the handler before ours must get the signal instead."""
        return False

    def stop(self) -> None:
        """End the loop. By default the handler before ours gets the signal."""
