"""Those who watch the status page, and how they are told of the end.

Theory of operation
-------------------

A page that asked every two seconds would learn nothing of a stop that takes one, and its next question would meet a
closed port: an error in the console of a browser that did nothing wrong. So a question is *held*: it is answered as
soon as the state changes, and after two seconds at the latest; the page shows the answer and asks again at once. From
the moment when it is opened there is, but for the milliseconds in between, always a question that the end can be
answered to. The page says which changes it has seen, so that one which falls into those milliseconds is not missed.

Which questions may be held is for those to say who know in whose thread they come: a thread of a probe's own may
wait, a worker of somebody else's server may not. So many are held at once (:data:`MOST_HELD`); what comes beyond that
is answered at once, and asks again after a while.

Interleaving: the process is about to leave while a page is between an answer and its next question. ``_away`` has when
pages were opened and answered last, and each question takes one of them off; :meth:`Audience.farewell` waits for a
moment, until nobody is there and nobody away. One who has closed the page does not come back; after a second nobody
waits for him any more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

# The lane of their questions.
WATCH = "watch"

# A thread each, and somebody who watches; more than a handful is no audience.
MOST_HELD = 4
# Seconds that the end of the process may wait for those who watch it: ten times what an answer and a question take.
PATIENCE = 0.25
# For so many seconds whoever was answered counts as about to come back.
_RETURN = 1.0


class Audience:
    """The questions of status pages that are held. Any thread may use it; only what says so blocks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = threading.Condition()  # guards what follows; its waiters are woken at each change
        self.changes = 0  # how many there were
        self.closed = False  # whether the application's own port is
        self._present = 0  # from a question to the end of its answer
        self._away: deque[float] = deque(maxlen=MOST_HELD)

    def changed(self, *, closed: bool = False) -> None:
        """Something has changed that is to be shown at once.

        :param closed: the application's own port is closed now.
        """
        with self._turn:
            self.changes += 1
            self.closed = self.closed or closed
            self._turn.notify_all()

    def enter(self) -> bool:
        """Somebody asks; whether there is room to hold that. If so, :meth:`leave` is to be called."""
        with self._turn:
            if self._present >= MOST_HELD:
                return False
            self._present += 1
            if self._away:
                self._away.popleft()
            return True

    def wait(self, seen: int, seconds: float) -> None:
        """Block until there is a change that was not seen, ``seconds`` at most."""
        with self._turn:
            self._turn.wait_for(lambda: self.changes != seen, seconds)

    def wait_closed(self, seconds: float) -> None:
        """Block until the application's own port is closed, ``seconds`` at most."""
        with self._turn:
            self._turn.wait_for(lambda: self.closed, seconds)

    def expect(self) -> None:
        """The page was opened: its first question comes in a moment."""
        with self._turn:
            self._away.append(self._clock())

    def leave(self, *, comes_back: bool) -> None:
        """The answer has been sent, or could not be.

        :param comes_back: whether it told that there is more to come.
        """
        with self._turn:
            self._present -= 1
            if comes_back:
                self._away.append(self._clock())
            self._turn.notify_all()

    def farewell(self) -> None:
        """Answer everybody, and block for a moment until they have it."""
        with self._turn:
            self.changes += 1
            self.closed = True
            self._turn.notify_all()
            while self._away and self._clock() - self._away[0] > _RETURN:
                self._away.popleft()
            self._turn.wait_for(lambda: not (self._present or self._away), PATIENCE)
