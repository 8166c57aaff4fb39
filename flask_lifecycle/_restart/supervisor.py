"""The supervisor: it has the listeners, starts the workers that serve, and forwards signals.

``_restart/worker.py`` lists their messages. The supervisor never loads the application, so no deployment can break it
and it needs no restart: each worker is a new interpreter with the supervisor's own command, environment and directory.
(``.env`` files are read again. A directory that was reached by a symbolic link, as deployments do, is reached by it
again, if ``PWD`` names it.)

One thread, one loop. Signal handlers do nothing; the interpreter writes the numbers of signals into a pipe. The reload
signal is handled here, every other one is forwarded: the worker stops and reports it. A second one means to exit at
once, also for workers that are stopping already. systemd sends a signal to all processes of a service, and a forwarded
one arrives a moment later; so the first stop signal is forwarded as a message, and a worker that has got the signal as
well does not count it as a second one. Each worker has its own session: Ctrl-C on a terminal reaches it only this way.

systemd sees the supervisor as the main process of the service, so the supervisor forwards the messages of the current
worker only, because another one may stop while the service continues. ``RELOADING=1`` and ``READY=1`` report a reload.

The supervisor ends with the last worker, and in the same way: with its exit code, or by the same signal. A worker that
dies without a request to stop is not replaced, unless the next one is starting: the exit code reports the failure, and
the process manager decides how often to retry. As PID 1 the supervisor reaps orphaned processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from typing import Any

from .. import _servers
from .._core.log import logger
from .._core.signals import die_by
from .._servers import bind
from .worker import VARIABLE, Channel

# Signals that are forwarded, unless one of them is the reload signal.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))
_NOTIFY_TIMEOUT = 0.5  # seconds for systemd to take a message


@dataclasses.dataclass(eq=False)
class _Worker:
    """A worker that serves, is starting, or is stopping."""

    popen: subprocess.Popen[bytes]
    channel: Channel
    receives: bool = False  # messages
    why: str = "it has sent no message"  # why it is not ready
    until: float | None = None  # when it must be ready, or gone
    status: str = ""  # its last status for systemd

    @property
    def pid(self) -> int:
        return self.popen.pid

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Supervisor:
    """Serves with one worker after the other.

    :param ours: listeners that the workers close at the end.
    :param given: listeners of another process.
    :param reload_on: the signal that starts the next worker.
    :param patience: seconds within which it must be ready.
    """

    def __init__(
        self, ours: Collection[socket.socket], given: Collection[socket.socket], reload_on: int, patience: float
    ) -> None:
        self._ours, self._given = list(ours), list(given)
        self._probes: list[int] = []  # the probe listener, once there is one
        self._reload_on = reload_on
        self._patience = patience
        self._command = [sys.executable, *sys.orig_argv[1:]]
        self._environ = _first_environment()
        self._directory = _directory()
        self._workers: dict[int, _Worker] = {}
        self._current: _Worker | None = None
        self._next: _Worker | None = None
        self._again = False  # another reload was requested meanwhile
        self._ending = False
        self._forwarded: set[int] = set()
        self._withheld: set[int] = set()  # stop signals that the next worker has not got
        self._systemd = _Systemd(os.environ.get("NOTIFY_SOCKET", ""))
        self._code = 0

    def run(self) -> int:
        """Serve until the last worker is gone; return the exit code. For the main thread only."""
        wake = _catch(self._reload_on)
        self._current = self._start("first")
        while self._workers:
            poll = select.poll()
            channels = {worker.channel.socket.fileno(): worker for worker in self._workers.values()}
            channels.pop(-1, None)  # closed
            for descriptor in (wake, *channels):
                poll.register(descriptor, select.POLLIN)
            ready = [descriptor for descriptor, _event in poll.poll(self._pause())]
            for worker in [channels[descriptor] for descriptor in ready if descriptor in channels]:
                self._handle(worker)
            if wake in ready:
                for number in os.read(wake, 4096):
                    self._receive(number)
            self._reap()
            self._check_times()
        if self._code >= 0:
            return self._code
        with contextlib.suppress(OSError):  # SIGKILL, whose action cannot be set
            die_by(-self._code)
        return 128 - self._code  # it does not kill PID 1

    # -- workers --------------------------------------------------------------------------------------------------

    def _start(self, place: str) -> _Worker:
        """Start a worker.

        :raises OSError: the process cannot be started.
        """
        here, there = socket.socketpair()
        environ = {**self._environ, os.fsencode(VARIABLE): str(there.fileno()).encode()}
        try:
            popen = subprocess.Popen(
                self._command, env=environ, cwd=self._directory, pass_fds=[there.fileno()], start_new_session=True
            )
        except OSError:
            here.close()
            raise
        finally:
            there.close()
        worker = self._workers[popen.pid] = _Worker(popen, Channel(here))
        sockets = [sock.fileno() for sock in (*self._ours, *self._given)]
        text = f"{place} {len(self._ours)} {len(self._probes)}"
        worker.channel.send("serve", text, [*sockets, *self._probes])
        return worker

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
            self._withheld.clear()
            self._systemd.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", if_ready=True)
            logger.info("reload: process %d starts", self._next.pid, extra={"lifecycle_pid": self._next.pid})

    def _failed(self, why: str) -> None:
        if self._current is None:
            logger.error("reload failed: %s; no process serves", why, extra={"lifecycle_pid": os.getpid()})
            return
        pid = self._current.pid
        logger.error("reload failed: %s; process %d continues to serve", why, pid, extra={"lifecycle_pid": pid})
        self._systemd.send("READY=1", self._current.status, if_ready=True)

    def _reload_again(self) -> None:
        again, self._again = self._again, False
        if again:
            self._reload()

    def _promote(self, worker: _Worker) -> None:
        """The next worker serves now: let the previous one leave."""
        before, self._current, self._next = self._current, worker, None
        worker.until = None
        for number in self._withheld:  # the previous worker leaves the listeners, so no other worker would stop
            worker.channel.send("signal", str(number))
        self._systemd.send("READY=1", worker.status)
        if before is not None:
            before.channel.send("leave", str(worker.pid))
        logger.info(
            "reload: process %d serves, process %s finishes its requests",
            worker.pid, before.pid if before is not None else "(none)", extra={"lifecycle_pid": worker.pid},
        )  # fmt: skip
        self._reload_again()

    def _end(self) -> None:
        """The service stops: only the current worker keeps the listeners."""
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

    # -- events ----------------------------------------------------------------------------------------------------

    def _receive(self, number: int) -> None:
        if number == self._reload_on:
            self._reload()
        elif number != signal.SIGCHLD:
            first = number in _STOPPING and self._forwarded.isdisjoint(_STOPPING)
            self._forwarded.add(number)
            for worker in self._workers.values():
                # Not to a worker that is starting: if the service stops, it is stopped when that is certain.
                if worker is self._next and not self._ending:
                    self._withheld |= {number} & _STOPPING
                    continue
                if first and worker.receives:
                    worker.channel.send("signal", str(number))
                else:
                    worker.signal(number)
            if number in _STOPPING and self._current is None and not self._ending:
                self._end()  # no worker can report the shutdown

    def _handle(self, worker: _Worker) -> None:
        messages = worker.channel.receive()
        if messages is None:
            worker.channel.socket.close()
            return
        for word, text, descriptors in messages:
            accepted = not self._ending and (word == "probes" or (word == "ready" and worker is self._next))
            if accepted and descriptors:
                self._keep_probes(descriptors)
            else:
                for descriptor in descriptors:
                    os.close(descriptor)
            if word == "ready" and accepted:
                self._promote(worker)
            elif word == "begun":
                worker.receives = True
            elif word == "waiting":
                worker.why = text
            elif word == "notify":
                worker.status = next((line for line in text.split("\n") if line.startswith("STATUS=")), worker.status)
                if worker is self._current:
                    self._systemd.send(text)
            elif word == "stopping":
                self._answer(worker)

    def _answer(self, worker: _Worker) -> None:
        """A worker stops, and waits for the answer whether to close the listeners.

        If another one serves, it does not. This one may have begun to accept: it was ready at the moment when it was
        given up.
        """
        if worker is self._current or self._current is None:
            self._end()
        if self._current is None or self._ending:
            worker.channel.send("closed")
        else:
            worker.channel.send("leave", str(self._current.pid))

    def _reap(self) -> None:
        # Only peeked at, because Popen reaps the workers; all others are orphans, which PID 1 must reap.
        with contextlib.suppress(ChildProcessError):
            while (gone := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                worker = self._workers.pop(gone.si_pid, None)
                if worker is None:
                    os.waitpid(gone.si_pid, 0)
                else:
                    self._gone(worker, worker.popen.wait())

    def _gone(self, worker: _Worker, code: int) -> None:
        worker.channel.socket.close()
        if worker is self._next:
            self._next = None
            if self._ending:
                return
            if self._current is None:
                self._code = code
                return
            self._failed(f"process {worker.pid} {_ended(code)} before it was ready")
            self._reload_again()
        elif worker is self._current:
            self._code = code
            self._current = None
            if self._ending:
                return
            if -code in self._forwarded:  # the signal came before its handler
                self._end()
                return
            logger.error("process %d %s unexpectedly", worker.pid, _ended(code), extra={"lifecycle_pid": worker.pid})
            if self._next is None:
                self._end()

    def _pause(self) -> float | None:
        """Milliseconds until a worker must be ready, or gone."""
        times = [worker.until for worker in self._workers.values() if worker.until is not None]
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    def _check_times(self) -> None:
        for worker in list(self._workers.values()):
            if worker.until is None or worker.until > time.monotonic():
                continue
            if worker is self._next:
                # The same time again for its own shutdown; it has accepted nothing that could be lost.
                worker.until = time.monotonic() + self._patience
                worker.signal(signal.SIGTERM)
                self._next = None
                self._failed(f"process {worker.pid} was not ready within {self._patience:g} s ({worker.why})")
                self._reload_again()
            else:
                worker.until = None
                worker.signal(signal.SIGKILL)


class _Systemd:
    """Messages to systemd, if it listens."""

    def __init__(self, name: str) -> None:
        self._name = f"\0{name[1:]}" if name.startswith("@") else name
        self._ready = False

    def send(self, *lines: str, if_ready: bool = False) -> None:
        """Send a message; if systemd does not read it in time, it is lost.

        :param if_ready: only if the service is ready.
        """
        if if_ready and not self._ready:
            return
        text = "\n".join(filter(None, lines))
        self._ready = self._ready or "READY=1" in text.split("\n")
        if self._name[:1] in ("/", "\0"):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_NOTIFY_TIMEOUT)
                sock.sendto(text.encode(errors="replace"), self._name)


def _ended(code: int) -> str:
    return f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _catch(reload_on: int) -> int:
    """Receive signals through a pipe; return its read end."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in {*_SIGNALS, signal.SIGCHLD, reload_on}:
        # A signal that was ignored at the start (nohup) stays ignored, except the reload signal.
        if number == reload_on or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)
    return read


