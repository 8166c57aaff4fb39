"""Shuts the process down when a thread crashes, if the settings ask for it.

Theory of operation
-------------------

Python calls ``sys.excepthook`` for an uncaught exception of the main thread and ``threading.excepthook`` for one of any
other thread. Our hooks call the previous hook, so the traceback is shown as usual, and then begin the same shutdown
that a signal begins. ``init_app`` installs them, not the start of serving, because a process that runs jobs may serve
nothing. In a process that neither serves nor works (a shell, a migration) the main thread may end as it likes, and an
interactive console calls ``sys.excepthook`` for each typed mistake.

The previous hook may hang, for example on a stderr that is not read. A timer begins the shutdown then, after a second;
beginning it twice is harmless.

The interpreter begins to end as soon as ``sys.excepthook`` returns, and then every executor refuses work, so in the
main thread our hook returns when the shutdown is over.

Another package may install a hook over ours (Sentry does). We cannot remove ours then: it stays in the chain and only
calls the next one. For the same reason it is installed only once: a hook over ours calls ours, and installed again
ours would call that one.

After a fork a crash concerns only the child, not the parent's shutdown; a child that serves is watched again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .._core.feature import Feature
from .._core.hooks import HookRecord

if TYPE_CHECKING:
    from .._core.process import Process

_PATIENCE = 1.0  # seconds that the shutdown waits for the traceback; an idle process would exit before it is shown
_NO_CRASHES = (SystemExit, KeyboardInterrupt)  # these end a thread or a program intentionally


class CrashWatch(Feature):
    """The exception hooks of one process; a feature of each application that asks for them."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pid = os.getpid()
        self._watching = False
        self._main_next: Callable[..., Any] | None = None
        self._thread_next: Callable[..., Any] | None = None
        self._lock = threading.Lock()  # guards the hooks

    @classmethod
    def of(cls, application: Any) -> CrashWatch:
        """The one of the process, installed."""
        watch: CrashWatch = application.process.share(cls)
        watch.install()
        return watch

    def install(self) -> None:
        """Install the hooks. Idempotent."""
        with self._lock:
            self._watching = True
            if self._main_next is None:
                self._main_next, sys.excepthook = sys.excepthook, self._in_main
            if self._thread_next is None:
                self._thread_next, threading.excepthook = threading.excepthook, self._in_thread

    def begin(self) -> None:
        self._pid = os.getpid()

    def stop(self) -> None:
        """Remove our hooks, unless another package has installed one over them."""
        with self._lock:
            self._watching = False
            if self._main_next is not None and sys.excepthook == self._in_main:
                sys.excepthook, self._main_next = self._main_next, None
            if self._thread_next is not None and threading.excepthook == self._in_thread:
                threading.excepthook, self._thread_next = self._thread_next, None

    def _in_main(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        show = functools.partial(self._main_next or sys.__excepthook__, kind, error, trace)
        self._show(show, functools.partial(self._handle, threading.main_thread().name, kind, error, main=True))

    def _in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        show = functools.partial(self._thread_next or threading.__excepthook__, arguments)
        name = "" if arguments.thread is None else arguments.thread.name
        self._show(show, functools.partial(self._handle, name, arguments.exc_type, arguments.exc_value, main=False))

    def _show(self, show: Callable[[], object], handle: Callable[[], object]) -> None:
        """Call the previous hook, and handle the crash afterwards, or if that takes too long."""
        late = threading.Timer(_PATIENCE, handle)
        late.daemon = True
        if self._watching:
            with contextlib.suppress(RuntimeError):  # the system has no more threads
                late.start()
        try:
            show()
        finally:
            late.cancel()
            handle()

    def _handle(self, name: str, kind: type[BaseException], error: BaseException | None, *, main: bool) -> None:
        if not self._watching or self._pid != os.getpid() or issubclass(kind, _NO_CRASHES):
            return
        patterns = [pattern for member in self._process.applications() for pattern in member.settings.stop_on_crash]
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            record = HookRecord(name, "crash", "failed", 0.0, _describe(kind, error))
            self._process.crashed(f"thread {name!r} crashed: {kind.__name__}", record, main=main)


def _describe(kind: type[BaseException], error: BaseException | None) -> str:
    text = ""
    with contextlib.suppress(Exception):  # the class may be defined by the application, and raise
        text = str(error or "")
    return f"{kind.__name__}: {text}" if text else kind.__name__
