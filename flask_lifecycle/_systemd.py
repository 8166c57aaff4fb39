"""What systemd is told: that the service is ready, what it does, that it stops and for how long, and that it lives.

Theory of operation
-------------------

systemd gives a service of ``Type=notify`` the name of a datagram socket, and believes what its main process sends there
(see sd_notify(3)). All the applications of a process share one :class:`Notifier`: it reads their states, so a change of
one does no more than to wake its thread, and nothing that happens to the socket reaches whoever made the change. The
thread looks each second, sends what is new, and never blocks: a datagram that finds the queue full is sent at the next
look. ``READY=1`` and ``STOPPING=1`` are not taken for sent before they are, and in that order, because of two in one
datagram systemd takes the last. Whoever listens may have gone; that is logged once.

*Who speaks.* One process speaks for a unit. The variables are inherited by all children, and a worker of gunicorn's
that is recycled would end the service by its ``STOPPING=1`` where ``NotifyAccess=all`` lets it. So it is the process
that called ``init_app``, no fork of it; and it is the one that systemd has started (``SYSTEMD_EXEC_PID``), or one under
``run``, which is in charge of itself wherever it runs (under a shell that does not exec, say). Where processes serve
one after the other (``_supervisor.py``), what they have to say goes through the one that stays. It takes the variables
out of the environment as it begins, for what it starts itself: a second Flask application in a child would speak too.

*Times.* ``EXTEND_TIMEOUT_USEC`` moves the limit that is on to so long from now, unless it is later already; it never
shortens one. In a stop it is what is left of the grace period, so ``TimeoutStopSec=`` may be smaller than that. While
the application starts it is what is left of the ``timeout`` of the ``on_startup`` function that runs. One without a
timeout, and a startup task, is for ``TimeoutStartSec=`` to limit: who hangs for ever must not be let off for ever. What
is asked for is a few seconds at a time, so that the limits of systemd hold for a process that has frozen. A service
with ``RuntimeMaxSec=`` asks for nothing while it runs: it is to be stopped then.

*The watchdog.* ``WATCHDOG=1`` is sent at half of the interval if the group ``live`` passes. A check may take its time,
so there is a second thread for it, on a grid of its own: the slow run of a check delays one heartbeat and not those
behind it. Where liveness fails the heartbeat stays out and ``STATUS=`` says why; what is not asked for is
``WATCHDOG=trigger``, because liveness that comes back within the interval is no reason to lose what is in flight. From
the beginning of a shutdown on no check is asked, and heartbeats come from the first thread, because the second may
still wait for one: the end is bounded by the shutdown itself, and to be killed in the middle of it, by a check that
needs what has been closed, would lose what it is for.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol

from ._deadline import Clock
from ._hooks import Hooks
from ._scheduler import Scheduler
from ._shutdown import Coordinator
from ._state import State, StateMachine, logger
from .checks._health import LIVE, Health

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# Seconds between two looks, and between two changes of the status.
_RHYTHM = 1.0
# A full queue is one that somebody reads late; a stop may be over sooner than a second.
_RETRY = 0.1
# So many seconds are asked for at once, and again when half of them are left.
_LEASE = 10.0
# For the interpreter's own end, and for systemd to notice it.
_MARGIN = 1.0
# Nobody means less, and a shorter one would keep the process busy.
_SHORTEST = 0.1
# More often than asked does no harm; a thread cannot wait for as long as a number of systemd's may be.
_LONGEST_PAUSE = 3600.0
# Of a number of 64 bits.
_DIGITS = 20
# systemd drops a datagram of more than 4096 bytes (NOTIFY_BUFFER_MAX).
_LONGEST = 1000


class Generation(Protocol):
    """What is asked of a place in a row of processes."""

    def notify(self, text: str) -> None:
        """Have it told to systemd."""


class Application(Protocol):
    """What is asked of an application."""

    machine: StateMachine
    health: Health
    hooks: Hooks
    work: Sized


class Process(Protocol):
    """What is asked of the process."""

    coordinator: Coordinator

    @property
    def generation(self) -> Generation | None:
        """Its place, where a supervisor has systemd's ear."""

    def members(self) -> Sequence[Any]:
        """Its applications."""


