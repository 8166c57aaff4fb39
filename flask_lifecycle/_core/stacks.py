"""What the threads run: names, stacks and the calls of a function.

Before Python 3.12 a garbage collection may begin wherever the interpreter allocates, also where it makes the frame
object of another thread's call, and the finalizers that it calls may let other threads run. Two interleavings follow,
so no collection may run while we look (:func:`collector_paused`):

1. ``sys._current_frames()`` holds the interpreter's lock on its list of threads; a finalizer lets another thread run,
   which starts or ends and waits for that lock while it holds the GIL. The whole process stands still.
2. ``frame.f_back`` is about to make the object of a caller; a finalizer lets that thread return from the caller. The
   new object points to memory that the thread uses for other things by then.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import traceback
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from .fork import around_forks, renew_in_children

# The innermost frames; the outer ones belong to the server and the framework.
_FRAMES = 20

# Held while the collector is paused: who pauses it must find it as it was.
_pausing = threading.RLock()


def _renew() -> None:
    global _pausing
    _pausing = threading.RLock()


# A child that was forked during a pause would never collect garbage.
around_forks(lambda: _pausing.acquire(), lambda: _pausing.release())
renew_in_children(_renew)


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Let no automatic garbage collection begin in here. Any thread may enter; another one waits."""
    with _pausing:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


class Call(NamedTuple):
    """A call that a thread is in, with the local variables that it had when we looked."""

    thread: int
    variables: dict[str, Any]


def calls_of(code: CodeType, thread: int | None = None) -> list[Call]:
    """The calls of a code object that threads are in, or that one thread is in, the innermost first."""
    with collector_paused():
        return [
            Call(ident, variables)
            for ident, innermost in sys._current_frames().items()
            if thread in (None, ident)
            for variables in variables_of(code, innermost)
        ]


def variables_of(code: CodeType, innermost: FrameType | None) -> list[dict[str, Any]]:
    """The local variables of each call of a code object in one stack.

    If the stack is another thread's, no collection may run.
    """
    return [dict(frame.f_locals) for frame in callers(innermost) if frame.f_code is code]


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and its callers. If they are of another thread, no collection may run."""
    while frame is not None:
        yield frame
        frame = frame.f_back


class Threads:
    """A snapshot of all threads. Any thread may make one.

    :param stacks: include the stacks, which reads the source files.
    """

    def __init__(self, stacks: bool = False) -> None:
        self._names = {thread.ident: thread.name for thread in threading.enumerate()}
        self._frames: dict[int, FrameType] = {}
        if stacks:
            with collector_paused():
                self._frames = sys._current_frames()
        self._stacks: dict[int, str] = {}  # one thread may have thousands of work items

    def name(self, ident: int | None) -> str:
        """The name of a thread; empty if it has ended."""
        return self._names.get(ident, "")

    def stack(self, ident: int | None) -> str:
        """Its stack, the innermost call last; empty if it has ended, or without ``stacks``."""
        if ident is None or ident not in self._names or ident not in self._frames:
            return ""
        if ident not in self._stacks:
            self._stacks[ident] = ""
            with contextlib.suppress(Exception), collector_paused():  # the thread runs on meanwhile
                self._stacks[ident] = "".join(traceback.format_stack(self._frames[ident], _FRAMES))
        return self._stacks[ident]
