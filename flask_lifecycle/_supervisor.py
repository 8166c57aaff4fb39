"""The process that stays: it has the listeners, starts the processes that serve, and passes signals on.

``_handover.py`` tells what it and they say to each other. It never loads the application, so that nothing of a deploy
can break it, and none of it has to be new: each process that it starts is a fresh interpreter with the command that it
was started by itself, in the environment and the directory of then. (``.env`` files are read anew. A directory that was
reached by a symbolic link, as deploys do, is reached by it again, if ``PWD`` tells.)

One thread, one loop. Handlers do nothing; the interpreter itself writes the numbers of signals into a pipe. The signal
that reloads is answered here, each other one is passed on: the process that serves stops, and says so. A second one is
the order to leave at once, also to those that are on their way out already. systemd signals all processes of a service,
and how much later what is passed on comes depends on the machine; so the first one that stops is told, not sent, and
whoever has got it as well does not take it for a second one. All have a session of their own: Ctrl-C on a terminal
reaches them this way only.

systemd takes it for the main process of the service, and so it speaks for those that serve: what the current one says
of itself, and nothing of what the others do, one of which stops without the service's stopping. A reload is told by
``RELOADING=1`` and ``READY=1``.

It ends with the last process, as the last one that served has ended: with its exit code, or by the same signal. One
that dies without having been asked is not replaced, unless its successor is on its way: whoever started this is told by
the exit code, and knows better how often to try. As PID 1 it reaps whatever has been left to it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from typing import Any

from . import _activation, servers
from ._handover import VARIABLE, Channel
from ._signals import die_by
from ._state import logger

# What is passed on, if it is not what reloads.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))
# Seconds for systemd to take what it is told.
_MANAGERS_TIME = 0.5


class _Child:
    """One process that serves, is about to, or has."""

    def __init__(self, popen: subprocess.Popen[bytes], channel: Channel) -> None:
        self.popen = popen
        self.channel = channel
        self.hears = False  # what is said to it
        self.why = "nothing was heard of it"  # it is not ready
        self.until: float | None = None  # when it is to be ready, or gone
        self.status = ""  # what it wants systemd to be told of it

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Supervisor:
    """Serves by one process after the other.

    :param ours: listeners that are ours to close at the end.
    :param given: listeners that belong to somebody else.
    :param reload_on: the signal on which the next process is started.
    :param patience: seconds within which it has to be ready.
    """

    def __init__(
        self, ours: Collection[socket.socket], given: Collection[socket.socket], reload_on: int, patience: float
    ) -> None:
        self._ours, self._given = list(ours), list(given)
        self._probes: list[int] = []  # the listener of the probes, once there is one
        self._reload_on = reload_on
        self._patience = patience
        self._command = [sys.executable, *sys.orig_argv[1:]]
        self._environ = _first_environment()
        self._directory = _directory()
        self._children: dict[int, _Child] = {}
        self._current: _Child | None = None
        self._next: _Child | None = None
        self._again = False  # another reload has been asked for meanwhile
        self._ending = False
        self._passed_on: set[int] = set()
        self._kept_back: set[int] = set()  # signals to stop that the next one has not got
        self._manager = _Manager(os.environ.get("NOTIFY_SOCKET", ""))
        self._code = 0

    def run(self) -> int:
        """Serve until the last process has gone; return the code to exit with. For the main thread only."""
        wake = _catch(self._reload_on)
        self._current = self._start("first")
        while self._children:
            poll = select.poll()
            channels = {
                child.channel.fileno(): child for child in self._children.values() if child.channel.fileno() >= 0
            }
            for descriptor in (wake, *channels):
                poll.register(descriptor, select.POLLIN)
            ready = [descriptor for descriptor, _event in poll.poll(self._pause())]
            for child in [channels[descriptor] for descriptor in ready if descriptor in channels]:
                self._hear(child)
            if wake in ready:
                for number in os.read(wake, 4096):
                    self._receive(number)
            self._reap()
            self._look_at_the_clock()
        if self._code >= 0:
            return self._code
        with contextlib.suppress(OSError):  # SIGKILL, whose action is nobody's to set
            die_by(-self._code)
        return 128 - self._code  # PID 1, whom it does not kill

    # -- processes ------------------------------------------------------------------------------------------------

    def _start(self, place: str) -> _Child:
        """Start a process.

        :raises OSError: it cannot be.
        """
        here, there = socket.socketpair()
        with there:
            environ = {**self._environ, os.fsencode(VARIABLE): str(there.fileno()).encode()}
            popen = subprocess.Popen(
                self._command, env=environ, cwd=self._directory, pass_fds=[there.fileno()], start_new_session=True
            )
        child = self._children[popen.pid] = _Child(popen, Channel(here))
        sockets = [sock.fileno() for sock in (*self._ours, *self._given)]
        text = f"{place} {len(self._ours)} {len(self._probes)}"
        child.channel.send("serve", text, [*sockets, *self._probes])
        return child

    def _reload(self) -> None:
        if self._ending:
            logger.info("no reload: the service stops", extra={"lifecycle_pid": os.getpid()})
        elif self._next is not None:
            self._again = True
        else:
            try:
                self._next = self._start("next")
            except OSError as error:
                self._failed(f"no process could be started: {error.strerror}")
                return
            self._next.until = time.monotonic() + self._patience
            self._kept_back.clear()
            self._manager.reloading()
            logger.info("reload: process %d starts", self._next.pid, extra={"lifecycle_pid": self._next.pid})

    def _failed(self, why: str) -> None:
        if self._current is None:
            logger.error("reload failed: %s; nobody serves", why, extra={"lifecycle_pid": os.getpid()})
            return
        pid = self._current.pid
        logger.error("reload failed: %s; process %d goes on serving", why, pid, extra={"lifecycle_pid": pid})
        self._manager.go_on(self._current.status)

    def _reload_again(self) -> None:
        again, self._again = self._again, False
        if again:
            self._reload()

    def _promote(self, child: _Child) -> None:
        """It serves now: let the one before leave."""
        before, self._current, self._next = self._current, child, None
        child.until = None
        for number in self._kept_back:  # the one before leaves the listeners, so the stop would be nobody's
            child.channel.send("signal", str(number))
        self._manager.reloaded(child.status)
        if before is not None:
            before.channel.send("leave", str(child.pid))
        logger.info(
            "reload: process %d serves, process %s finishes what it has",
            child.pid, before.pid if before is not None else "(none)", extra={"lifecycle_pid": child.pid},
        )  # fmt: skip
        self._reload_again()

    def _end(self) -> None:
        """The service stops: whoever serves is to be the last that has the listeners."""
        self._ending = True
        for sock in (*self._ours, *self._given):
            sock.close()
        self._keep_probes([])
        if self._next is not None:
            self._next.until = None  # its own grace period bounds it now
            self._next.signal(signal.SIGTERM)

    def _keep_probes(self, descriptors: list[int]) -> None:
        for descriptor in self._probes:
            os.close(descriptor)
        self._probes = descriptors

    # -- what happens -----------------------------------------------------------------------------------------------

    def _receive(self, number: int) -> None:
        if number == self._reload_on:
            self._reload()
        elif number != signal.SIGCHLD:
            first = number in _STOPPING and self._passed_on.isdisjoint(_STOPPING)
            self._passed_on.add(number)
            for child in self._children.values():
                # Not to one that is about to serve: if the service stops, it is told when that is known.
                if child is self._next and not self._ending:
                    self._kept_back |= {number} & _STOPPING
                    continue
                if first and child.hears:
                    child.channel.send("signal", str(number))
                else:
                    child.signal(number)
            if number in _STOPPING and self._current is None and not self._ending:
                self._end()  # there is nobody to say that it stops

    def _hear(self, child: _Child) -> None:
        messages = child.channel.receive()
        if messages is None:
            child.channel.close()
            return
        for word, text, descriptors in messages:
            heeded = not self._ending and (word == "probes" or (word == "ready" and child is self._next))
            if heeded and descriptors:
                self._keep_probes(descriptors)
            else:
                for descriptor in descriptors:
                    os.close(descriptor)
            if word == "ready" and heeded:
                self._promote(child)
            elif word == "begun":
                child.hears = True
            elif word == "waiting":
                child.why = text
            elif word == "notify":
                child.status = next((line for line in text.split("\n") if line.startswith("STATUS=")), child.status)
                if child is self._current:
                    self._manager.tell(text)
            elif word == "stopping":
                self._answer(child)

    def _answer(self, child: _Child) -> None:
        """A process stops, and waits to hear whether the listeners are its to close.

        They are another's where one serves. This one may have begun to accept all the same: it was ready at the moment
        when it was given up.
        """
        if child is self._current or self._current is None:
            self._end()
        if self._current is None or self._ending:
            child.channel.send("closed")
        else:
            child.channel.send("leave", str(self._current.pid))

    def _reap(self) -> None:
        # Looked at without being taken away, because it is Popen that knows of ours; all others are left to PID 1.
        with contextlib.suppress(ChildProcessError):
            while (gone := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                child = self._children.pop(gone.si_pid, None)
                if child is None:
                    os.waitpid(gone.si_pid, 0)
                else:
                    self._gone(child, child.popen.wait())

    def _gone(self, child: _Child, code: int) -> None:
        child.channel.close()
        if child is self._next:
            self._next = None
            if self._ending:
                return
            if self._current is None:
                self._code = code
                return
            self._failed(f"process {child.pid} {_ended(code)} before it was ready")
            self._reload_again()
        elif child is self._current:
            self._code = code
            self._current = None
            if self._ending:
                return
            if -code in self._passed_on:  # before it could handle it
                self._end()
                return
            logger.error("process %d %s unasked", child.pid, _ended(code), extra={"lifecycle_pid": child.pid})
            if self._next is None:
                self._end()

    def _pause(self) -> float | None:
        """Milliseconds until a process is to be ready, or gone."""
        times = [child.until for child in self._children.values() if child.until is not None]
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    def _look_at_the_clock(self) -> None:
        for child in self._children.values():
            if child.until is None or child.until > time.monotonic():
                continue
            if child is not self._next:
                child.until = None
                child.signal(signal.SIGKILL)
                continue
            # As long once more for its own stop; it has been given nothing that could be lost.
            child.until = time.monotonic() + self._patience
            child.signal(signal.SIGTERM)
            self._next = None
            self._failed(f"process {child.pid} was not ready within {self._patience:g} s ({child.why})")
            self._reload_again()
            return  # which has changed the children


class _Manager:
    """systemd, if it listens."""

    def __init__(self, name: str) -> None:
        self._name = f"\0{name[1:]}" if name.startswith("@") else name
        self._ready = False

    def tell(self, *lines: str) -> None:
        """Say something; a manager that does not read holds this up for a moment, and then has not heard it."""
        text = "\n".join(filter(None, lines))
        self._ready = self._ready or "READY=1" in text.split("\n")
        if self._name[:1] in ("/", "\0"):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_MANAGERS_TIME)
                sock.sendto(text.encode(errors="replace"), self._name)

    def reloading(self) -> None:
        """A reload begins; before the service is ready there is none."""
        if self._ready:
            self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def go_on(self, status: str) -> None:
        """A reload is over, and the service is as it was."""
        if self._ready:
            self.tell("READY=1", status)

    def reloaded(self, status: str) -> None:
        """It is over, and another process is ready."""
        self.tell("READY=1", status)


def _ended(code: int) -> str:
    return f"left with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _catch(reload_on: int) -> int:
    """Let signals come through a pipe; return the end to read."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in {*_SIGNALS, signal.SIGCHLD, reload_on}:
        # What whoever started us wants to be ignored (nohup) stays so, but for what is asked for.
        if number == reload_on or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)
    return read


