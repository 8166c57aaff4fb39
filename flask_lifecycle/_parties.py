"""Who takes part in a shutdown, as the coordinator sees them: applications, the server that carries them, the delay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ._config import Settings
from ._hooks import Hooks
from ._inflight import Ledger, Load, RequestInfo
from ._record import NamedTuple
from ._report import ShutdownReport
from ._startup import StartupTasks
from ._state import StateMachine
from ._work import WorkLedger

# What a stop under a server answers, from the most to the least.
FULL, ACCEPTED, STARTED = "full", "accepted requests", "started requests"
IN_WORDS = {
    FULL: "the full promise: whatever the kernel has accepted is answered",
    ACCEPTED: "accepted requests are answered, but not those in the kernel's queue at the exit",
    STARTED: "requests that the application has started are answered",
}


class ServerInfo(NamedTuple):
    """Which server carries the process, and what a stop answers under it."""

    name: str
    """``waitress``, ``gunicorn``, ...; ``unknown`` where none was recognised."""
    means: str
    """How it was recognised."""
    promise: str
    """``full``: whatever the kernel has accepted. ``accepted requests``: what the server has, also queued or half
    received. ``started requests``: those that the application has been called for."""
    advice: str = ""
    """What to do for more; empty where there is nothing more to have."""

    def __str__(self) -> str:
        more = f"; {self.advice}" if self.advice else ""
        return f"server {self.name} ({self.means}): {IN_WORDS[self.promise]}{more}"


class Notice(Protocol):
    """Finds out when a delay may end. For the coordinator's thread alone; ``str`` says how it ended."""

    def begin(self, now: float, latest: float, told: threading.Event) -> None:
        """The delay has begun and ends ``latest``; set the event whenever it is worth asking again."""

    def pause(self, now: float, queued: Callable[[], int]) -> float:
        """In how many seconds to ask again; 0: it may end. ``queued`` counts requests that wait in the server."""


class Member(Protocol):
    """One application, as the coordinator sees it."""

    settings: Settings
    notice: Notice | None  # of a delay that ends when it may
    machine: StateMachine
    ledger: Ledger
    hooks: Hooks
    work: WorkLedger
    tasks: StartupTasks
    draining: threading.Event
    refused: int

    @property
    def served(self) -> int:
        """How many requests it has answered since the drain began, but for those that were refused."""

    @property
    def started(self) -> bool:
        """Whether its start-up has succeeded."""

    def context(self) -> AbstractContextManager[Any]:
        """An application context."""

    def begin_drain(self, reason: str) -> None:
        """Tell everybody in the application that the shutdown has begun."""

    def refuse(self) -> None:
        """From now on new work is answered 503; twice is harmless."""

    def withdraw(self) -> None:
        """The listener is closed: readiness fails, whatever was wished for the beginning of the drain."""

    def told(self, report: ShutdownReport) -> None:
        """Tell everybody in the application how the shutdown went."""


class Server(Protocol):
    """What the coordinator asks of a server. Every verb may be called from any thread but the server's own loop."""

    name: str
    ours: bool  # whether its listener is ours to close
    means: str  # how it was recognised; with the next two what ServerInfo tells
    promise: str
    advice: str

    def announce(self) -> None:
        """From now on every answer tells its connection to close."""

    def stop_accepting(self, timeout: float) -> None:
        """Close the listener; nothing that the kernel has accepted is dropped. Blocks, ``timeout`` seconds at most."""

    def wait_idle(self, timeout: float, linger: float) -> bool:
        """Hang up connections idle for ``linger`` seconds and block until none is left; say whether that is so."""

    def unfinished(self) -> Sequence[RequestInfo]:
        """Requests that the server holds and no application has been called for yet, or whose answer is not sent."""

    def load(self) -> Load | None:
        """What it has to do now; ``None`` where that cannot be seen. As the next one, no part of a shutdown."""

    def canary(self, done: Callable[[], None]) -> bool | None:
        """Send a task that does nothing but call ``done`` the way of a request, ahead of all that waits for a worker.

        ``done`` must not block. ``None`` where there is no way in, ``False`` if it could not be sent now, because a
        lock is not to be had. Blocks for a few milliseconds at most.
        """

    def stop(self) -> None:
        """End the loop."""