def _first_environment() -> dict[bytes, bytes]:
    """The environment at the start of this process, so that workers read ``.env`` files again."""
    own = set(bind.VARIABLES)
    if os.environ.get("WATCHDOG_PID") == str(os.getpid()):
        own.add("WATCHDOG_PID")  # the worker sends the heartbeats
    environ = dict(os.environb)
    with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:
        environ = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    return {name: value for name, value in environ.items() if os.fsdecode(name) not in own}


def _directory() -> str:
    """The working directory, by its symbolic path."""
    path = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(path) and os.path.samefile(path, "."):
            return path
    return os.getcwd()


def open_listeners(
    host: str | None, port: int | None, options: dict[str, Any], descriptors: Iterable[int]
) -> tuple[list[socket.socket], list[socket.socket]]:
    """Listen as waitress would, or use passed listeners; ours, and those of another process.

    :raises ValueError: an option or a descriptor is wrong.
    :raises RuntimeError: waitress is not installed.
    :raises OSError: an address cannot be listened on.
    """
    if descriptors:
        options = {**options, "sockets": bind.listeners(descriptors)}
    options = bind.with_passed_on(host, port, options)
    given: list[socket.socket] = options.get("sockets", [])
    runner: Any = _servers.create("waitress", lambda environ, start: [], host, port, options)
    ours = [] if given else [sock.dup() for sock in runner.listeners()]
    runner.hold_back()
    runner.close()
    return ours, given