def _first_environment() -> dict[bytes, bytes]:
    """The environment as this process found it: what has been read from ``.env`` files since is to be read anew."""
    own = set(_activation.VARIABLES)
    if os.environ.get("WATCHDOG_PID") == str(os.getpid()):
        own.add("WATCHDOG_PID")  # it is the process that serves whose heart is listened to
    environ = dict(os.environb)
    with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
        environ = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    return {name: value for name, value in environ.items() if os.fsdecode(name) not in own}


def _directory() -> str:
    """The working directory, by the path that led to it."""
    path = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(path) and os.path.samefile(path, "."):
            return path
    return os.getcwd()


def open_listeners(
    server: str, host: str | None, port: int | None, options: dict[str, Any], descriptors: Iterable[int]
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Listen as the server would, or take what was passed on; what is ours, and what is somebody else's.

    :raises ValueError: an option or a descriptor is wrong.
    :raises RuntimeError: the server is not installed.
    :raises OSError: an address cannot be listened on.
    """
    if descriptors:
        options = {**options, "sockets": _activation.listeners(descriptors)}
    options = _activation.with_passed_on(host, port, options)
    given: list[socket.socket] = options.get("sockets", [])
    runner = servers.create(server, lambda environ, start: [], host, port, lambda path: None, options)
    ours = [] if given else [sock.dup() for sock in runner.listeners()]
    runner.hold_back()
    runner.close()
    return ours, given
