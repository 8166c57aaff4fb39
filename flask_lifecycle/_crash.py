"""A thread that died of an exception, and the shutdown that it begins where that is wanted.

Theory of operation
-------------------

Python tells ``sys.excepthook`` of what nobody caught in the main thread and ``threading.excepthook`` of any other
thread. Ours call whoever had been there first, so that the traceback is shown as ever, and then begin the same
shutdown that a signal begins. They are installed by ``init_app`` and not when the process begins to serve, because a
process that runs jobs may serve nothing. In one that neither serves nor works (a shell, a migration) the main thread's
end is the process's own affair, and an interactive console calls ``sys.excepthook`` for each mistake that is typed.

Whoever was there first may hang, as on a stderr that nobody reads. The shutdown begins all the same, from a thread that
waits for them a second; to begin it twice is harmless.

The interpreter begins to end as soon as ``sys.excepthook`` returns, and from then on every executor refuses work, so in
the main thread ours returns when the shutdown is over.

Somebody may install a hook over ours (Sentry does), and then it is not for us to take away: ours stays in the chain and
does nothing more than to call the next. For the same reason it is put there only once: whoever took it along calls it,
and would be called by it.

After a fork a crash is the child's own, in which the parent's shutdown has no part; a child that serves is one that has
begun to, and is looked after.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Protocol

from ._hooks import HookRecord
from ._state import State

# How long the shutdown waits for the traceback to be shown, in seconds; an idle process would be gone before it.
_PATIENCE = 1.0
# What a thread and a program are ended by on purpose.
_NO_CRASHES = (SystemExit, KeyboardInterrupt)


class Process(Protocol):
    """What is asked of the process."""

    def patterns_of_crashes(self) -> Iterable[str]:
        """The patterns that the applications have for the names of threads."""

    def crashed(self, reason: str, record: HookRecord, *, main: bool) -> None:
        """Begin the shutdown; in the main thread, block until it is over."""


class CrashWatch:
    """The hooks of one process; a companion of each application that wants them.

    :param process: whose threads they are.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pid = os.getpid()
        self._watching = False
        self._main_next: Callable[..., Any] | None = None
        self._thread_next: Callable[..., Any] | None = None
        self._lock = threading.Lock()  # guards installing against itself

    def install(self) -> None:
        """Put the hooks in; twice is harmless."""
        with self._lock:
            self._watching = True
            if self._main_next is None:
                self._main_next, sys.excepthook = sys.excepthook, self._in_main
            if self._thread_next is None:
                self._thread_next, threading.excepthook = threading.excepthook, self._in_thread

    def begin(self) -> None:
        self._pid = os.getpid()

    def state_changed(self, new: State, reason: str) -> None:
        pass

    def end(self) -> None:
        """Take out what is still there and ours."""
        with self._lock:
            self._watching = False
            if self._main_next is not None and sys.excepthook == self._in_main:
                sys.excepthook, self._main_next = self._main_next, None
            if self._thread_next is not None and threading.excepthook == self._in_thread:
                threading.excepthook, self._thread_next = self._thread_next, None

    def _in_main(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """What ``sys.excepthook`` is."""
        show = functools.partial(self._main_next or sys.__excepthook__, kind, error, trace)
        self._show(show, functools.partial(self._judge, threading.main_thread().name, kind, error, main=True))

    def _in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        """What ``threading.excepthook`` is."""
        show = functools.partial(self._thread_next or threading.__excepthook__, arguments)
        name = "" if arguments.thread is None else arguments.thread.name
        self._show(show, functools.partial(self._judge, name, arguments.exc_type, arguments.exc_value, main=False))

    def _show(self, show: Callable[[], object], judge: Callable[[], object]) -> None:
        """Have an exception shown by whoever was there first, and judge it then, or when that takes too long."""
        late = threading.Timer(_PATIENCE, judge)
        late.daemon = True
        if self._watching:
            with contextlib.suppress(RuntimeError):  # no thread to be had
                late.start()
        try:
            show()
        finally:
            late.cancel()
            judge()

    def _judge(self, name: str, kind: type[BaseException], error: BaseException | None, *, main: bool) -> None:
        if not self._watching or self._pid != os.getpid() or issubclass(kind, _NO_CRASHES):
            return
        if any(fnmatchcase(name, pattern) for pattern in self._process.patterns_of_crashes()):
            record = HookRecord(name, "crash", "failed", 0.0, _describe(kind, error))
            self._process.crashed(f"thread {name!r} crashed: {kind.__name__}", record, main=main)


def _describe(kind: type[BaseException], error: BaseException | None) -> str:
    text = ""
    with contextlib.suppress(Exception):  # it is the application's, and may raise
        text = str(error or "")
    return f"{kind.__name__}: {text}" if text else kind.__name__
