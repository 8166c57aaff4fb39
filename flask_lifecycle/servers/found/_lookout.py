"""Looks out for a server that begins to serve, so that the start-up need not wait for the first request.

With ``init_app`` alone nobody tells when the server listens, and a kubelet that asks the probe listener only would wait
for ever. So a thread looks whether the process has got a listening socket, which takes a tenth of a millisecond, and
only where there is one for a server of a kind that we know, which takes as long as a request. It does so with pauses
that grow to a second, and begins anew with short ones when a further socket listens. A listener under which nothing is
found after a few searches belongs to something else: a reloader's parent, a master, a metrics server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from . import Found, find, listeners

_FIRST, _LONGEST = 0.02, 1.0
# Two seconds: what is between the bind and the making of the server's object, in whatever order, is milliseconds.
_SEARCHES = 8
# An application may load its models for minutes after init_app. If it takes longer, its first request begins the start.
_IN_ALL = 300.0


class LookOut:
    """Looks until a server serves, nobody wants one any more, or the time is over.

    :param wanted: whether anybody still waits for the server.
    :param undisturbed: is held while it looks, so that nobody forks with an import half done.
    """

    def __init__(self, wanted: Callable[[], bool], undisturbed: AbstractContextManager[object]) -> None:
        self._wanted = wanted
        self._undisturbed = undisturbed
        self._seen: frozenset[int] = frozenset()
        self._searches = 0
        self._pause = _FIRST
        self._found: Found | None = None

    def wait(self) -> bool:
        """Block until a server serves; ``False`` if there is none."""
        until = time.monotonic() + _IN_ALL
        never = threading.Event()
        while self._wanted() and time.monotonic() < until:
            with self._undisturbed:
                if self._look():
                    return True
            never.wait(self._pause)
            self._pause = min(_LONGEST, 2 * self._pause)
        return False

    def _look(self) -> bool:
        seen = listeners()
        if seen != self._seen:
            self._seen, self._searches, self._pause = seen, 0, _FIRST
            self._found = None
        if self._found is None and seen and self._searches < _SEARCHES:
            self._searches += 1
            self._found = find()
        return self._found is not None and self._found.serving()