class Notifier:
    """What speaks to systemd for one process; the companion of each of its applications. Nothing here blocks.

    :param process: whose states are told.
    :param environ: the environment, as it is when the first application is made.
    """

    def __init__(self, process: Process, environ: Mapping[str, str] = os.environ, clock: Clock | None = None) -> None:
        self._process = process
        self._clock = clock or Clock()
        self._pid = os.getpid()
        self._name = environ.get("NOTIFY_SOCKET", "")
        self._interval = _heartbeat(environ, self._pid)
        self._first = environ.get("SYSTEMD_EXEC_PID", str(self._pid)) == str(self._pid)
        self._socket: socket.socket | None = None
        self._speaker = Scheduler(self._tick, "lifecycle-systemd", "messages to systemd")
        self._pulse = Scheduler(self._look, "lifecycle-systemd-live", "heartbeats for systemd")
        self._speaking = False
        self._complained = False
        # What has been sent, and when.
        self._ready = self._stopping = False
        self._status, self._status_at = "", -_RHYTHM
        self._covered = 0.0  # until then no limit of systemd's runs out
        self._functions: dict[tuple[int, int], float] = {}  # since when an on_startup function was seen to run
        self._began = 0.0
        self._alive = False  # a heartbeat is due
        self._fed = 0.0  # when the last one was sent
        self._ailing = ""  # why there is none

    # -- a companion of its applications --------------------------------------------------------------------------

    def begin(self) -> None:
        coordinator = self._process.coordinator
        speaks = (self._first or coordinator.owned) and not coordinator.carried
        if self._speaking or os.getpid() != self._pid or not speaks:
            return
        for name in _VARIABLES:
            os.environ.pop(name, None)
        if self._name[:1] not in ("/", "@"):
            if self._name:
                logger.warning(
                    "NOTIFY_SOCKET is %r, which is neither a path nor an abstract name; nothing is sent to systemd.",
                    self._name, extra={"lifecycle_socket": self._name},
                )  # fmt: skip
            self._name = ""
            return
        self._speaking = True
        self._began = self._clock.monotonic()
        self._speaker.wake()
        if self._interval is not None:
            self._pulse.wake()

    def state_changed(self, new: State, reason: str) -> None:
        if self._speaking and os.getpid() == self._pid:
            self._speaker.wake()

    def end(self) -> None:
        """Send what is left to say, if somebody takes it; twice is harmless."""
        if not self._speaking or os.getpid() != self._pid:
            return
        self._speaking = False
        self._pulse.stop(wait=False)  # a check may take its time
        if self._speaker.stop(timeout=_RHYTHM):  # else it hangs in the log
            self._tick()
        if self._socket is not None:
            self._socket.close()

    # -- what is sent ---------------------------------------------------------------------------------------------

    def _tick(self) -> float:
        """Send what is new; return in how many seconds to look again."""
        now = self._clock.monotonic()
        status = self._describe()
        if not self._ready and self._all_ready():
            if not self._send(["READY=1", f"STATUS={status}"]):
                return self._again()
            self._ready, self._status, self._status_at = True, status, now
        lines, pause = self._news(status, now), self._pause(status, now)
        if not lines:
            return pause
        if not self._send(lines):
            return self._again()
        self._note(lines, status, now)
        return self._pause(status, now)

    def _news(self, status: str, now: float) -> list[str]:
        """What is to be said now, but for READY=1."""
        stops = self._process.coordinator.begun and not self._stopping
        if stops:
            self._covered = 0.0  # what was asked for moved the limit of the start
        lines = ["STOPPING=1"] if stops else []
        # The first words of a stop and the last of all do not wait for the second to be over.
        if status != self._status and (stops or not self._speaking or now - self._status_at >= _RHYTHM):
            lines.append(f"STATUS={status}")
        if seconds := self._extension(now):
            lines.append(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")
        if self._heartbeat_due(now):
            lines.append("WATCHDOG=1")
        return lines

    def _pause(self, status: str, now: float) -> float:
        """In how many seconds to look again, if nobody wakes it before."""
        pause = self._status_at + _RHYTHM - now if status != self._status else _RHYTHM
        return min(pause, self._interval or pause) if self._stopping else pause

    def _again(self) -> float:
        """In how many seconds to send again what nobody has taken: soon, but for what is gone and may never come."""
        return _RHYTHM if self._complained and not self._process.coordinator.begun else _RETRY

    def _note(self, lines: Iterable[str], status: str, now: float) -> None:
        """Note what was sent."""
        for line in lines:
            name, _, value = line.partition("=")
            if name == "STOPPING":
                self._stopping = True
            elif name == "STATUS":
                self._status, self._status_at = status, now
            elif name == "EXTEND_TIMEOUT_USEC":
                self._covered = now + int(value) / 1e6
            else:
                self._alive, self._fed = False, now

    def _send(self, lines: Iterable[str]) -> bool:
        """Send one datagram; ``False`` if nobody has taken it."""
        name = f"\0{self._name[1:]}" if self._name[0] == "@" else self._name
        if self._process.generation is not None:
            self._process.generation.notify("\n".join(lines))
            return True
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # not inherited by what we start
            self._socket.sendto("\n".join(lines).encode(errors="replace"), socket.MSG_DONTWAIT, name)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS) and not self._complained:
                self._complained = True
                logger.warning(
                    "systemd cannot be told anything at %r: %s", self._name, error.strerror or error,
                    extra={"lifecycle_socket": self._name},
                )  # fmt: skip
            return False

    def _applications(self) -> Sequence[Application]:
        return self._process.members()

    def _all_ready(self) -> bool:
        applications = self._applications()
        return bool(applications) and all(each.machine.reached_ready for each in applications)

    # -- the status -----------------------------------------------------------------------------------------------

    def _describe(self) -> str:
        """The state in one line, for ``systemctl status``."""
        coordinator = self._process.coordinator
        parts = [self._state()]
        if coordinator.report is None:
            parts.append(f"{coordinator.in_flight} in flight")
            tokens = sum(len(work) for work in {id(each.work): each.work for each in self._applications()}.values())
            parts += [f"{tokens} token{'s' if tokens > 1 else ''}"] if tokens else []
            left = coordinator.remaining()
            parts += [f"{left:.0f} s left"] if left is not None else []
            parts += [f"the watchdog is not fed: {self._ailing}"] if self._ailing and not coordinator.begun else []
        # A reason is anybody's text, and a line of it would be a message of its own.
        text = "".join(character if character.isprintable() else " " for character in ", ".join(parts))
        return text[:_LONGEST]

    def _state(self) -> str:
        coordinator, applications = self._process.coordinator, self._applications()
        if coordinator.report is not None:
            return f"STOPPED: {coordinator.report}"
        if coordinator.begun:
            return f"stopping ({coordinator.phase or 'announce'})"
        behind = [each.machine for each in applications if each.machine.state is not State.READY]
        if not behind:
            return State.READY.name
        reason = f": {behind[0].reason}" if behind[0].state is State.NOT_READY else ""
        several = f" ({len(behind)} of {len(applications)} applications)" if len(applications) > 1 else ""
        return f"{behind[0].state.name}{several}{reason}"

    # -- times ----------------------------------------------------------------------------------------------------

    def _extension(self, now: float) -> float:
        """For how many seconds to ask now; 0 for none."""
        needed = self._needed(now)
        if needed - self._covered < 0.001 or self._covered - now > _LEASE / 2:  # rounded when it was asked for
            return 0.0
        return min(needed - now, _LEASE)

    def _needed(self, now: float) -> float:
        """Until when no limit of systemd's may run out."""
        coordinator = self._process.coordinator
        if coordinator.report is not None:
            return 0.0
        if coordinator.deadline is not None:
            return coordinator.deadline.at + _MARGIN
        if self._ready:
            return 0.0
        return max((self._start_needs(each.hooks, now) for each in self._applications()), default=0.0)

    def _start_needs(self, hooks: Hooks, now: float) -> float:
        """Until when the ``on_startup`` function that runs may take; 0 if there is none, or nobody knows."""
        if not hooks.startup_begun.is_set() or hooks.startup_over.is_set():
            return 0.0
        ran = sum(record.kind == "startup" for record in hooks.records.copy())
        timeout = next((hook.timeout for hook in hooks.of("startup")[ran:]), None)
        since = self._functions.setdefault((id(hooks), ran), now)
        return since + timeout + _MARGIN if timeout is not None else 0.0

    # -- the watchdog ---------------------------------------------------------------------------------------------

    def _heartbeat_due(self, now: float) -> bool:
        due = self._process.coordinator.begun and self._interval is not None and now - self._fed >= self._interval
        return self._alive or due

    def _look(self) -> float | None:
        """Ask liveness; return in how many seconds to do so again."""
        if self._interval is None or self._process.coordinator.begun:
            return None
        before, self._ailing = self._ailing, self._ailment()
        self._alive = not self._ailing
        self._speaker.wake()
        if self._ailing and not before:
            extra = {"lifecycle_reason": self._ailing}
            logger.warning("liveness fails, systemd's watchdog is not fed: %s", self._ailing, extra=extra)
        elif before and not self._ailing:
            logger.info("liveness passes, systemd's watchdog is fed again", extra={"lifecycle_reason": ""})
        return self._interval - (self._clock.monotonic() - self._began) % self._interval

    def _ailment(self) -> str:
        """What is wrong with liveness, or nothing. Blocks as long as its checks may."""
        for each in self._applications():
            report = each.health.report(LIVE)
            if report.status == "fail":
                failing = (check.name for check in report.checks if check.status == "fail")
                return f"check '{next(failing, LIVE)}' fails"
        return ""


def _heartbeat(environ: Mapping[str, str], pid: int) -> float | None:
    """The interval of the heartbeats in seconds; ``None`` where this process is not asked for any."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    wanted = microseconds.isdecimal() and len(microseconds) <= _DIGITS and int(microseconds) > 0
    if not wanted or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return min(max(int(microseconds) / 2e6, _SHORTEST), _LONGEST_PAUSE)
