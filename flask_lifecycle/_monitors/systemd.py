"""Notifies systemd: the service is ready, its status, that it stops and for how long, and heartbeats for the watchdog.

Theory of operation
-------------------

systemd gives a service of ``Type=notify`` the name of a datagram socket, and reads what its main process sends there
(see sd_notify(3)). All applications of a process share one :class:`Notifier`. It reads their states, so a change of one
only wakes its thread, and an error of the socket never reaches the code that made the change. The thread looks every
second, sends what is new, and never blocks: if the queue is full it sends at the next look. ``READY=1`` and
``STOPPING=1`` count as sent only after they were, and go in that order and in two datagrams, because systemd takes the
last of two in one. If the receiver is gone, this is logged once.

``docs/systemd.md`` has the messages and their times. Why they are so:

*Which process sends.* All children inherit the variables, and a recycled worker of gunicorn would end the service by
its ``STOPPING=1`` where ``NotifyAccess=all`` allows it. So it is the process that called ``init_app``, not a fork of
it, and either the one that systemd has started (``SYSTEMD_EXEC_PID``) or one under ``run`` (which may have a shell as
its parent). At its beginning it removes the variables: a second Flask application in a child would send too.

*Times.* ``EXTEND_TIMEOUT_USEC`` moves systemd's current limit to this long from now, unless it is later already. Each
message asks for a few seconds only, so systemd's limits still hold for a frozen process, and a function without a
timeout asks for nothing, so a hung start-up still times out.

*The watchdog.* A liveness check may take its time, so it has a second thread with fixed times: a slow check delays one
heartbeat and not the next ones. ``WATCHDOG=trigger`` is not used, because liveness that recovers within the interval is
no reason to lose requests in flight. During a shutdown no check runs, because one that needs a closed resource must not
get the process killed; the first thread sends the heartbeats, because the second may still wait for a check.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._core.deadline import Clock
from .._core.feature import Feature
from .._core.hooks import Hooks
from .._core.log import logger
from .._core.scheduler import Scheduler
from .._core.state import State
from ..checks._health import LIVE

if TYPE_CHECKING:
    from .._core.process import Process

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_PERIOD = 1.0  # seconds between two looks, and between two changes of the status
_RETRY = 0.1  # until a full queue is tried again; a shutdown may be over sooner than a second
_LEASE = 10.0  # seconds to ask for at once, and again when half of them are left
_MARGIN = 1.0  # for the interpreter to end, and for systemd to notice it
_SHORTEST = 0.1  # the interval of heartbeats; a shorter one would keep the process busy
_LONGEST_PAUSE = 3600.0  # a thread cannot wait for systemd's largest number
_DIGITS = 20  # of the maximum of a 64-bit number
_LONGEST = 1000  # characters; systemd drops a datagram of more than 4096 bytes (NOTIFY_BUFFER_MAX)


class Notifier(Feature):
    """Sends messages to systemd for one process; a feature of each of its applications. Nothing here blocks.

    :param environ: the environment when the first application is made.
    """

    def __init__(self, process: Process, environ: Mapping[str, str] = os.environ, clock: Clock | None = None) -> None:
        self._process = process
        self._clock = clock or Clock()
        self._pid = os.getpid()
        self._name = environ.get("NOTIFY_SOCKET", "")
        self._interval = _heartbeat(environ, self._pid)
        self._first = environ.get("SYSTEMD_EXEC_PID", str(self._pid)) == str(self._pid)
        self._socket: socket.socket | None = None
        self._sender = Scheduler(self._tick, "lifecycle-systemd", "messages to systemd")
        self._heartbeats = Scheduler(self._look, "lifecycle-systemd-live", "heartbeats for systemd")
        self._active = False
        self._complained = False
        # What has been sent, and when.
        self._ready = self._stopping = False
        self._status, self._status_at = "", -_PERIOD
        self._covered = 0.0  # until when systemd's limits are extended
        self._functions: dict[tuple[int, int], float] = {}  # when an on_startup function was first seen to run
        self._began = 0.0
        self._due = False  # a heartbeat is due
        self._last_heartbeat = 0.0
        self._failing = ""  # why no heartbeat is sent

    # -- as a feature ---------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, application: Any) -> Notifier:
        notifier: Notifier = application.process.share(cls)
        return notifier

    def begin(self) -> None:
        sends = self._process.owner == "run" or (self._first and self._process.owner != "gunicorn")
        if self._active or os.getpid() != self._pid or not sends:
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
        self._active = True
        self._began = self._clock.monotonic()
        self._sender.wake()
        if self._interval is not None:
            self._heartbeats.wake()

    def state_changed(self, new: State, reason: str) -> None:
        if self._active and os.getpid() == self._pid:
            self._sender.wake()

    def stop(self) -> None:
        """Send the last message, if the queue has room. Idempotent."""
        if not self._active or os.getpid() != self._pid:
            return
        self._active = False
        self._heartbeats.stop(wait=False)  # a check may take long
        if self._sender.stop(timeout=_PERIOD):  # otherwise it hangs in a log handler
            self._tick()
        if self._socket is not None:
            self._socket.close()

    # -- messages -------------------------------------------------------------------------------------------------

    def _tick(self) -> float:
        """Send what is new; return in how many seconds to look again."""
        now = self._clock.monotonic()
        status = self._describe()
        if not self._ready and self._all_ready() and not self._send({"READY": "1", "STATUS": status}, now):
            return self._retry()
        news = self._news(status, now)
        if news and not self._send(news, now):
            return self._retry()
        return self._pause(status, now)

    def _news(self, status: str, now: float) -> dict[str, str]:
        """The new messages, except READY=1."""
        stops = self._process.shutdown.begun and not self._stopping
        if stops:
            self._covered = 0.0  # the extension so far was for the start-up
        news = {"STOPPING": "1"} if stops else {}
        # The first message of a shutdown and the very last one do not wait for the period.
        if status != self._status and (stops or not self._active or now - self._status_at >= _PERIOD):
            news["STATUS"] = status
        if seconds := self._extension(now):
            news["EXTEND_TIMEOUT_USEC"] = str(round(seconds * 1e6))
        if self._heartbeat_due(now):
            news["WATCHDOG"] = "1"
        return news

    def _pause(self, status: str, now: float) -> float:
        """In how many seconds to look again, unless woken before."""
        pause = self._status_at + _PERIOD - now if status != self._status else _PERIOD
        return min(pause, self._interval or pause) if self._stopping else pause

    def _retry(self) -> float:
        """In how many seconds to send again: soon, unless the receiver is gone."""
        return _PERIOD if self._complained and not self._process.shutdown.begun else _RETRY

    def _send(self, messages: Mapping[str, str], now: float) -> bool:
        """Send one datagram; record it and return ``True`` if it was taken."""
        if not self._deliver("\n".join(f"{name}={value}" for name, value in messages.items())):
            return False
        self._ready = self._ready or "READY" in messages
        self._stopping = self._stopping or "STOPPING" in messages
        if "STATUS" in messages:
            self._status, self._status_at = messages["STATUS"], now
        if "EXTEND_TIMEOUT_USEC" in messages:
            self._covered = now + int(messages["EXTEND_TIMEOUT_USEC"]) / 1e6
        if "WATCHDOG" in messages:
            self._due, self._last_heartbeat = False, now
        return True

    def _deliver(self, datagram: str) -> bool:
        name = f"\0{self._name[1:]}" if self._name[0] == "@" else self._name
        if self._process.shutdown.peers.notify(datagram):
            return True
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)  # children do not inherit it
            self._socket.sendto(datagram.encode(errors="replace"), socket.MSG_DONTWAIT, name)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS) and not self._complained:
                self._complained = True
                logger.warning(
                    "cannot notify systemd at %r: %s", self._name, error.strerror or error,
                    extra={"lifecycle_socket": self._name},
                )  # fmt: skip
            return False

    def _all_ready(self) -> bool:
        applications = self._process.applications()
        return bool(applications) and all(each.machine.reached_ready for each in applications)

    # -- the status -----------------------------------------------------------------------------------------------

    def _describe(self) -> str:
        """The status in one line, for ``systemctl status``."""
        shutdown = self._process.shutdown
        parts = [self._state()]
        if shutdown.report is None:
            parts.append(f"{shutdown.in_flight} in flight")
            items = sum(len(work) for work in {each.work for each in self._process.applications()})
            parts += [f"{items} work item{'s' if items > 1 else ''}"] if items else []
            left = shutdown.remaining()
            parts += [f"{left:.0f} s left"] if left is not None else []
            parts += [f"no heartbeats: {self._failing}"] if self._failing and not shutdown.begun else []
        # A reason is any text, and a line of it would be another message.
        text = "".join(character if character.isprintable() else " " for character in ", ".join(parts))
        return text[:_LONGEST]

    def _state(self) -> str:
        shutdown, applications = self._process.shutdown, self._process.applications()
        if shutdown.report is not None:
            return f"STOPPED: {shutdown.report}"
        if shutdown.begun:
            return f"stopping ({shutdown.phase or 'announce'})"
        behind = [each.machine for each in applications if each.machine.state is not State.READY]
        if not behind:
            return State.READY.name
        reason = f": {behind[0].reason}" if behind[0].state is State.NOT_READY else ""
        several = f" ({len(behind)} of {len(applications)} applications)" if len(applications) > 1 else ""
        return f"{behind[0].state.name}{several}{reason}"

    # -- times ----------------------------------------------------------------------------------------------------

    def _extension(self, now: float) -> float:
        """Seconds to ask for now; 0 for none."""
        needed = self._needed(now)
        if needed - self._covered < 0.001 or self._covered - now > _LEASE / 2:  # rounded when it was sent
            return 0.0
        return min(needed - now, _LEASE)

    def _needed(self, now: float) -> float:
        """Until when systemd's limits must be extended."""
        shutdown = self._process.shutdown
        if shutdown.report is not None:
            return 0.0
        if shutdown.deadline is not None:
            return shutdown.deadline.at + _MARGIN
        if self._ready:
            return 0.0
        starting = [each.hooks for each in self._process.applications() if each.startup.runs_functions]
        return max((self._start_needs(hooks, now) for hooks in starting), default=0.0)

    def _start_needs(self, hooks: Hooks, now: float) -> float:
        """Until when the current ``on_startup`` function may take; 0 without a timeout."""
        ran = sum(record.kind == "startup" for record in hooks.records.copy())
        timeout = next((hook.timeout for hook in hooks.of("startup")[ran:]), None)
        since = self._functions.setdefault((id(hooks), ran), now)
        return since + timeout + _MARGIN if timeout is not None else 0.0

    # -- the watchdog ---------------------------------------------------------------------------------------------

    def _heartbeat_due(self, now: float) -> bool:
        due = self._interval is not None and now - self._last_heartbeat >= self._interval
        return self._due or (due and self._process.shutdown.begun)

    def _look(self) -> float | None:
        """Run the liveness checks; return in how many seconds to do so again."""
        if self._interval is None or self._process.shutdown.begun:
            return None
        before, self._failing = self._failing, self._problem()
        self._due = not self._failing
        self._sender.wake()
        if self._failing and not before:
            extra = {"lifecycle_reason": self._failing}
            logger.warning("liveness fails, no heartbeats for systemd's watchdog: %s", self._failing, extra=extra)
        elif before and not self._failing:
            logger.info("liveness passes, heartbeats for systemd's watchdog again", extra={"lifecycle_reason": ""})
        return self._interval - (self._clock.monotonic() - self._began) % self._interval

    def _problem(self) -> str:
        """Why liveness fails; empty if it passes. Blocks for its checks."""
        applications: Sequence[Any] = self._process.applications()
        for each in applications:
            report = each.health.report(LIVE)
            if report.status == "fail":
                failing = (check.name for check in report.checks if check.status == "fail")
                return f"check '{next(failing, LIVE)}' fails"
        return ""


def _heartbeat(environ: Mapping[str, str], pid: int) -> float | None:
    """The interval of the heartbeats in seconds; ``None`` if systemd wants none of this process."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    wanted = microseconds.isdecimal() and len(microseconds) <= _DIGITS and int(microseconds) > 0
    if not wanted or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return min(max(int(microseconds) / 2e6, _SHORTEST), _LONGEST_PAUSE)
