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

    def name(self, ident: int) -> str:
        """What a thread is called; empty if it has ended."""
        return self._names.get(ident, "")

    def stack(self, ident: int) -> str:
        """Its stack, the innermost call last; empty if it has ended, or if stacks are not wanted."""
        frame = self._frames.get(ident)
        if frame is None or ident not in self._names:
            return ""
        with contextlib.suppress(Exception):  # it goes on meanwhile
            return "".join(traceback.format_stack(frame, _FRAMES))
        return ""  # pragma: no cover  (no way is known to make it fail)
