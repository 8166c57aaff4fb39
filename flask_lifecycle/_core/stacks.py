"""What a thread is at: its name and its stack, for the list of what holds up a stop."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback

# The innermost frames; those above them are the server's and the framework's.
_FRAMES = 20


class Threads:
    """The threads of one moment. Any thread may make one.

    :param stacks: whether their stacks are wanted as well, which takes a look into the source files.
    """

    def __init__(self, stacks: bool = False) -> None:
        self._names = {thread.ident: thread.name for thread in threading.enumerate()}
        self._frames = sys._current_frames() if stacks else {}
        self._stacks: dict[int, str] = {}  # thousands of work items may be of one thread

    def name(self, ident: int | None) -> str:
        """What a thread is called; empty if it has ended."""
        return self._names.get(ident, "")

    def stack(self, ident: int | None) -> str:
        """Its stack, the innermost call last; empty if it has ended, or if stacks are not wanted."""
        if ident is None or ident not in self._names or ident not in self._frames:
            return ""
        if ident not in self._stacks:
            self._stacks[ident] = ""
            with contextlib.suppress(Exception):  # it goes on meanwhile
                self._stacks[ident] = "".join(traceback.format_stack(self._frames[ident], _FRAMES))
        return self._stacks[ident]
