"""waitress that we did not start: ``waitress-serve``, ``serve()``, or ``create_server().run()`` in whatever thread.

Theory of operation
-------------------

A server that is found is *adopted* at once: new channels and those that it has are of our class (``_channel.py``), and
``add_task`` chooses lanes for probes. These are attributes that waitress reads each time, so any thread may set them.
Nothing else changes before a stop, and a channel closes as ever.

For a stop the loop is *taken over*. A thunk, by the server's own trigger, puts a waker of ours into the loop's map.
The waker's first byte is read in the loop's thread, in the middle of a round of the loop, and its reader does not
return: it turns the loop itself, as our own waitress does from its first connection on (``_loop.py``). So all of that
is the same here, and select's limit of 1,024 descriptors and the limit on connections do not bind a drain. Thunks
alone would not do: the trigger's lock is held while they run, what they raise is swallowed, and a descriptor that one
closes may be another connection's within the same round of the loop, which then is read, and closed, for nothing.

What is given to waitress by ``sockets=`` is left to its giver. The path of a Unix socket stays, as waitress has it.

Whether a loop runs at all is seen by the stacks of the threads. One that does not (between bind and ``run()``, after
Ctrl-C, or the parent's in a forked child) is not taken over; then nothing is closed, and the guard refuses.

How it ends: the ``SystemExit`` that the process gets in its main thread goes through our reader, which waitress lets
pass, and ends ``run()``, which ends the workers. A loop in another thread is ended in the same way by :meth:`stop`,
and the main thread, whatever it does, by the process.

Whatever waitress may bring of this one day, a handler that it installs for SIGTERM is installed after ours and has the
signal; a server whose parts are not those that we know is left as it is.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from waitress import wasyncore
from waitress.server import BaseWSGIServer

from ..._inflight import Load, RequestInfo
from ..._parties import FULL, STARTED
from ..._signals import in_main_thread
from .._canary import is_known, send_through, through_loop
from .._loop import Lane, Listener, Loop, Waker
from .._pools import distinct, pool_load, waiting
from . import Found, inside, instances

# A loop that turns has the waker in no time, unless its thread does not come to run.
_PATIENCE = 1.0
# One that is turned by other means than waitress' own is on no stack between two turns.
_UNSEEN = 0.1


def find() -> FoundWaitress | None:
    """Those in this process whose listener is open."""
    found = [server for server in instances(BaseWSGIServer) if server.accepting]
    return FoundWaitress(found) if found else None


class FoundWaitress(Found):
    """waitress, by ``waitress-serve`` or ``serve()``; all that there are in the process."""

    name = "waitress"
    promise = FULL

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers
        self._loops: list[_FoundLoop] = []
        if all(map(is_known, servers)):
            self._loops = distinct(map(_loop_of, servers))
        else:
            self.promise, self.advice = STARTED, "this version of waitress is not known, 'flask lifecycle run' has more"

    def serving(self) -> bool:
        return any(loop.turns() for loop in self._loops)

    def use_lanes(self, lane: Lane) -> None:
        for loop in self._loops:
            loop.lane = lane

    def announce(self) -> None:
        for loop in self._loops:
            loop.announced = True
            loop.take_over()
        taken = [loop.is_taken() for loop in self._loops]  # each is to be waited for
        self.ours = any(taken)

    def stop_accepting(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for loop in self._taken():
            loop.close_listeners(timeout)
        for loop in self._taken():
            loop.closing.done.wait(max(0.0, deadline - time.monotonic()))

    def wait_idle(self, timeout: float, linger: float) -> bool:
        deadline = time.monotonic() + timeout
        for loop in self._taken():
            loop.hang_up(linger)
        idle = [loop.idle.wait(max(0.0, deadline - time.monotonic())) for loop in self._taken()]
        return super().wait_idle(max(0.0, deadline - time.monotonic()), linger) and all(idle)

    def unfinished(self) -> Sequence[RequestInfo]:
        return [info for loop in self._loops for info in loop.unfinished()]

    def load(self) -> Load:
        now = time.time()
        queued = [channel for pool in self._pools() for channel in waiting(pool)]
        oldest = max((now - channel.last_activity for channel in queued), default=0.0)
        return pool_load(self._pools(), max(0.0, oldest))

    def canary(self, done: Callable[[], None]) -> bool | None:
        return send_through([server for server in self._servers if server.accepting], done)

    def stop(self) -> None:
        for loop in self._taken():
            if not loop.in_main:
                loop.end()

    def _taken(self) -> list[_FoundLoop]:
        return [loop for loop in self._loops if loop.runs]

    def _pools(self) -> list[Any]:
        return distinct(server.task_dispatcher for server in self._servers)


def _loop_of(server: Any) -> _FoundLoop:
    """The loop that a server is in, which is one for each map; a server that is new in it is adopted."""
    adopted = [other for other in server._map.values() if hasattr(other, "lifecycle_loop")]
    loop: _FoundLoop = adopted[0].lifecycle_loop if adopted else _FoundLoop(server._map)
    if server not in adopted:
        given = any(server.socket is each for each in server.adj.sockets)
        loop.adopt(Listener(server, given))
        server.lifecycle_loop = loop
    return loop


class _FoundLoop(Loop):
    """A loop of somebody else, until it is taken over."""

    in_main = False

    def __init__(self, channel_map: dict[int, Any]) -> None:
        super().__init__(channel_map)
        self._taken = threading.Event()

    def turns(self) -> bool:
        """Whether a thread of this process is in the loop."""
        return inside(wasyncore.loop, map=self._map)

    def take_over(self) -> None:
        """Have the loop's thread turn it for us from now on; does not wait for that. Twice is harmless."""
        if self.waker is None:
            through_loop(self.listeners[0].server.trigger, self._put_waker)

    def is_taken(self) -> bool:
        """Whether that has come about, which takes no time if the loop turns."""
        return self._taken.wait(_UNSEEN) or (self.turns() and self._taken.wait(_PATIENCE))

    def _put_waker(self) -> None:
        if self.waker is None:
            self.waker = _Takeover(self._map, self._turn)
            self.waker.wake()

    def _turn(self) -> None:
        if not self.runs:
            self.runs = True
            self.in_main = in_main_thread()
            self._taken.set()
            self.run(use_poll=hasattr(select, "poll"))
            raise SystemExit


class _Takeover(Waker):
    """A waker whose first byte does not come back."""

    def __init__(self, channel_map: dict[int, Any], turn: Callable[[], None]) -> None:
        super().__init__(channel_map)
        self._turn = turn

    def handle_read(self) -> None:
        super().handle_read()
        self._turn()
