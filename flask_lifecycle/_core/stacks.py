"""The name and the stack of a thread, for the list of requests and work that delay a shutdown."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback

# The innermost frames; the outer ones belong to the server and the framework.
_FRAMES = 20


class Threads:
    """A snapshot of all threads. Any thread may make one.

    :param stacks: include the stacks, which reads the source files.
    """

    def __init__(self, stacks: bool = False) -> None:
        self._names = {thread.ident: thread.name for thread in threading.enumerate()}
        self._frames = sys._current_frames() if stacks else {}
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
            with contextlib.suppress(Exception):  # the thread runs on meanwhile
                self._stacks[ident] = "".join(traceback.format_stack(self._frames[ident], _FRAMES))
        return self._stacks[ident]
