"""gunicorn's master, told to wait before it stops; see ``gunicorn.py`` for what it waits for and why."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from types import FrameType
from typing import Any

from .._sockets import has_input, socket_identity, unlink
from ._board import ABSENT, CLEAN, DELAYED, DELAYING, GONE, SERVING, Board
from ._closing import CLOSING_BOUND, QUIET_PERIOD, deafen, handshakes

_TICK = 0.005
# gunicorn 23 forgets a signal if five others wait already.
_AGAIN = 1.0
# gunicorn looks each 0.1 s whether its workers have gone, and once more: that is most of a stop that has nothing to do.
_PROMPT = 0.3
# A worker that is busy in C code may hear late that the delay begins.
_LATE = 1.0


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
            # Where it is not deaf clients that come without end would hold it for ever.
            return self.method == "quiet period" and now - self._began >= 2 * CLOSING_BOUND
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
        self._pid = os.getpid()
        self._began = 0.0
        self._finished = self._stopping = self._told = False
        self._failure: Exception | None = None  # for which gunicorn itself would stop at once
        self._listeners: list[Listener] | None = None
        self._stopped: list[int] = []  # the ages of the workers that were to end clean
        self._ended: dict[int, int] = {}  # what they said last, by their ages
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

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A child that has just been forked, and is to have handlers of its own in a moment: gunicorn would forget
            # the signal, and ours would stop everybody. It has nothing to lose.
            os._exit(0)
        self._begin()
        self._server.signal(signum, frame)

    def _begin(self) -> None:
        """Tell the workers, and look from now on whether all is done; also while a reload holds the main loop."""
        if not self._began:
            self._board.tell()
            self._began = self._board.told_at
            signal.setitimer(signal.ITIMER_REAL, _TICK)

    def term(self) -> None:
        """What gunicorn's main loop does on SIGTERM: first begin, in the end stop."""
        self._begin()  # it may have come before the hooks
        if self._finished:
            self._log()
            if self._failure is not None:
                raise self._failure
            self._halt()

    def kill_worker(self, pid: int, signum: int) -> None:
        """What gunicorn does to end a worker: it is to know that this comes from here."""
        if self._told and signum == signal.SIGTERM:
            return  # one is enough: a second would kill a worker whose interpreter is ending
        worker = self._server.WORKERS.get(pid)
        if worker is not None and signum == signal.SIGTERM:
            self._board.dismiss(worker.age)
        self._kill(pid, signum)
        if worker is not None and pid not in self._server.WORKERS:
            self._note_end(worker.age)

    def reap_workers(self) -> None:
        """What gunicorn does when a worker has ended. If it could not start all stop, and here they do so as ever."""
        from gunicorn.errors import HaltServer

        before = self._words()
        try:
            self._reap()
        except HaltServer as failure:
            if not self._began and not self._stopping:
                self._failure = failure
                self._begin()
        for age in before.keys() - self._words():
            self._note_end(age)

    def _note_end(self, age: int) -> None:
        self._ended[age] = self._board.get(age)
        self._board.set(age, GONE)

    def stop(self, graceful: bool = True) -> None:
        """What gunicorn does to stop, whyever; a path that is removed already is not to be removed again."""
        self._stopping = True
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        gone = [each.listener for each in self._listeners or ()]
        self._server.LISTENERS = [each for each in self._server.LISTENERS if each not in gone]
        for listener in gone:
            listener.close()
        self._board.stops(list(self._words()))
        if graceful and self._finished:
            self._stopped = self._taking_part()
            if gone:  # else they are open until gunicorn closes them, and that it does first
                self._await_prompt_ends()
            self._bound(self._board.limits[2])
        self._stop(graceful)

    def _await_prompt_ends(self) -> None:
        """Tell the workers to end, and look closely for a moment; gunicorn waits for those that take longer."""
        self._server.kill_workers(signal.SIGTERM)
        self._told = True
        until = time.monotonic() + _PROMPT
        while self._server.WORKERS and time.monotonic() < until:
            time.sleep(_TICK)
            self._server.reap_workers()

    def _bound(self, grace: float) -> None:
        """Wait for no worker longer than it may take: one that hangs while it loads has nobody else who ends it."""
        left = max(1, math.ceil(self.left))
        if grace and self._server.cfg.graceful_timeout > left:
            self._server.cfg.set("graceful_timeout", left)

    @property
    def left(self) -> float:
        """Seconds left of the grace period."""
        grace, now = self._board.limits[2], time.monotonic()
        return grace - (now - (self._began or now))

    @property
    def exit_code(self) -> int:
        """1 if a worker has left something behind, or was killed; 0 if gunicorn has one of its own."""
        words = [self._ended.get(age, self._board.get(age)) for age in self._stopped]
        return int(self._failure is None and any(word != CLEAN for word in words))

    def _words(self) -> dict[int, int]:
        return {worker.age: self._board.get(worker.age) for worker in self._server.WORKERS.values()}

    def _taking_part(self) -> list[int]:
        return [age for age, word in self._words().items() if word not in (0, ABSENT)]

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
            signal.setitimer(signal.ITIMER_REAL, _AGAIN if done else _TICK)

    def _step(self, now: float) -> bool:
        delay, drain, _grace = self._board.limits
        # Whether a worker takes part now is not the question: all of them may have been replaced this moment.
        words = self._words().values()
        if ABSENT in words or self._nobody_serves(words):
            return True
        if self._listeners is None:
            delaying = SERVING in words or DELAYING in words
            if delaying and now - self._began < max(delay, drain) + _LATE:
                return False
            self._listeners = [Listener(each, now) for each in self._own_listeners()]
        done = [each.done(now) for each in self._listeners]  # each is to look
        # Before a worker has loaded the application nothing but gunicorn's own patience is known.
        return all(done) or now - self._began >= (drain or self._server.cfg.graceful_timeout)

    def _nobody_serves(self, words: Any) -> bool:
        """Whether workers cannot start: then those that come instead will not serve what waits either."""
        return self._failure is not None and not any(word in (SERVING, DELAYING, DELAYED) for word in words)

    def _own_listeners(self) -> list[Any]:
        """The listeners that nobody else goes on using."""
        server = self._server
        given = server.systemd or any(isinstance(address, int) for address in server.cfg.address)
        # gunicorn notes within a second that a master before this one has gone.
        others = server.reexec_pid or (server.master_pid and server.master_pid == os.getppid())
        return [] if given or others else list(server.LISTENERS)

    def _log(self) -> None:
        for each in self._listeners or ():
            # To gunicorn's log: that of the application is set up in the workers.
            self._server.log.info("listener closed (%s)", each.method)
