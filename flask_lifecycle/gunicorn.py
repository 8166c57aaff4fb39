"""Hooks for ``gunicorn.conf.py``, which make a stop of gunicorn lose nothing::

    from flask_lifecycle.gunicorn import *

Whoever has a hook of the same name calls ours in it::

    from flask_lifecycle import gunicorn as lifecycle_hooks

    def worker_exit(server, worker):
        lifecycle_hooks.worker_exit(server, worker)
        ...

How it works is told in ``servers/gunicorn.py``.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from ._deadline import Deadline
from ._process import this_process
from ._state import logger
from .servers._arbiter import Master
from .servers._board import ABSENT, CLEAN, SERVING, UNCLEAN, Board
from .servers.gunicorn import Worker, closing_answers, warn_of_timeout

__all__ = ["on_exit", "post_fork", "post_request", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]


# Whoever signals all processes does so within microseconds; the master may be busy with a reload of its own log.
_MOMENT = 0.5
_STARTS = ("startup", "task")


class _Here:
    """What the hooks of this process share. The master's is forked into its workers, which have a part as well."""

    board: Board | None = None
    master: Master | None = None
    part: _Part | None = None


class _Part:
    """One worker's."""

    def __init__(self, worker: Any, board: Board) -> None:
        self.worker = worker
        self.board = board
        self.carrier = Worker(worker, board, lambda: this_process.coordinator.in_flight)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def begin(self) -> None:
        settings = [member.settings for member in this_process.members()]
        self.board.publish(settings, any(member.hooks.for_group for member in this_process.members()))
        if self.worker.age == 1:  # all have the same, and one says so
            warn_of_timeout(self.worker.cfg.graceful_timeout, settings)
        self.carrier.mark(SERVING)
        self.worker.wsgi = closing_answers(self.worker.wsgi, self.carrier)
        this_process.coordinator.last_of_group = self._last_of_group
        this_process.carry(self.carrier)
        signal.signal(signal.SIGTERM, self._signalled)
        signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn has it, which undoes what signal() does
        if not self.worker.alive:  # signalled while it loaded the application
            self.worker.alive = True
            self._signalled(signal.SIGTERM, None)
        threading.Thread(target=self._watch, name="lifecycle-gunicorn", daemon=True).start()

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        if self.board.dismissed(self.worker.age):
            self.carrier.leave(signum, frame)
        self.recycle()

    def recycle(self) -> None:
        """gunicorn ends this worker, or somebody does: wake the watcher. For a signal handler as well."""
        os.write(self._wake_write, b"x")

    def _watch(self) -> None:
        """Begin the shutdown when the master says so, or gunicorn ends this worker."""
        if self._all_stop():
            late = time.monotonic() - self.board.told_at
            this_process.stop("SIGTERM", signal.SIGTERM, delay=True, late=late)
            while not self._leaves():
                self._wait_for(self._wake_read)
                os.read(self._wake_read, 1)
        else:
            this_process.stop("gunicorn ends this worker", delay=False)
        this_process.coordinator.end_delay()
        self.carrier.leaving()
        self.carrier.hang_up_waiting()

    def _last_of_group(self, deadline: Deadline) -> bool:
        return self.board.last(self.worker.age, deadline.remaining() / 2)

    def _leaves(self) -> bool:
        return not self.worker.alive or self.board.dismissed(self.worker.age)

    def _all_stop(self) -> bool:
        """Wait until all workers stop, or this one leaves; say whether it is all."""
        if self.board.fileno() in self._wait_for(self.board.fileno(), self._wake_read):
            return True
        os.read(self._wake_read, 1)
        if self._leaves():
            return False
        if self.board.wait(_MOMENT):
            return True
        self.carrier.end_loop()
        return False

    @staticmethod
    def _wait_for(*descriptors: int) -> list[int]:
        poll = select.poll()  # and not a read, which would stop all greenlets where threads are such
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll()]

    def end(self) -> bool:
        """gunicorn's loop has ended: hold the main thread until the shutdown is over; say whether the start failed."""
        self.carrier.left()
        this_process.stop("gunicorn ends this worker", delay=False)
        this_process.coordinator.end_delay()
        report = this_process.let_go(self.carrier.live)
        self.carrier.mark(CLEAN if report is not None and report.exit_code == 0 else UNCLEAN)
        return report is not None and any(h.kind in _STARTS and h.outcome != "ok" for h in report.hooks)


_here = _Here()


def when_ready(server: Any) -> None:
    """The master listens: take over what SIGTERM does, before the first worker is forked."""
    this_process.relay.restore()  # an application that was loaded here has taken signals that are not its own
    _here.board = Board()
    _here.master = Master(server, _here.board)
    _here.master.install()
    board = _here.board
    this_process.coordinator.last_of_group = lambda deadline: board.claim()  # what was warmed up here ends at its exit
    if this_process.members():
        _warn_of_threads()


def _warn_of_threads() -> None:
    """Say which threads the application, loaded before the fork, has started for the master alone."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    names = [name for name in others if not name.startswith("lifecycle-")]
    if names:
        logger.warning(
            "threads that were started before the fork are in no worker: %s; start them in an on_startup function, or"
            " load the application without --preload.",
            ", ".join(names), extra={"lifecycle_threads": names},
        )  # fmt: skip


def pre_fork(server: Any, worker: Any) -> None:
    """A worker is about to be forked: its byte may be that of one that has gone."""
    if _here.board is not None:
        _here.board.clear(worker.age)


def post_fork(server: Any, worker: Any) -> None:
    """This is a worker: the master's timer is not its own."""
    _here.master = None
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def post_worker_init(worker: Any) -> None:
    """The application is loaded: begin to serve it."""
    board = _here.board
    if board is None:
        return
    if not this_process.members():
        board.set(worker.age, ABSENT)
    elif worker.alive or not board.dismissed(worker.age) or board.told_at:  # else others serve, and it has not begun
        _here.part = _Part(worker, board)
        _here.part.begin()


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """A request has ended, perhaps the last of ``max_requests``."""
    part = _here.part
    if part is not None and not worker.alive:
        part.recycle()


def worker_exit(server: Any, worker: Any) -> None:
    """A worker leaves: drain it and run its hooks; if it could not start, gunicorn is to stop, as if it could not be
    loaded. gunicorn calls this in the master as well, of one that is gone.
    """
    part = _here.part
    if part is not None and worker is part.worker and part.end():
        sys.exit(server.WORKER_BOOT_ERROR)  # or it would be replaced for ever


def on_exit(server: Any) -> None:
    """The master leaves: with 1 if a worker has left something behind, or nobody has done what was to be done once."""
    master, board = _here.master, _here.board
    if master is None or board is None:
        return
    done = True
    if board.claim():
        done = this_process.coordinator.act_for_group(max(_MOMENT, master.left))
        if not this_process.members():
            server.log.error("No worker was left to run the on_shutdown functions of the process group.")
    if master.exit_code or not done:
        sys.exit(1)
